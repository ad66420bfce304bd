//! Header blocks: name and value pairs, compressed by zlib with a dictionary that both sides know (SPDY draft 3.1,
//! section 2.6.10).

use std::sync::LazyLock;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::SpdyError;

/// The most bytes of a block, decompressed.
pub const MAX_BLOCK: usize = 64 << 10;

/// The most headers in a block.
pub const MAX_HEADERS: usize = 100;

/// The words of the dictionary that stand there with their lengths before them.
const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language \
    accept-ranges age allow authorization cache-control connection content-base content-encoding content-language \
    content-length content-location content-md5 content-range content-type date etag expect expires from host if-match \
    if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma \
    proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade \
    user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url public set-cookie \
    keep-alive origin";

/// The status codes that follow them.
const CODES: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505";

/// The rest of the dictionary.
const TEXT: &str = "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized\
    403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable\
    Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT\
    chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,\
    publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

/// What zlib calls the dictionary: its Adler-32.
const DICTIONARY_ID: u32 = 0xe3c6_a7c2;

static DICTIONARY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut dictionary = Vec::new();
    for word in WORDS.split_whitespace() {
        dictionary.extend_from_slice(&(word.len() as u32).to_be_bytes());
        dictionary.extend_from_slice(word.replace('_', " ").as_bytes());
    }
    dictionary.extend_from_slice(CODES.as_bytes());
    dictionary.extend_from_slice(TEXT.as_bytes());
    dictionary
});

/// The headers of a stream, names in lower case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// The first value of `name`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(known, _)| known == name)
            .and_then(|(_, values)| values.split('\0').next())
    }

    /// Names and values, as they came.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    fn decode(mut block: &[u8]) -> Result<Self, SpdyError> {
        let count = take_number(&mut block)?;
        if count > MAX_HEADERS {
            return Err(SpdyError::Headers { why: "too many" });
        }
        let mut headers = Vec::new();
        for _ in 0..count {
            let (name, value) = (take_text(&mut block)?, take_text(&mut block)?);
            headers.push((name.to_ascii_lowercase(), value));
        }
        if block.is_empty() {
            Ok(Self(headers))
        } else {
            Err(SpdyError::Headers {
                why: "more than they say",
            })
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut block = (self.0.len() as u32).to_be_bytes().to_vec();
        for text in self.0.iter().flat_map(|(name, value)| [name, value]) {
            block.extend_from_slice(&(text.len() as u32).to_be_bytes());
            block.extend_from_slice(text.as_bytes());
        }
        block
    }
}

impl FromIterator<(String, String)> for Headers {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(headers: I) -> Self {
        Self(headers.into_iter().collect())
    }
}

impl<const N: usize> From<[(&str, &str); N]> for Headers {
    fn from(headers: [(&str, &str); N]) -> Self {
        Self(
            headers
                .iter()
                .map(|(name, value)| (name.to_string(), value.to_string()))
                .collect(),
        )
    }
}

fn take<'a>(block: &mut &'a [u8], length: usize) -> Result<&'a [u8], SpdyError> {
    let taken = block.split_off(..length);
    taken.ok_or(SpdyError::Headers {
        why: "less than they say",
    })
}

fn take_number(block: &mut &[u8]) -> Result<usize, SpdyError> {
    let bytes = take(block, 4)?;
    Ok(bytes.iter().fold(0, |number, byte| number << 8 | usize::from(*byte)))
}

fn take_text(block: &mut &[u8]) -> Result<String, SpdyError> {
    let length = take_number(block)?;
    let text = take(block, length)?.to_vec();
    String::from_utf8(text).map_err(|_| SpdyError::Headers { why: "not text" })
}

/// Reads the blocks of one direction of a connection, which share their compression: an error leaves it unusable.
pub struct Unpacker(Decompress);

impl Default for Unpacker {
    fn default() -> Self {
        Self(Decompress::new(true))
    }
}

impl Unpacker {
    /// The headers in the compressed `block`.
    pub fn unpack(&mut self, mut block: &[u8]) -> Result<Headers, SpdyError> {
        let mut plain = Vec::with_capacity(1024);
        loop {
            if plain.len() == plain.capacity() {
                if plain.len() >= MAX_BLOCK {
                    return Err(SpdyError::Headers { why: "too large" });
                }
                plain.reserve_exact(plain.len().min(MAX_BLOCK - plain.len()));
            }
            let (read, written) = (self.0.total_in(), plain.len());
            let done = self.0.decompress_vec(block, &mut plain, FlushDecompress::Sync);
            let read = usize::try_from(self.0.total_in() - read).unwrap_or(block.len());
            block = block.get(read..).unwrap_or_default();
            match done {
                Ok(Status::StreamEnd) => {
                    return Err(SpdyError::Headers {
                        why: "their compression has ended",
                    });
                }
                Ok(_) if block.is_empty() && plain.len() < plain.capacity() => return Headers::decode(&plain),
                Ok(_) if read == 0 && plain.len() == written => {
                    return Err(SpdyError::Headers { why: "no way to go on" });
                }
                Ok(_) => {}
                Err(error) if error.needs_dictionary() == Some(DICTIONARY_ID) => {
                    self.0
                        .set_dictionary(&DICTIONARY)
                        .map_err(|_| SpdyError::Headers { why: "dictionary" })?;
                }
                Err(_) => return Err(SpdyError::Headers { why: "not zlib" }),
            }
        }
    }
}

