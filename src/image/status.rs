//! Finding an image by any form of reference.

use std::sync::Arc;

use super::{Image, ImageError, Images, blocking};
use crate::model::ImageId;

/// What a registry served of an image besides its layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Documents {
    /// The configuration; its SHA-256 is the image's id.
    pub config: Vec<u8>,
    /// The manifest of this platform that was pulled last.
    pub manifest: Vec<u8>,
}

impl Images {
    /// The image that `reference` names: tag, digest, tag with digest, id with or without `sha256:`, or the
    /// beginning of an id if it fits one image only.
    pub fn find(&self, reference: &str) -> Option<Arc<Image>> {
        self.store.snapshot().find(reference).ok().flatten().cloned()
    }

    /// Configuration and manifest of an image, byte for byte, as its registry served them. `None` if it is unknown.
    pub async fn documents(&self, image_id: &ImageId) -> Result<Option<Documents>, ImageError> {
        let (store, image_id) = (self.store.clone(), image_id.clone());
        blocking("read image", move || store.documents(&image_id)).await
    }
}
