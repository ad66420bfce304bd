//! Removing an image: renames only, so that it works on a full disk. Unlinking follows in the background.

use std::fs;
use std::io;

use super::{Store, hex_of};
use crate::image::ImageError;
use crate::model::ImageId;

impl Store {
    /// Removes an image with all its references, and the layers that nothing else needs. Layers of an image that is
    /// held stay until its last lease goes. An image that is not there is removed already.
    pub fn remove_image(&self, image_id: &ImageId) -> Result<(), ImageError> {
        let Some(hex) = hex_of(image_id.as_str()) else {
            return Ok(());
        };
        let _commit = self.lock_commits();
        let mut state = self.lock();
        let Some(known) = state.images.get_mut(image_id).filter(|known| known.listed) else {
            return Ok(());
        };
        let place = self.layout.manifest(hex);
        if known.leases > 0 || state.keeping {
            // After a restart nobody has said yet who holds it.
            let held = self.layout.held(hex);
            self.layout.discard(&held)?;
            match fs::rename(&place, &held) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(ImageError::io("remove", &place)(error));
                }
                _ => {}
            }
            state.images.get_mut(image_id).expect("it was found above").listed = false;
        } else {
            self.layout.discard(&place)?;
            state.forget(image_id, &self.layout);
        }
        // Whoever removes images wants space; what an unfinished pull left is the first to go.
        state.discard_orphans(&self.layout, |_, _| true);
        self.show(&state);
        Ok(())
    }
}
