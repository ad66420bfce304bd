//! An immutable picture of all images, for lists and look-ups without a lock.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use super::{digest_of, hex_of};
use crate::image::reference::Reference;
use crate::image::{Image, ImageError};
use crate::model::{ImageId, is_well_formed};

/// All images at one moment.
#[derive(Default)]
pub struct Index {
    images: BTreeMap<ImageId, Arc<Image>>,
    names: HashMap<String, ImageId>,
    usage: (u64, u64),
}

impl Index {
    pub(super) fn new(images: impl Iterator<Item = Arc<Image>>, usage: (u64, u64)) -> Self {
        let images: BTreeMap<_, _> = images.map(|image| (image.id.clone(), image)).collect();
        let names = images
            .values()
            .flat_map(|image| {
                image
                    .repo_tags
                    .iter()
                    .chain(&image.repo_digests)
                    .map(move |name| (name.clone(), image.id.clone()))
            })
            .collect();
        Self { images, names, usage }
    }

    /// All images, by id.
    pub fn images(&self) -> impl Iterator<Item = &Arc<Image>> {
        self.images.values()
    }

    /// The image of that id.
    pub fn get(&self, image_id: &ImageId) -> Option<&Arc<Image>> {
        self.images.get(image_id)
    }

    /// The image that has this normalised tag or `repository@digest`.
    pub fn named(&self, name: &str) -> Option<&Arc<Image>> {
        self.images.get(self.names.get(name)?)
    }

    /// The image that a reference of any form names: a digest decides over a tag beside it, a name over an id that
    /// begins so, and a text that cannot be a reference names nothing.
    ///
    /// # Errors
    /// [`ImageError::Ambiguous`] if it is the beginning of several ids.
    pub fn find(&self, reference: &str) -> Result<Option<&Arc<Image>>, ImageError> {
        if let Ok(parsed) = Reference::parse(reference) {
            let name = match parsed.digest() {
                Some(digest) => Some(parsed.repo_digest(digest)),
                None => parsed.repo_tag(),
            };
            if let Some(image) = name.and_then(|name| self.named(&name)) {
                return Ok(Some(image));
            }
        }
        self.by_id(reference)
    }

    /// Bytes and inodes of all published layers.
    pub fn usage(&self) -> (u64, u64) {
        self.usage
    }

    /// The image that `id` names: a full id, with or without `sha256:`, or the beginning of one.
    ///
    /// # Errors
    /// [`ImageError::Ambiguous`] if several ids begin so.
    pub fn by_id(&self, id: &str) -> Result<Option<&Arc<Image>>, ImageError> {
        let hex = id.strip_prefix("sha256:").unwrap_or(id);
        if is_well_formed(hex) {
            return Ok(self.images.get(&ImageId::new(digest_of(hex))));
        }
        if hex.is_empty() || hex.len() > 64 || !hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            return Ok(None);
        }
        let first = ImageId::new(digest_of(hex));
        let mut fitting = self
            .images
            .range((Bound::Included(first), Bound::Unbounded))
            .map(|(_, image)| image)
            .take_while(|image| hex_of(image.id.as_str()).is_some_and(|full| full.starts_with(hex)));
        match (fitting.next(), fitting.next()) {
            (Some(_), Some(_)) => Err(ImageError::Ambiguous { id: id.to_owned() }),
            (found, _) => Ok(found),
        }
    }
}
