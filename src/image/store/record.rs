//! What is written beside layers and images, and how it is read back.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;

use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::RootAttributes;
use super::layout::Scratch;
use super::unpack::Unpacked;
use crate::image::{Documents, ImageError};

/// The form of both records; a record of another version is left out.
const VERSION: u32 = 1;

/// The most bytes that a record, a configuration or a manifest may have.
const MAX_BYTES: u64 = 16 << 20;

const LAYER_META: &str = "meta.json";
const IMPLICIT: &str = "implicit";
const IMAGE_RECORD: &str = "record.json";
const CONFIG: &str = "config.json";
const MANIFEST: &str = "manifest.json";
const BOOT: &str = "boot_id";

/// A layer's record. It is written into the layer before the layer is published.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct LayerMeta {
    version: u32,
    pub diff_id: String,
    pub size_bytes: u64,
    pub inodes: u64,
    /// Whether it hides all layers below.
    pub opaque_root: bool,
    /// What the archive says of the root directory.
    pub root: Option<RootAttributes>,
    /// How many directories have no entry of their own; their names are in the file beside.
    pub implicit: usize,
}

impl LayerMeta {
    pub(super) fn new(diff_id: &str, unpacked: &Unpacked) -> Self {
        Self {
            version: VERSION,
            diff_id: diff_id.to_owned(),
            size_bytes: unpacked.size_bytes,
            inodes: unpacked.inodes,
            opaque_root: unpacked.opaque_root,
            root: unpacked.root,
            implicit: unpacked.implicit.len(),
        }
    }

    /// Writes it, and the names of the implicit directories.
    pub(super) fn write(&self, scratch: &Scratch, implicit: &[Vec<u8>]) -> Result<(), ImageError> {
        let names = scratch.path().join(IMPLICIT);
        if !implicit.is_empty() {
            write_new(&names, &implicit.join(&0))
                .map(drop)
                .map_err(ImageError::io("write", &names))?;
        }
        let path = scratch.path().join(LAYER_META);
        write_new(&path, &to_json(self))
            .map(drop)
            .map_err(ImageError::io("write", &path))
    }

    /// Reads the record of the layer in `dir`.
    pub(super) fn read(dir: &Path) -> io::Result<Self> {
        let meta: Self = serde_json::from_slice(&read_capped(&dir.join(LAYER_META))?)?;
        if meta.version == VERSION {
            Ok(meta)
        } else {
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    /// The names of the implicit directories of the layer in `dir`.
    pub(super) fn read_implicit(dir: &Path) -> io::Result<Vec<Vec<u8>>> {
        let names = fs::read(dir.join(IMPLICIT))?;
        Ok(names.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect())
    }
}

/// An image's record.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct ImageRecord {
    version: u32,
    pub image_id: String,
    pub manifest_digest: String,
    pub repo_tags: Vec<String>,
    pub repo_digests: Vec<String>,
    /// Directories of `layers/`, bottom first; for each diff id the layer itself or what was made of it.
    pub layers: Vec<String>,
    /// Layers that some of those were made of.
    pub sources: Vec<String>,
}

impl ImageRecord {
    /// A record without references.
    pub(super) fn new(image_id: String, manifest_digest: String, layers: Vec<String>, sources: Vec<String>) -> Self {
        let (repo_tags, repo_digests) = (Vec::new(), Vec::new());
        Self {
            version: VERSION,
            image_id,
            manifest_digest,
            repo_tags,
            repo_digests,
            layers,
            sources,
        }
    }

    /// Adds references that are not there yet.
    pub(super) fn add(&mut self, repo_tag: Option<String>, repo_digest: Option<String>) {
        for (names, name) in [(&mut self.repo_tags, repo_tag), (&mut self.repo_digests, repo_digest)] {
            names.extend(name);
            names.sort();
            names.dedup();
        }
    }

    /// Reads the record of the image in `dir` with its configuration, which must have the digest it is named by.
    pub(super) fn read(dir: &Path) -> io::Result<(Self, ImageConfiguration)> {
        let record: Self = serde_json::from_slice(&read_capped(&dir.join(IMAGE_RECORD))?)?;
        if record.version != VERSION {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let config = read_capped(&dir.join(CONFIG))?;
        if record.image_id != format!("sha256:{:x}", Sha256::digest(&config)) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "configuration has another digest",
            ));
        }
        let config = ImageConfiguration::from_reader(&config[..]).map_err(io::Error::other)?;
        Ok((record, config))
    }

    /// Writes record, configuration and manifest into a new directory and syncs them.
    pub(super) fn write_all(&self, dir: &Path, config: &[u8], manifest: &[u8]) -> Result<(), ImageError> {
        for (name, bytes) in [
            (CONFIG, config),
            (MANIFEST, manifest),
            (IMAGE_RECORD, &to_json(self)[..]),
        ] {
            let path = dir.join(name);
            write_new(&path, bytes)
                .and_then(|file| file.sync_all())
                .map_err(ImageError::io("write", &path))?;
        }
        sync_dir(dir)
    }

    /// Replaces the record in `dir`.
    pub(super) fn replace(&self, dir: &Path) -> Result<(), ImageError> {
        replace(dir, IMAGE_RECORD, &to_json(self))
    }
}

/// Replaces the manifest of the image in `dir`.
pub(super) fn replace_manifest(dir: &Path, manifest: &[u8]) -> Result<(), ImageError> {
    replace(dir, MANIFEST, manifest)
}

/// Configuration and manifest of the image in `dir`.
pub(super) fn read_documents(dir: &Path) -> io::Result<Documents> {
    Ok(Documents {
        config: read_capped(&dir.join(CONFIG))?,
        manifest: read_capped(&dir.join(MANIFEST))?,
    })
}

/// Makes the names in `dir` last.
pub(super) fn sync_dir(dir: &Path) -> Result<(), ImageError> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(ImageError::io("sync", dir))
}

/// Brings to the disk whatever the file system of `dir` has not written yet.
pub(super) fn sync_file_system(dir: &Path) -> Result<(), ImageError> {
    File::open(dir)
        .and_then(|dir| Ok(rustix::fs::syncfs(&dir)?))
        .map_err(ImageError::io("sync the file system of", dir))
}

/// Whether the store at `root` was last opened since this boot, `boot_id`; from now on it was.
pub(super) fn same_boot(root: &Path, boot_id: &str) -> Result<bool, ImageError> {
    let path = root.join(BOOT);
    let same = read_capped(&path).is_ok_and(|last| last == boot_id.as_bytes());
    if !same {
        // Not synced: after a power cut it is old or empty, which both mean another boot.
        fs::write(&path, boot_id).map_err(ImageError::io("write", &path))?;
    }
    Ok(same)
}

fn to_json<T: Serialize>(record: &T) -> Vec<u8> {
    serde_json::to_vec(record).expect("strings and numbers are always JSON")
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<File> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all(bytes)?;
    Ok(file)
}

/// Temporary file, sync, rename, sync.
fn replace(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), ImageError> {
    let path = dir.join(name);
    let new = dir.join(format!("{name}.new"));
    let failed = |error| ImageError::io("write", &path)(error);
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let written = write_new(&new, bytes)
        .and_then(|file| file.sync_all())
        .and_then(|()| fs::rename(&new, &path));
    if let Err(error) = written {
        // What is left would only take space; the next replacement removes it, too.
        let _ = fs::remove_file(&new);
        return Err(failed(error));
    }
    sync_dir(dir)
}

fn read_capped(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        Err(io::ErrorKind::FileTooLarge.into())
    } else {
        Ok(bytes)
    }
}
