//! Layers that a pull needs before there is an image that does.

use std::sync::{Arc, Weak};

use super::layout::Scratch;
use super::record::LayerMeta;
use super::state::Layer;
use super::{Store, hex_of};
use crate::image::ImageError;

/// A published layer. While a copy of this lives the layer stays; without image it then stays for the grace period.
#[derive(Clone, Debug)]
pub struct LayerInfo {
    /// `sha256:` and the digest of the uncompressed archive.
    pub diff_id: String,
    /// Bytes on disk, in whole blocks of 4 KiB.
    pub size_bytes: u64,
    /// Inodes on disk.
    pub inodes: u64,
    pin: Arc<Pin>,
}

impl LayerInfo {
    /// Its name in `layers/`.
    pub(super) fn key(&self) -> &str {
        &self.pin.hex
    }
}

#[derive(Debug)]
struct Pin {
    store: Weak<Store>,
    hex: String,
}

impl Drop for Pin {
    fn drop(&mut self) {
        if let Some(store) = self.store.upgrade()
            && store.lock().unpin(&self.hex)
        {
            store.orphaned.notify_one();
        }
    }
}

impl Store {
    /// The layer, if it is here already; it stays while the value lives.
    pub fn has_layer(&self, diff_id: &str) -> Option<LayerInfo> {
        let hex = hex_of(diff_id)?;
        let meta = self.lock().pin(hex)?.clone();
        Some(self.pinned(hex, &meta))
    }

    /// Gives an unpacked layer its name. If somebody else was first, theirs counts.
    pub(super) fn publish_layer(&self, hex: &str, meta: LayerMeta, scratch: Scratch) -> Result<LayerInfo, ImageError> {
        let mut state = self.lock();
        if !state.layers.contains_key(hex) {
            let place = self.layout.layer(hex);
            // A layer whose removal failed earlier: it is not known any more.
            self.layout.discard(&place)?;
            scratch.publish(&place)?;
            state.layers.insert(hex.to_owned(), Layer::orphan(meta));
        }
        let meta = state.pin(hex).expect("it was inserted above").clone();
        self.show(&state);
        drop(state);
        Ok(self.pinned(hex, &meta))
    }

    fn pinned(&self, hex: &str, meta: &LayerMeta) -> LayerInfo {
        LayerInfo {
            diff_id: meta.diff_id.clone(),
            size_bytes: meta.size_bytes,
            inodes: meta.inodes,
            pin: Arc::new(Pin {
                store: self.this.clone(),
                hex: hex.to_owned(),
            }),
        }
    }
}
