//! What images take on disk.

use std::path::PathBuf;

use super::Images;

/// What images take on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FsUsage {
    /// Where images are kept.
    pub mountpoint: PathBuf,
    /// Bytes of the published layers, in whole blocks of 4 KiB.
    pub used_bytes: u64,
    /// Inodes of the published layers.
    pub inodes: u64,
}

impl Images {
    /// What images take on disk. A running sum: it moves with each pull and removal and never walks a tree.
    pub async fn fs_usage(&self) -> FsUsage {
        let (used_bytes, inodes) = self.store.usage();
        FsUsage {
            mountpoint: self.config.dir.clone(),
            used_bytes,
            inodes,
        }
    }
}
