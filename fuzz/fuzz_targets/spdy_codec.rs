//! Frames and header blocks from anybody: no panic, nothing larger than its limit, and what was packed comes back.

#![no_main]

use arbitrary::Arbitrary;
use crisp::streaming::spdy::frame::{Control, HEAD, Head, MAX_CONTROL};
use crisp::streaming::spdy::headers::{Headers, MAX_BLOCK, MAX_HEADERS, Packer, Unpacker};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
enum Input<'a> {
    /// Frames as they stand in the bytes.
    Frames(&'a [u8]),
    /// One direction's compressed blocks.
    Blocks(Vec<&'a [u8]>),
    /// Blocks with good compression around them.
    Plain(Vec<&'a [u8]>),
    /// Headers that a client might send.
    Headers(Vec<Vec<(&'a str, &'a str)>>),
}

fuzz_target!(|input: Input| {
    match input {
        Input::Frames(bytes) => frames(bytes),
        Input::Blocks(blocks) => {
            let mut unpacker = Unpacker::default();
            let _ = blocks.iter().try_for_each(|block| unpacker.unpack(block).map(|headers| check(&headers)));
        }
        Input::Plain(blocks) => {
            let (mut packer, mut unpacker) = (Packer::default(), Unpacker::default());
            for block in blocks {
                let packed = packer.pack_block(block).expect("any bytes can be compressed");
                match unpacker.unpack(&packed) {
                    Ok(headers) => check(&headers),
                    Err(_) => return,
                }
            }
        }
        Input::Headers(blocks) => come_back(&blocks),
    }
});

fn frames(mut bytes: &[u8]) {
    let mut unpacker = Unpacker::default();
    while let Some((head, rest)) = bytes.split_first_chunk::<HEAD>() {
        let Ok(head) = Head::decode(*head) else { return };
        let (Head::Data { length, .. } | Head::Control { length, .. }) = head;
        let (payload, rest) = rest.split_at(length.min(rest.len()));
        bytes = rest;
        if let Head::Control { kind, fin, length } = head {
            assert!(length <= MAX_CONTROL);
            match Control::decode(kind, fin, payload, &mut unpacker) {
                Ok(Control::Open { headers, stream, .. }) => {
                    assert!(stream > 0 && stream < 1 << 31);
                    check(&headers);
                }
                Ok(_) => {}
                Err(_) => return,
            }
        }
    }
}

fn check(headers: &Headers) {
    assert!(headers.iter().count() <= MAX_HEADERS);
    let length: usize = headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    assert!(length <= MAX_BLOCK);
}

fn come_back(blocks: &[Vec<(&str, &str)>]) {
    let (mut packer, mut unpacker) = (Packer::default(), Unpacker::default());
    for block in blocks {
        let headers: Headers = block.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.to_string())).collect();
        let packed = packer.pack(&headers).expect("any headers can be compressed");
        let length: usize = 4 + headers.iter().map(|(name, value)| 8 + name.len() + value.len()).sum::<usize>();
        if block.len() > MAX_HEADERS || length > MAX_BLOCK {
            assert!(unpacker.unpack(&packed).is_err());
            return;
        }
        assert_eq!(unpacker.unpack(&packed).expect("it was packed here"), headers);
    }
}
