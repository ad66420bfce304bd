//! Frames: a control bit, a type or a stream, flags, a length, and what follows (SPDY draft 3.1, section 2.2).

use super::SpdyError;
use super::headers::{Headers, Packer, Unpacker};

/// The length of what starts every frame.
pub const HEAD: usize = 8;

/// The longest control frame that is taken, in bytes after its head.
pub const MAX_CONTROL: usize = 16 << 10;

/// The longest data frame: its length has 24 bits.
pub const MAX_DATA: usize = (1 << 24) - 1;

const VERSION: u16 = 3;
const FLAG_FIN: u8 = 1;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;

/// Reasons in RST_STREAM.
const REFUSED_STREAM: u32 = 3;
const CANCEL: u32 = 5;

/// A frame's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    Data { stream: u32, fin: bool, length: usize },
    Control { kind: u16, fin: bool, length: usize },
}

impl Head {
    pub fn decode(bytes: [u8; HEAD]) -> Result<Self, SpdyError> {
        let [a, b, c, d, flags, length @ ..] = bytes;
        let length = length.iter().fold(0, |number, byte| number << 8 | usize::from(*byte));
        let fin = flags & FLAG_FIN != 0;
        if a & 0x80 == 0 {
            let stream = u32::from_be_bytes([a, b, c, d]);
            return if stream == 0 {
                Err(SpdyError::Frame { why: "stream 0" })
            } else {
                Ok(Self::Data { stream, fin, length })
            };
        }
        if u16::from_be_bytes([a & 0x7f, b]) != VERSION {
            return Err(SpdyError::Frame { why: "another version" });
        }
        if length > MAX_CONTROL {
            return Err(SpdyError::Frame { why: "too long" });
        }
        Ok(Self::Control {
            kind: u16::from_be_bytes([c, d]),
            fin,
            length,
        })
    }
}

/// A control frame that matters to a server whose windows nobody keeps.
#[derive(Debug, PartialEq, Eq)]
pub enum Control {
    /// `fin`: the client will send nothing on the stream.
    Open {
        stream: u32,
        headers: Headers,
        fin: bool,
    },
    /// Headers for a stream that is open; the protocols here give them no meaning.
    More {
        stream: u32,
        fin: bool,
    },
    Reset {
        stream: u32,
    },
    Ping {
        id: u32,
    },
    /// The client opens no more streams.
    GoAway,
    /// Settings and windows: well formed, and without effect.
    Nothing,
}

impl Control {
    /// The frame of the kind that its head tells. Every block of headers must pass here: `unpacker` depends on all.
    pub fn decode(kind: u16, fin: bool, payload: &[u8], unpacker: &mut Unpacker) -> Result<Self, SpdyError> {
        let short = SpdyError::Frame { why: "too short" };
        let number = |at: usize| {
            payload
                .get(at..at + 4)
                .and_then(|bytes| bytes.try_into().ok())
                .map(u32::from_be_bytes)
        };
        let first = number(0).ok_or(SpdyError::Frame { why: "too short" })?;
        // The highest bit of a stream's number is reserved.
        let stream = first & 0x7fff_ffff;
        let needs_stream = matches!(kind, SYN_STREAM | SYN_REPLY | RST_STREAM | HEADERS);
        if needs_stream && stream == 0 {
            return Err(SpdyError::Frame { why: "stream 0" });
        }
        match kind {
            SYN_STREAM => {
                let headers = unpacker.unpack(payload.get(10..).ok_or(short)?)?;
                Ok(Self::Open { stream, headers, fin })
            }
            SYN_REPLY | HEADERS => {
                unpacker.unpack(&payload[4..])?;
                Ok(Self::More { stream, fin })
            }
            RST_STREAM => number(4).ok_or(short).map(|_| Self::Reset { stream }),
            PING => Ok(Self::Ping { id: first }),
            GOAWAY => Ok(Self::GoAway),
            SETTINGS => {
                let fits = usize::try_from(first).is_ok_and(|count| count <= (payload.len() - 4) / 8);
                if fits { Ok(Self::Nothing) } else { Err(short) }
            }
            WINDOW_UPDATE => number(4).ok_or(short).map(|_| Self::Nothing),
            // Unknown kinds are to be ignored (section 2.2.1).
            _ => Ok(Self::Nothing),
        }
    }
}

/// The head of a data frame of at most [`MAX_DATA`] bytes.
pub fn data(stream: u32, fin: bool, length: usize) -> [u8; HEAD] {
    debug_assert!(length <= MAX_DATA);
    head(stream, u8::from(fin), length)
}

fn head(first: u32, flags: u8, length: usize) -> [u8; HEAD] {
    let mut bytes = [0; HEAD];
    bytes[..4].copy_from_slice(&first.to_be_bytes());
    bytes[4..].copy_from_slice(&(u32::from(flags) << 24 | length as u32).to_be_bytes());
    bytes
}

