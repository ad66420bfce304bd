//! Recording images and their references.

use std::sync::Arc;

use oci_spec::image::ImageConfiguration;
use sha2::{Digest, Sha256};

use super::record::{self, ImageRecord};
use super::{LayerInfo, Store, hex_of};
use crate::image::{Image, ImageError};
use crate::model::ImageId;

/// overlayfs takes no more lower directories (`OVL_MAX_STACK`).
const MAX_LAYERS: usize = 500;

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

impl Store {
    /// Records an image whose layers are here, or adds what is new to one that is recorded. On return it is on disk.
    pub fn put_image(&self, new: NewImage) -> Result<Arc<Image>, ImageError> {
        crate::fault::blocking_point("pull: layers published")?;
        let hex = format!("{:x}", Sha256::digest(&new.config_bytes));
        let image_id = super::digest_of(&hex);
        let config = ImageConfiguration::from_reader(&new.config_bytes[..]).map_err(|source| ImageError::Config {
            image_id: image_id.clone(),
            source,
        })?;
        check_layers(&image_id, &config, &new.layers)?;
        let used = self.amend(&new.layers)?;
        let keys = |layers: &[LayerInfo]| layers.iter().map(|layer| layer.key().to_owned()).collect::<Vec<_>>();
        let layers = keys(&used);
        let sources = keys(&new.layers)
            .into_iter()
            .filter(|key| !layers.contains(key))
            .collect();

        // One for all layers: each of its own would hold up those that are still being unpacked.
        if self.snapshot().get(&ImageId::new(&image_id)).is_none() {
            record::sync_file_system(&self.layout.layers())?;
        }
        let _commit = self.lock_commits();
        let known = self
            .lock()
            .images
            .get(&ImageId::new(&image_id))
            .map(|known| (known.record.clone(), known.listed));
        let (mut record, is_new) = match known {
            Some((record, true)) => (record, false),
            _ => (
                ImageRecord::new(image_id, new.manifest_digest.clone(), layers, sources),
                true,
            ),
        };
        let place = self.layout.manifest(&hex);
        record.manifest_digest = new.manifest_digest;
        record.add(new.repo_tag.clone(), new.repo_digest);
        if is_new {
            let scratch = self.layout.scratch_in(&self.layout.manifests())?;
            record.write_all(scratch.path(), &new.config_bytes, &new.manifest_bytes)?;
            record::sync_dir(&self.layout.layers())?;
            self.take_tag(&record.image_id, new.repo_tag.as_deref())?;
            self.layout.discard(&place)?;
            crate::fault::blocking_point("pull: image written")?;
            scratch.publish(&place)?;
            record::sync_dir(&self.layout.manifests())?;
        } else {
            record::replace_manifest(&place, &new.manifest_bytes)?;
            self.take_tag(&record.image_id, new.repo_tag.as_deref())?;
            record.replace(&place)?;
        }
        crate::fault::blocking_point("pull: image recorded")?;
        self.enter(record, config)
    }

    /// Takes the tag from the image that has it, unless that is `image_id`. The record of the one that loses it is
    /// written first: in between nobody has the tag, which a pull mends; two that have it would be a lie.
    fn take_tag(&self, image_id: &str, repo_tag: Option<&str>) -> Result<(), ImageError> {
        let Some(repo_tag) = repo_tag else { return Ok(()) };
        let snapshot = self.snapshot();
        let Some(loser) = snapshot.named(repo_tag).filter(|image| image.id.as_str() != image_id) else {
            return Ok(());
        };
        let Some(hex) = hex_of(loser.id.as_str()) else {
            return Ok(());
        };
        let Some(mut record) = self.lock().images.get(&loser.id).map(|known| known.record.clone()) else {
            return Ok(());
        };
        record.repo_tags.retain(|tag| tag != repo_tag);
        record.replace(&self.layout.manifest(hex))?;
        self.enter(record, loser.config.clone()).map(drop)
    }

    /// Shows the image that `record` on disk describes.
    fn enter(&self, record: ImageRecord, config: ImageConfiguration) -> Result<Arc<Image>, ImageError> {
        let mut state = self.lock();
        let image = state
            .image(&record, config, |name| self.is_pinned(name))
            .ok_or_else(|| {
                let lost = record.layers.iter().find(|hex| !state.layers.contains_key(*hex));
                ImageError::MissingLayer {
                    image_id: record.image_id.clone(),
                    diff_id: lost.map(|hex| super::digest_of(hex)).unwrap_or_default(),
                }
            })?;
        let image = Arc::new(image);
        if let Some(hex) = hex_of(image.id.as_str()) {
            // An image that was removed and is still held is one again.
            self.layout.discard(&self.layout.held(hex))?;
        }
        state.insert(image.clone(), record, true);
        self.show(&state);
        Ok(image)
    }
}

fn check_layers(image_id: &str, config: &ImageConfiguration, layers: &[LayerInfo]) -> Result<(), ImageError> {
    let diff_ids = config.rootfs().diff_ids();
    if diff_ids.len() > MAX_LAYERS {
        let image_id = image_id.to_owned();
        return Err(ImageError::TooManyLayers {
            image_id,
            layers: diff_ids.len(),
            limit: MAX_LAYERS,
        });
    }
    let missing = |diff_id: &str| ImageError::MissingLayer {
        image_id: image_id.to_owned(),
        diff_id: diff_id.into(),
    };
    for (at, diff_id) in diff_ids.iter().enumerate() {
        if layers.get(at).is_none_or(|layer| layer.diff_id != *diff_id) {
            return Err(missing(diff_id));
        }
    }
    match layers.get(diff_ids.len()) {
        Some(surplus) => Err(missing(&surplus.diff_id)),
        None => Ok(()),
    }
}
