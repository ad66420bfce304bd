//! What is published, and who needs it. The lock is held for a few renames at most, never for a sync.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use oci_spec::image::ImageConfiguration;

use super::RootAttributes;
use super::index::Index;
use super::layout::Layout;
use super::record::{ImageRecord, LayerMeta};
use crate::image::{Image, ImageUser};
use crate::model::ImageId;

/// A published layer and how many need it.
pub(super) struct Layer {
    pub meta: LayerMeta,
    /// Images that have it, each once.
    images: usize,
    /// Pulls under way that will need it.
    pub pins: usize,
    /// Since when nobody needs it.
    pub orphaned: Option<Instant>,
}

impl Layer {
    pub(super) fn orphan(meta: LayerMeta) -> Self {
        Self {
            meta,
            images: 0,
            pins: 0,
            orphaned: Some(Instant::now()),
        }
    }

    /// Somebody came or went.
    fn settle(&mut self) {
        let needed = self.images > 0 || self.pins > 0;
        self.orphaned = if needed {
            None
        } else {
            self.orphaned.or_else(|| Some(Instant::now()))
        };
    }
}

/// An image and how many hold it.
pub(super) struct Known {
    pub image: Arc<Image>,
    pub record: ImageRecord,
    pub leases: usize,
    /// Whether it is still an image to anybody; else only its leases keep it.
    pub listed: bool,
}

/// Everything that is published.
#[derive(Default)]
pub(super) struct State {
    pub layers: HashMap<String, Layer>,
    pub images: BTreeMap<ImageId, Known>,
    /// Removed images stay, whoever lets go of them: until the daemon has said who lives, and once it goes down. Then leases
    /// go with the daemon's memory and not with their containers, which run on.
    pub keeping: bool,
}

impl State {
    /// Bytes and inodes of all layers.
    pub(super) fn usage(&self) -> (u64, u64) {
        self.layers.values().fold((0, 0), |(bytes, inodes), layer| {
            (bytes + layer.meta.size_bytes, inodes + layer.meta.inodes)
        })
    }

    pub(super) fn index(&self) -> Index {
        Index::new(
            self.images
                .values()
                .filter(|known| known.listed)
                .map(|known| known.image.clone()),
            self.usage(),
        )
    }

    pub(super) fn pin(&mut self, hex: &str) -> Option<&LayerMeta> {
        let layer = self.layers.get_mut(hex)?;
        layer.pins += 1;
        layer.settle();
        Some(&layer.meta)
    }

    /// Whether the layer is an orphan now.
    pub(super) fn unpin(&mut self, hex: &str) -> bool {
        let Some(layer) = self.layers.get_mut(hex) else {
            return false;
        };
        layer.pins -= 1;
        layer.settle();
        layer.orphaned.is_some()
    }

    /// Enters an image, or a new version of it; its leases stay.
    pub(super) fn insert(&mut self, image: Arc<Image>, record: ImageRecord, listed: bool) {
        for hex in needed(&record) {
            if let Some(layer) = self.layers.get_mut(&hex) {
                layer.images += 1;
                layer.settle();
            }
        }
        let id = image.id.clone();
        let old = self.images.insert(
            id.clone(),
            Known {
                image,
                record,
                leases: 0,
                listed,
            },
        );
        if let Some(old) = old {
            self.release(&old.record);
            self.images.get_mut(&id).expect("it was inserted above").leases = old.leases;
        }
    }

    fn release(&mut self, record: &ImageRecord) {
        for hex in needed(record) {
            if let Some(layer) = self.layers.get_mut(&hex) {
                layer.images -= 1;
                layer.settle();
            }
        }
    }

    /// Forgets an image and discards the layers that only it needed.
    pub(super) fn forget(&mut self, image_id: &ImageId, layout: &Layout) {
        let Some(known) = self.images.remove(image_id) else {
            return;
        };
        self.release(&known.record);
        let gone = needed(&known.record);
        self.discard_orphans(layout, |hex, _| gone.contains(hex));
    }

    /// Discards the orphans that `which` names.
    pub(super) fn discard_orphans(&mut self, layout: &Layout, which: impl Fn(&str, Instant) -> bool) {
        self.layers.retain(|hex, layer| {
            if !layer.orphaned.is_some_and(|since| which(hex, since)) {
                return true;
            }
            match layout.discard(&layout.layer(hex)) {
                Ok(()) => false,
                // Still there, so still counted; the next sweep tries again.
                Err(error) => {
                    tracing::warn!(layer = %hex, %error, "cannot remove an unneeded layer");
                    true
                }
            }
        });
    }

    /// The image as others see it, from its record and its layers. `None` if a layer is missing.
    pub(super) fn image(
        &self,
        record: &ImageRecord,
        config: ImageConfiguration,
        is_pinned: impl Fn(&str) -> bool,
    ) -> Option<Image> {
        let metas = record
            .layers
            .iter()
            .map(|hex| Some((hex, &self.layers.get(hex)?.meta)))
            .collect::<Option<Vec<_>>>()?;
        let default = RootAttributes {
            mode: 0o755,
            uid: 0,
            gid: 0,
        };
        let user = config
            .config()
            .as_ref()
            .and_then(|config| config.user().as_deref())
            .and_then(ImageUser::parse);
        Some(Image {
            id: ImageId::new(&record.image_id),
            repo_tags: record.repo_tags.clone(),
            repo_digests: record.repo_digests.clone(),
            size_bytes: needed(record)
                .iter()
                .filter_map(|hex| self.layers.get(hex))
                .map(|l| l.meta.size_bytes)
                .sum(),
            user,
            pinned: record
                .repo_tags
                .iter()
                .chain(&record.repo_digests)
                .any(|name| is_pinned(name)),
            layers: config.rootfs().diff_ids().clone(),
            manifest_digest: record.manifest_digest.clone(),
            root: metas.iter().rev().find_map(|(_, meta)| meta.root).unwrap_or(default),
            lower: lower(&metas),
            config,
        })
    }
}

/// What must stay for the image: its lower directories, and the layers that they were made of.
fn needed(record: &ImageRecord) -> HashSet<String> {
    record.layers.iter().chain(&record.sources).cloned().collect()
}

/// Overlay lower directories, top first. overlayfs takes no directory twice: a layer that comes again hides or repeats
/// everything of its lower self, so the lower one goes. Layers without content say nothing.
fn lower(metas: &[(&String, &LayerMeta)]) -> Vec<String> {
    let mut lower: Vec<String> = Vec::new();
    for (hex, meta) in metas.iter().rev() {
        if !lower.contains(hex) && (meta.inodes > 1 || meta.opaque_root) {
            lower.push((*hex).clone());
        }
        if meta.opaque_root {
            break;
        }
    }
    if lower.is_empty()
        && let Some((hex, _)) = metas.last()
    {
        lower.push((*hex).clone());
    }
    lower
}
