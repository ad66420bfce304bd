//! Listing images.

use std::sync::Arc;

use super::{Image, Images};

impl Images {
    /// All images, by id. Never waits: it is an immutable snapshot.
    pub fn list(&self) -> Vec<Arc<Image>> {
        self.store.snapshot().images().cloned().collect()
    }
}
