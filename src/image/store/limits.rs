//! What one layer may cost at most.

/// Limits on one layer. Whoever passes one gets an error and leaves nothing behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the uncompressed archive. Default 128 GiB.
    pub layer_bytes: u64,
    /// Bytes of one file, holes counted. Default 64 GiB.
    pub file_bytes: u64,
    /// Entries of the archive, and inodes made for it. Default 4 million.
    pub entries: u64,
    /// Uncompressed bytes per compressed byte, once `ratio_from_bytes` are uncompressed. Default 250: deflate ends
    /// at 1032, and real layers stay below 20.
    pub ratio: u64,
    /// From how many uncompressed bytes on `ratio` counts. Default 1 GiB: a small layer of zeros is no attack.
    pub ratio_from_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            layer_bytes: 128 << 30,
            file_bytes: 64 << 30,
            entries: 4_000_000,
            ratio: 250,
            ratio_from_bytes: 1 << 30,
        }
    }
}
