//! Images made on the spot, and a registry that serves them honestly.

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crisp::image::{ImageConfig, ImageError, Images, PullRequest};
use crisp::model::ImageId;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::server::{Reply, Request};

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

pub fn sha256(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// An archive with one file.
pub fn archive(name: &str, content: &[u8]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    builder.append_data(&mut header, name, content).unwrap();
    builder.into_inner().unwrap()
}

/// Bytes that do not compress.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[derive(Clone)]
pub struct Layer {
    pub media_type: &'static str,
    pub archive: Vec<u8>,
    pub blob: Vec<u8>,
}

impl Layer {
    /// A gzipped layer with one file of noise.
    pub fn new(name: &str, length: usize) -> Self {
        let archive = archive(
            name,
            &noise(length, name.bytes().map(u64::from).sum::<u64>() + length as u64),
        );
        let blob = gzip(&archive);
        Self {
            media_type: OCI_LAYER,
            archive,
            blob,
        }
    }

    pub fn digest(&self) -> String {
        sha256(&self.blob)
    }
}

pub fn config_of(layers: &[Layer]) -> Value {
    let diff_ids: Vec<_> = layers.iter().map(|layer| sha256(&layer.archive)).collect();
    let architecture = if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    };
    json!({
        "os": "linux", "architecture": architecture, "config": {"Cmd": ["/bin/true"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    })
}

pub fn manifest_of(config: &[u8], layers: &[Layer]) -> Value {
    let layers: Vec<_> = layers
        .iter()
        .map(|layer| json!({"mediaType": layer.media_type, "digest": layer.digest(), "size": layer.blob.len()}))
        .collect();
    json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": sha256(config), "size": config.len(),
        },
        "layers": layers,
    })
}

/// What a registry holds, by the path behind `/v2`.
#[derive(Clone, Default)]
pub struct Content {
    entries: HashMap<String, (String, Vec<u8>)>,
}

impl Content {
    /// One image under one tag.
    pub fn image(repository: &str, tag: &str, layers: &[Layer]) -> Self {
        let mut content = Self::default();
        content.add_image(repository, tag, layers);
        content
    }

    /// Returns the manifest's digest.
    pub fn add_image(&mut self, repository: &str, tag: &str, layers: &[Layer]) -> String {
        let config = config_of(layers).to_string().into_bytes();
        for layer in layers {
            self.add_blob(repository, layer.blob.clone());
        }
        self.add_blob(repository, config.clone());
        self.add_manifest(repository, tag, OCI_MANIFEST, &manifest_of(&config, layers))
    }

    pub fn add_manifest(&mut self, repository: &str, tag: &str, media_type: &str, manifest: &Value) -> String {
        let bytes = manifest.to_string().into_bytes();
        let digest = sha256(&bytes);
        for name in [tag, &digest] {
            let path = format!("/v2/{repository}/manifests/{name}");
            self.entries.insert(path, (media_type.to_owned(), bytes.clone()));
        }
        digest
    }

    pub fn add_blob(&mut self, repository: &str, bytes: Vec<u8>) {
        let path = format!("/v2/{repository}/blobs/{}", sha256(&bytes));
        self.entries
            .insert(path, ("application/octet-stream".to_owned(), bytes));
    }

    pub fn get(&self, path: &str) -> Option<&[u8]> {
        self.entries.get(path).map(|(_, bytes)| bytes.as_slice())
    }

    /// What an honest registry answers, ranges included.
    pub fn reply(&self, request: &Request) -> Reply {
        let Some((media_type, bytes)) = self.entries.get(&request.path) else {
            return Reply::new(
                404,
                r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#,
            );
        };
        let reply = match request.range_start() {
            Some(start) => Reply::new(206, &bytes[start..]).with(
                "content-range",
                format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len()),
            ),
            None => Reply::new(200, bytes.as_slice()),
        };
        reply
            .with("content-type", media_type)
            .with("docker-content-digest", sha256(bytes))
    }
}

/// An empty image room.
pub struct Room {
    pub dir: tempfile::TempDir,
    pub images: Arc<Images>,
}

impl Room {
    pub async fn new() -> Self {
        Self::with(|_| {}).await
    }

    /// Impatient, so that the tests need not be patient.
    pub async fn with(change: impl FnOnce(&mut ImageConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = ImageConfig::new(dir.path().join("images"));
        config.registry.hosts_dirs = vec![dir.path().join("certs.d")];
        config.registry.backoff = Duration::from_millis(20);
        config.registry.stall_timeout = Duration::from_millis(600);
        config.registry.attempts = 3;
        change(&mut config);
        let images = Images::open(config).await.unwrap();
        Self { dir, images }
    }

    pub async fn pull(&self, reference: &str) -> Result<ImageId, ImageError> {
        self.images
            .pull(PullRequest {
                reference: reference.to_owned(),
                auth: None,
            })
            .await
    }

    /// Writes a `hosts.toml`.
    pub fn configure(&self, registry: &str, text: &str) {
        let directory = self.dir.path().join("certs.d").join(registry);
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("hosts.toml"), text).unwrap();
    }

    /// The content of `name` in the image, from its top layer that has it.
    pub fn file(&self, image_id: &ImageId, name: &str) -> Option<Vec<u8>> {
        let image = self.images.find(image_id.as_str())?;
        self.images
            .layers(&image)
            .iter()
            .find_map(|layer| std::fs::read(layer.join(name)).ok())
    }

    /// Everything below the room's directory, for looking for what was left behind.
    pub fn files(&self) -> Vec<String> {
        fn walk(directory: &Path, found: &mut Vec<String>) {
            for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
                found.push(entry.path().display().to_string());
                walk(&entry.path(), found);
            }
        }
        let mut found = Vec::new();
        walk(&self.dir.path().join("images"), &mut found);
        found.sort();
        found
    }
}

/// The whole chain of an error, as the API prints it.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}
