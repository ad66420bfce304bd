//! Makes images to record.

use std::sync::Arc;

use super::tape::{Tape, digest};
use crate::image::Image;
use crate::image::store::{LayerInfo, NewImage, Store};
use crate::model::ImageId;

pub fn layer(store: &Store, seed: &str) -> LayerInfo {
    let archive = Tape::new().file(format!("file-{seed}"), seed.repeat(3000)).end();
    let compression = super::Compression::None;
    store
        .ingest_layer(
            &digest(&archive),
            compression,
            super::reader(&archive),
            &super::Limits::default(),
        )
        .unwrap()
}

pub fn config(user: &str, layers: &[LayerInfo]) -> Vec<u8> {
    let diff_ids: Vec<_> = layers.iter().map(|layer| &layer.diff_id).collect();
    serde_json::to_vec(&serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": {"User": user}, "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }))
    .unwrap()
}

/// Records an image of these layers; `name` is a tag of Docker Hub's library.
pub fn put(store: &Store, name: &str, user: &str, layers: &[LayerInfo]) -> Arc<Image> {
    store
        .put_image(new(name, user, layers))
        .unwrap_or_else(|e| panic!("{}", super::chain(&e)))
}

pub fn new(name: &str, user: &str, layers: &[LayerInfo]) -> NewImage {
    let manifest = format!("{{\"of\":\"{user}{name}\"}}").into_bytes();
    let manifest_digest = digest(&manifest);
    let repository = name.split(':').next().unwrap();
    NewImage {
        config_bytes: config(user, layers),
        repo_tag: Some(format!("docker.io/library/{name}")),
        repo_digest: Some(format!("docker.io/library/{repository}@{manifest_digest}")),
        manifest_digest,
        manifest_bytes: manifest,
        layers: layers.to_vec(),
    }
}

pub fn found(store: &Store, reference: &str) -> Option<ImageId> {
    store.snapshot().find(reference).unwrap().map(|image| image.id.clone())
}
