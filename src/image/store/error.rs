//! Why a layer could not be unpacked.

use std::io;

use crate::image::error::{ErrorKind, io_kind};

/// Why a layer could not be unpacked. Paths are the archive's own, with unprintable bytes escaped.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The caller's reader failed: the network, or the digest of the compressed bytes.
    #[error("read compressed layer")]
    Read { source: io::Error },
    /// The bytes are not what the compression format allows, or end too early.
    #[error("decompress layer")]
    Decompress { source: io::Error },
    /// The archive breaks the tar format.
    #[error("archive entry {entry}: {reason}")]
    Malformed { entry: String, reason: &'static str },
    /// The entry would leave the layer, or must not be in one.
    #[error("archive entry {entry} refused: {reason}")]
    Refused { entry: String, reason: &'static str },
    /// A limit was passed.
    #[error("layer exceeds the limit of {limit} {what}")]
    Limit { what: &'static str, limit: u64 },
    /// The uncompressed bytes are others than promised.
    #[error("uncompressed layer has digest {actual}")]
    DiffId { actual: String },
    /// A digest that is not `sha256:` and 64 hexadecimal digits.
    #[error("digest is malformed or of an unsupported algorithm")]
    BadDigest,
    /// The file system refused.
    #[error("{op} {entry}")]
    Io {
        op: &'static str,
        entry: String,
        source: io::Error,
    },
}

impl LayerError {
    /// What a caller can do about it. A failed reader counts as unavailable; its owner knows better.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Read { .. } => ErrorKind::Unavailable,
            Self::Decompress { .. } | Self::Malformed { .. } | Self::Refused { .. } | Self::DiffId { .. } => {
                ErrorKind::Corrupt
            }
            Self::BadDigest => ErrorKind::Corrupt,
            Self::Limit { .. } => ErrorKind::Exhausted,
            Self::Io { source, .. } => io_kind(source),
        }
    }
}
