//! Digests: content by its hash.

use std::fmt;
use std::str::FromStr;

use super::reference::{ReferenceError, shortened};

/// A hash function that content may be named by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    Sha256,
    Sha512,
}

/// The name of some content by its hash: `sha256:…` or `sha512:…` (OCI image-spec, descriptor, "Digests").
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    algorithm: Algorithm,
    text: String,
}

impl Digest {
    /// Names content whose hash is known.
    pub(crate) fn of_hash(algorithm: Algorithm, hash: &[u8]) -> Self {
        let mut text = String::with_capacity(7 + hash.len() * 2);
        text.push_str(algorithm.prefix());
        for byte in hash {
            for nibble in [byte >> 4, byte & 15] {
                text.push(char::from_digit(u32::from(nibble), 16).expect("a nibble is a hexadecimal digit"));
            }
        }
        Self { algorithm, text }
    }

    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The whole digest: algorithm, colon, digits.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The digits alone.
    pub fn hex(&self) -> &str {
        &self.text[self.algorithm.prefix().len()..]
    }
}

impl Algorithm {
    fn prefix(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256:",
            Self::Sha512 => "sha512:",
        }
    }

    fn hex_length(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

impl FromStr for Digest {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let found = [Algorithm::Sha256, Algorithm::Sha512].into_iter().find(|algorithm| {
            text.strip_prefix(algorithm.prefix()).is_some_and(|hex| {
                hex.len() == algorithm.hex_length() && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
            })
        });
        match found {
            Some(algorithm) => Ok(Self {
                algorithm,
                text: text.to_owned(),
            }),
            None => Err(ReferenceError::Digest { text: shortened(text) }),
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
