//! Layers and image records on disk. No database: what is there is what is published, by rename; the index is
//! read anew at each start.
//!
//! Every function that changes something blocks; look-ups go to an immutable [`Index`] and never do.

mod amend;
mod archive;
mod below;
mod decode;
mod error;
mod index;
mod ingest;
mod layout;
mod lease;
mod limits;
mod open;
mod pin;
mod put;
mod record;
mod remove;
mod state;
#[cfg(test)]
mod tests;
mod unpack;

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

pub use self::error::LayerError;
pub use self::index::Index;
use self::layout::Layout;
pub use self::lease::Lease;
pub use self::limits::Limits;
pub use self::pin::LayerInfo;
pub use self::put::NewImage;
use self::state::State;
use super::{Documents, Image, ImageError, glob};
use crate::model::{ImageId, is_well_formed};

/// How a layer's bytes are compressed on the wire, as its media type says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    Gzip,
    Zstd,
    None,
}

/// Mode (permission bits), owner and group of an image's root directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootAttributes {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

/// Layers and image records below one directory.
pub struct Store {
    this: Weak<Self>,
    layout: Layout,
    pinned: Vec<String>,
    orphan_grace: Duration,
    state: Mutex<State>,
    index: ArcSwap<Index>,
    /// Held by who writes image records, over its syncs; `state` is only taken inside.
    commit: Mutex<()>,
    /// A layer lost the last one who needed it.
    orphaned: Arc<Notify>,
}

impl Store {
    /// The images as they are now; a value that never changes.
    pub fn snapshot(&self) -> Arc<Index> {
        self.index.load_full()
    }

    /// Bytes and inodes of the published layers.
    pub fn usage(&self) -> (u64, u64) {
        self.index.load().usage()
    }

    /// The overlay lower directories of `image`, top first.
    pub fn lower_dirs(&self, image: &Image) -> Vec<PathBuf> {
        image
            .lower
            .iter()
            .map(|hex| self.layout.layer(hex).join("diff"))
            .collect()
    }

    /// Configuration and manifest of an image. `None` if it is unknown.
    pub fn documents(&self, image_id: &ImageId) -> Result<Option<Documents>, ImageError> {
        let Some(hex) = hex_of(image_id.as_str()) else {
            return Ok(None);
        };
        let dir = self.layout.manifest(hex);
        match record::read_documents(&dir) {
            Ok(documents) => Ok(Some(documents)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(ImageError::io("read image in", &dir)(error)),
        }
    }

    /// Bytes that are free for new layers.
    pub fn free_bytes(&self) -> Result<u64, ImageError> {
        let failed = |e: rustix::io::Errno| ImageError::io("stat file system of", self.layout.root())(e.into());
        let stat = rustix::fs::statvfs(self.layout.root()).map_err(failed)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Waits until layers have been without use for the grace period, removes them, and waits again. Ends with the store.
    pub(super) async fn keep_swept(this: Weak<Self>) {
        // The store is not held while waiting: whoever drops it wakes this.
        while let Some((orphaned, grace)) = this.upgrade().map(|store| (store.orphaned.clone(), store.orphan_grace)) {
            orphaned.notified().await;
            tokio::time::sleep(grace).await;
            let Some(store) = this.upgrade() else { return };
            // Lost only when the runtime goes down, which leaves the orphans to the next start.
            let _ = tokio::task::spawn_blocking(move || store.sweep(store.orphan_grace)).await;
        }
    }

    /// Removes the layers that nobody has needed for `age`.
    pub fn sweep(&self, age: Duration) {
        let now = Instant::now();
        let mut state = self.lock();
        state.discard_orphans(&self.layout, |_, since| now.duration_since(since) >= age);
        self.show(&state);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is whole between any two statements that can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_commits(&self) -> MutexGuard<'_, ()> {
        self.commit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes `state` what everybody sees.
    fn show(&self, state: &State) {
        self.index.store(Arc::new(state.index()));
    }

    fn is_pinned(&self, name: &str) -> bool {
        self.pinned.iter().any(|pattern| glob::matches(pattern, name))
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.orphaned.notify_one();
    }
}

/// The hexadecimal digits of a `sha256:` digest, if it is one.
fn hex_of(digest: &str) -> Option<&str> {
    digest.strip_prefix("sha256:").filter(|hex| is_well_formed(hex))
}

fn digest_of(hex: &str) -> String {
    format!("sha256:{hex}")
}