/// Writes the blocks of one direction of a connection.
#[derive(Default)]
pub struct Packer(Option<Compress>);

impl Packer {
    /// `headers`, compressed.
    pub fn pack(&mut self, headers: &Headers) -> Result<Vec<u8>, SpdyError> {
        self.pack_block(&headers.encode())
    }

    /// A block's bytes, whatever they are, compressed.
    pub fn pack_block(&mut self, plain: &[u8]) -> Result<Vec<u8>, SpdyError> {
        let failed = |_| SpdyError::Headers {
            why: "cannot be compressed",
        };
        let compress = match &mut self.0 {
            Some(compress) => compress,
            none => {
                let mut fresh = Compress::new(Compression::fast(), true);
                fresh.set_dictionary(&DICTIONARY).map_err(failed)?;
                none.insert(fresh)
            }
        };
        // A flush ends with an empty block of five bytes; incompressible text grows by less than the rest.
        let mut packed = Vec::with_capacity(plain.len() + plain.len() / 100 + 64);
        compress
            .compress_vec(plain, &mut packed, FlushCompress::Sync)
            .map_err(failed)?;
        Ok(packed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dictionary_is_the_one_of_the_draft() {
        assert_eq!(DICTIONARY.len(), 1423);
        let (mut a, mut b) = (1u32, 0u32);
        for byte in DICTIONARY.iter() {
            a = (a + u32::from(*byte)) % 65521;
            b = (b + a) % 65521;
        }
        assert_eq!(b << 16 | a, DICTIONARY_ID);
    }

    #[test]
    fn headers_come_back_block_after_block() {
        let (mut packer, mut unpacker) = (Packer::default(), Unpacker::default());
        for number in 0..50 {
            let number = number.to_string();
            let headers = Headers::from([("streamtype", "data"), ("port", "80"), ("requestid", number.as_str())]);
            let packed = packer.pack(&headers).unwrap();
            assert_eq!(unpacker.unpack(&packed).unwrap(), headers);
        }
        let none = packer.pack(&Headers::default()).unwrap();
        assert_eq!(unpacker.unpack(&none).unwrap(), Headers::default());
    }

    #[test]
    fn names_are_lowered_and_the_first_of_several_values_counts() {
        let block = Headers(vec![("StreamType".to_owned(), "error\0data".to_owned())]).encode();
        let headers = Headers::decode(&block).unwrap();
        assert_eq!(headers.get("streamtype"), Some("error"));
        assert_eq!(headers.get("port"), None);
    }

    #[test]
    fn a_bomb_is_not_unpacked() {
        let mut compress = Compress::new(Compression::best(), true);
        compress.set_dictionary(&DICTIONARY).unwrap();
        let mut packed = Vec::with_capacity(1 << 20);
        compress
            .compress_vec(&vec![0; 64 << 20], &mut packed, FlushCompress::Sync)
            .unwrap();
        assert!(packed.len() < 128 << 10);
        let refused = Unpacker::default().unpack(&packed).unwrap_err();
        assert!(
            matches!(refused, SpdyError::Headers { why: "too large" }),
            "{refused:?}"
        );
    }

    #[test]
    fn hostile_blocks_are_errors() {
        let unpack = |plain: &[u8]| {
            let mut compress = Compress::new(Compression::fast(), true);
            compress.set_dictionary(&DICTIONARY).unwrap();
            let mut packed = Vec::with_capacity(4096);
            compress.compress_vec(plain, &mut packed, FlushCompress::Sync).unwrap();
            Unpacker::default().unpack(&packed)
        };
        assert_eq!(unpack(&[0, 0, 0, 0]).unwrap(), Headers::default());
        assert!(unpack(&[]).is_err(), "no count");
        assert!(unpack(&[0, 0, 0, 1]).is_err(), "no name");
        assert!(unpack(&[0xff; 4]).is_err(), "far too many");
        assert!(
            unpack(&[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, b'a']).is_err(),
            "a long name"
        );
        assert!(unpack(&[0, 0, 0, 0, 1]).is_err(), "too much");
        assert!(unpack(&[0, 0, 0, 1, 0, 0, 0, 1, 0xff, 0, 0, 0, 0]).is_err(), "not text");
        for noise in [
            &b"no zlib"[..],
            &[],
            &[0x78],
            &[0x78, 0xbb],
            &[0x78, 0xbb, 1, 2, 3, 4, 5],
        ] {
            assert!(Unpacker::default().unpack(noise).is_err(), "{noise:?}");
        }
    }
}
