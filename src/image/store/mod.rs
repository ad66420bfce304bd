//! Layers and image records on disk. No database: what is there is what is published, by rename; the index is
//! read anew at each start.

mod error;
mod index;
mod limits;

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;

pub use self::error::LayerError;
pub use self::index::Index;
pub use self::limits::Limits;
use super::{Image, ImageConfig, ImageError};
use crate::model::ImageId;

/// How a layer's bytes are compressed on the wire, as its media type says. The first bytes decide when they
/// contradict: registries hold layers under wrong media types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    Gzip,
    Zstd,
    None,
}

/// A published layer. While a copy of this lives the layer is not removed.
#[derive(Clone, Debug)]
pub struct LayerInfo {
    /// `sha256:` and the digest of the uncompressed archive.
    pub diff_id: String,
    /// Bytes on disk, in whole blocks of 4 KiB.
    pub size_bytes: u64,
    /// Inodes on disk.
    pub inodes: u64,
}

/// What [`Store::put_image`] records.
#[derive(Clone, Debug)]
pub struct NewImage {
    /// The configuration, byte for byte; its SHA-256 is the image's id.
    pub config_bytes: Vec<u8>,
    /// The manifest of this platform, byte for byte.
    pub manifest_bytes: Vec<u8>,
    /// The digest by which it was pulled: of the index if there was one, else of the manifest.
    pub manifest_digest: String,
    /// Normalised tag, if it was pulled by one. It is taken from the image that had it.
    pub repo_tag: Option<String>,
    /// Normalised `repository@digest`.
    pub repo_digest: Option<String>,
    /// The layers, bottom first, one for each of the configuration's diff ids.
    pub layers: Vec<LayerInfo>,
}

/// Mode (permission bits), owner and group of an image's root directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RootAttributes {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

/// Keeps an image's layers on disk until it is dropped.
#[derive(Debug)]
pub struct Lease {
    image: Arc<Image>,
}

impl Lease {
    /// The image, as it was when the lease was taken.
    pub fn image(&self) -> &Arc<Image> {
        &self.image
    }
}

/// Layers and image records below one directory.
pub struct Store {
    index: ArcSwap<Index>,
}

impl Store {
    /// Opens the store below `config.dir`. Blocks.
    pub fn open(_config: &ImageConfig) -> Result<Arc<Self>, ImageError> {
        todo!()
    }

    /// Unpacks one layer and publishes it. Blocks until `reader` is at its end or something failed; `reader` is read
    /// to its end before anything is published, so that its own check of the compressed digest comes first.
    pub fn ingest_layer(
        &self,
        _diff_id: &str,
        _compression: Compression,
        _reader: Box<dyn Read + Send>,
        _limits: &Limits,
    ) -> Result<LayerInfo, ImageError> {
        todo!()
    }

    /// The layer, if it is here already; it stays while the value lives.
    pub fn has_layer(&self, _diff_id: &str) -> Option<LayerInfo> {
        todo!()
    }

    /// Records an image whose layers are here. Blocks.
    pub fn put_image(&self, _image: NewImage) -> Result<Arc<Image>, ImageError> {
        todo!()
    }

    /// Adds a tag or digest to an image that is here already, taking the tag from the image that had it. `None` if
    /// there is no such image. Blocks.
    pub fn add_reference(
        &self,
        _image_id: &ImageId,
        _repo_tag: Option<String>,
        _repo_digest: Option<String>,
    ) -> Result<Option<Arc<Image>>, ImageError> {
        todo!()
    }

    /// Removes an image's record and references, and its layers unless something else needs them. Blocks shortly.
    pub fn remove_image(&self, _image_id: &ImageId) -> Result<(), ImageError> {
        todo!()
    }

    pub fn hold(&self, _image_id: &ImageId) -> Option<Lease> {
        todo!()
    }

    pub fn settle(&self) -> Result<(), ImageError> {
        todo!()
    }

    /// The images as they are now; a value that never changes.
    pub fn snapshot(&self) -> Arc<Index> {
        self.index.load_full()
    }

    /// Bytes and inodes of the published layers.
    pub fn usage(&self) -> (u64, u64) {
        todo!()
    }

    /// The overlay lower directories of `image`, top first.
    pub fn lower_dirs(&self, _image: &Image) -> Vec<PathBuf> {
        todo!()
    }

    /// Bytes that are free for new layers.
    pub fn free_bytes(&self) -> Result<u64, ImageError> {
        todo!()
    }
}
