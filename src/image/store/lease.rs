//! Containers hold their image's layers.

use std::sync::{Arc, Weak};

use super::{Store, hex_of};
use crate::image::{Image, ImageError};
use crate::model::ImageId;

/// Keeps an image's layers on disk until it is dropped, whatever becomes of the image.
#[derive(Debug)]
pub struct Lease {
    image: Arc<Image>,
    store: Weak<Store>,
}

impl Lease {
    /// The image, as it was when the lease was taken.
    pub fn image(&self) -> &Arc<Image> {
        &self.image
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(store) = self.store.upgrade() {
            store.release(&self.image.id);
        }
    }
}

impl Store {
    /// Keeps the image's layers until the lease is dropped. `None` if the image is unknown; an image that was removed
    /// while containers held it is known to those who hold it by its id.
    pub fn hold(&self, image_id: &ImageId) -> Option<Lease> {
        let mut state = self.lock();
        let known = state.images.get_mut(image_id)?;
        known.leases += 1;
        Some(Lease {
            image: known.image.clone(),
            store: self.this.clone(),
        })
    }

    /// Says that all containers that survived a restart have taken their leases again: removed images that nobody
    /// holds go now.
    pub fn settle(&self) -> Result<(), ImageError> {
        let mut state = self.lock();
        state.keeping = false;
        let unheld: Vec<ImageId> = state
            .images
            .iter()
            .filter(|(_, known)| !known.listed && known.leases == 0)
            .map(|(id, _)| id.clone())
            .collect();
        for image_id in unheld {
            if let Some(hex) = hex_of(image_id.as_str()) {
                self.layout.discard(&self.layout.held(hex))?;
            }
            state.forget(&image_id, &self.layout);
        }
        self.show(&state);
        Ok(())
    }

    /// Says that the daemon goes down: from now on removed images stay for the next one, as at its start.
    pub fn keep(&self) {
        self.lock().keeping = true;
    }

    fn release(&self, image_id: &ImageId) {
        let mut state = self.lock();
        let Some(known) = state.images.get_mut(image_id) else {
            return;
        };
        known.leases -= 1;
        if known.leases > 0 || known.listed || state.keeping {
            return;
        }
        let Some(hex) = hex_of(image_id.as_str()) else { return };
        match self.layout.discard(&self.layout.held(hex)) {
            Ok(()) => {
                state.forget(image_id, &self.layout);
                self.show(&state);
            }
            // It stays without lease until `settle` after the next start.
            Err(error) => tracing::warn!(%image_id, %error, "cannot remove an image that nobody holds any more"),
        }
    }
}
