//! Reading back what is there.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use tokio::sync::Notify;

use super::layout::Layout;
use super::record::{self, ImageRecord, LayerMeta};
use super::state::{Layer, State};
use super::{Store, glob};
use crate::image::{ImageConfig, ImageError};
use crate::model::is_well_formed;

impl Store {
    /// Opens the store below `config.dir`: reads the records, and discards what was not published or is damaged.
    pub fn open(config: &ImageConfig) -> Result<Arc<Self>, ImageError> {
        let layout = Layout::create(&config.dir)?;
        let mut state = State {
            keeping: true,
            ..State::default()
        };
        for hex in published(&layout, &layout.layers())? {
            let dir = layout.layer(&hex);
            match LayerMeta::read(&dir) {
                Ok(meta) => drop(state.layers.insert(hex, Layer::orphan(meta))),
                Err(error) => {
                    tracing::warn!(layer = %hex, %error, "damaged layer is removed");
                    layout.discard(&dir)?;
                }
            }
        }
        let is_pinned = |name: &str| config.pinned.iter().any(|pattern| glob::matches(pattern, name));
        let mut tags = HashSet::new();
        for (parent, listed) in [(layout.manifests(), true), (layout.held_images(), false)] {
            for hex in published(&layout, &parent)? {
                let dir = parent.join(&hex);
                if let Err(error) = read_image(&mut state, &dir, &hex, listed, &mut tags, is_pinned) {
                    tracing::warn!(image = %hex, %error, "damaged image is removed; its next pull brings it back");
                    layout.discard(&dir)?;
                }
            }
        }
        // A power cut may have taken any part of a layer that no image has been recorded with.
        if !record::same_boot(layout.root(), &config.boot_id)? {
            state.discard_orphans(&layout, |_, _| true);
        }
        layout.empty_trash();
        let index = ArcSwap::from_pointee(state.index());
        let store = Arc::new_cyclic(|this| Self {
            this: this.clone(),
            layout,
            pinned: config.pinned.clone(),
            orphan_grace: config.orphan_grace,
            state: Mutex::new(state),
            index,
            commit: Mutex::new(()),
            orphaned: Arc::new(Notify::new()),
        });
        store.orphaned.notify_one();
        Ok(store)
    }
}

/// The names in `dir` that are digests; everything else was never published and goes.
fn published(layout: &Layout, dir: &Path) -> Result<Vec<String>, ImageError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(ImageError::io("read", dir))? {
        let entry = entry.map_err(ImageError::io("read", dir))?;
        match entry.file_name().into_string() {
            Ok(name) if is_well_formed(&name) => names.push(name),
            _ => layout.discard(&entry.path())?,
        }
    }
    names.sort();
    Ok(names)
}

/// Why a recorded image is not usable.
#[derive(Debug, thiserror::Error)]
enum Damage {
    #[error("record: {0}")]
    Record(#[from] std::io::Error),
    #[error("record is of image {0}")]
    Name(String),
    #[error("a layer is missing")]
    Layer,
    #[error("it is recorded twice")]
    Twice,
}

fn read_image(
    state: &mut State,
    dir: &Path,
    hex: &str,
    listed: bool,
    tags: &mut HashSet<String>,
    is_pinned: impl Fn(&str) -> bool,
) -> Result<(), Damage> {
    let (mut record, config): (ImageRecord, _) = ImageRecord::read(dir)?;
    if record.image_id != super::digest_of(hex) {
        return Err(Damage::Name(record.image_id));
    }
    if listed {
        record.repo_tags.retain(|tag| tags.insert(tag.clone()));
    }
    let image = state.image(&record, config, is_pinned).ok_or(Damage::Layer)?;
    if state.images.contains_key(&image.id) {
        return Err(Damage::Twice);
    }
    state.insert(Arc::new(image), record, listed);
    Ok(())
}
