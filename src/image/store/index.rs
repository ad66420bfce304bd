//! An immutable picture of all images, for lists and look-ups without a lock.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::image::Image;
use crate::model::ImageId;

/// All images at one moment.
#[derive(Default)]
pub struct Index {
    images: BTreeMap<ImageId, Arc<Image>>,
    names: HashMap<String, ImageId>,
}

impl Index {
    /// All images, by id.
    pub fn images(&self) -> impl Iterator<Item = &Arc<Image>> {
        self.images.values()
    }

    /// The image of that id.
    pub fn get(&self, image_id: &ImageId) -> Option<&Arc<Image>> {
        self.images.get(image_id)
    }

    /// The image that a reference of any form names.
    pub fn find(&self, _reference: &str) -> Option<Arc<Image>> {
        let _ = &self.names;
        todo!()
    }
}
