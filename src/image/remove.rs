//! Removing images.

use super::{ImageError, Images, blocking};

impl Images {
    /// Removes the image that `reference` names, in any form, with all its tags and digests. An image that is not
    /// there is removed already.
    ///
    /// Layers that containers hold stay until those are gone. The files are unlinked in the background.
    pub async fn remove(&self, reference: &str) -> Result<(), ImageError> {
        let Some(image) = self.store.snapshot().find(reference)?.cloned() else {
            return Ok(());
        };
        let store = self.store.clone();
        blocking("remove image", move || store.remove_image(&image.id)).await
    }
}