fn control(kind: u16, payload: &[u8]) -> Vec<u8> {
    let first = 0x8000_0000 | u32::from(VERSION) << 16 | u32::from(kind);
    let mut bytes = head(first, 0, payload.len()).to_vec();
    bytes.extend_from_slice(payload);
    bytes
}

fn numbers(kind: u16, numbers: &[u32]) -> Vec<u8> {
    control(
        kind,
        &numbers
            .iter()
            .flat_map(|number| number.to_be_bytes())
            .collect::<Vec<u8>>(),
    )
}

/// SYN_REPLY without headers.
pub fn accept(stream: u32, packer: &mut Packer) -> Result<Vec<u8>, SpdyError> {
    let mut payload = stream.to_be_bytes().to_vec();
    payload.extend(packer.pack(&Headers::default())?);
    Ok(control(SYN_REPLY, &payload))
}

pub fn reset(stream: u32, refused: bool) -> Vec<u8> {
    numbers(RST_STREAM, &[stream, if refused { REFUSED_STREAM } else { CANCEL }])
}

pub fn ping(id: u32) -> Vec<u8> {
    numbers(PING, &[id])
}

pub fn go_away(last_stream: u32, protocol_error: bool) -> Vec<u8> {
    numbers(GOAWAY, &[last_stream, u32::from(protocol_error)])
}

/// SYN_STREAM, as a client sends it.
pub fn open(stream: u32, headers: &Headers, fin: bool, packer: &mut Packer) -> Result<Vec<u8>, SpdyError> {
    let mut payload = stream.to_be_bytes().to_vec();
    payload.extend([0; 6]);
    payload.extend(packer.pack(headers)?);
    let mut frame = control(SYN_STREAM, &payload);
    frame[4] = u8::from(fin);
    Ok(frame)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(frame: &[u8], unpacker: &mut Unpacker) -> Result<Control, SpdyError> {
        let (head, payload) = frame.split_at(HEAD);
        match Head::decode(head.try_into().unwrap())? {
            Head::Control { kind, fin, length } => {
                assert_eq!(length, payload.len());
                Control::decode(kind, fin, payload, unpacker)
            }
            Head::Data { .. } => panic!("data"),
        }
    }

    #[test]
    fn frames_come_back() {
        let (mut packer, mut unpacker) = (Packer::default(), Unpacker::default());
        let headers = Headers::from([("streamtype", "stdin")]);
        let frame = open(3, &headers, true, &mut packer).unwrap();
        assert_eq!(
            decode(&frame, &mut unpacker).unwrap(),
            Control::Open {
                stream: 3,
                headers,
                fin: true
            }
        );
        let frame = accept(3, &mut packer).unwrap();
        assert_eq!(
            decode(&frame, &mut unpacker).unwrap(),
            Control::More { stream: 3, fin: false }
        );
        assert_eq!(
            decode(&reset(5, true), &mut unpacker).unwrap(),
            Control::Reset { stream: 5 }
        );
        assert_eq!(decode(&ping(7), &mut unpacker).unwrap(), Control::Ping { id: 7 });
        assert_eq!(decode(&go_away(1, false), &mut unpacker).unwrap(), Control::GoAway);
        assert_eq!(
            Head::decode(data(9, true, MAX_DATA)).unwrap(),
            Head::Data {
                stream: 9,
                fin: true,
                length: MAX_DATA
            }
        );
    }

    #[test]
    fn settings_and_windows_are_checked_and_ignored() {
        let unpacker = &mut Unpacker::default();
        assert_eq!(
            decode(&numbers(SETTINGS, &[1, 7, 65536]), unpacker).unwrap(),
            Control::Nothing
        );
        assert!(decode(&numbers(SETTINGS, &[2, 7, 65536]), unpacker).is_err());
        assert_eq!(
            decode(&numbers(WINDOW_UPDATE, &[1, 65536]), unpacker).unwrap(),
            Control::Nothing
        );
        assert!(decode(&numbers(WINDOW_UPDATE, &[1]), unpacker).is_err());
        assert_eq!(decode(&numbers(99, &[1]), unpacker).unwrap(), Control::Nothing);
    }

    #[test]
    fn hostile_frames_are_errors() {
        assert!(Head::decode(data(0, false, 1)).is_err(), "data of stream 0");
        assert!(Head::decode([0x80, 2, 0, 1, 0, 0, 0, 10]).is_err(), "version 2");
        assert!(
            Head::decode([0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff]).is_err(),
            "16 MiB of headers"
        );
        assert!(
            Head::decode(*b"POST /ex").is_ok_and(|head| matches!(head, Head::Data { .. })),
            "text is data"
        );
        for kind in 0..12 {
            for length in 0..20 {
                let payload = vec![0xff; length];
                let _ = Control::decode(kind, false, &payload, &mut Unpacker::default());
            }
            if kind != 0 {
                assert!(Control::decode(kind, false, &[0, 0], &mut Unpacker::default()).is_err());
            }
        }
        assert!(
            Control::decode(RST_STREAM, false, &[0; 8], &mut Unpacker::default()).is_err(),
            "stream 0"
        );
    }
}
