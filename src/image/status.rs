//! Finding an image by any form of reference.

use std::sync::Arc;

use super::{Image, Images};

impl Images {
    /// The image that `reference` names: tag, digest, tag with digest, id with or without `sha256:`, or the
    /// beginning of an id if it fits one image only.
    pub fn find(&self, reference: &str) -> Option<Arc<Image>> {
        self.store.snapshot().find(reference).ok().flatten().cloned()
    }
}
