//! Images: pulled from registries, kept as unpacked layers, listed, removed.
//!
//! [`Images`] is what other rooms hold. [`store`] keeps layers and image records on disk.

pub mod digest;
mod error;
mod fs_info;
mod glob;
mod list;
pub mod pull;
pub mod reference;
pub mod registry;
mod remove;
mod status;
pub mod store;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use oci_spec::image::ImageConfiguration;

pub use self::error::{ErrorKind, ImageError};
pub use self::fs_info::FsUsage;
pub use self::pull::{PullError, PullRequest};
use self::registry::RegistryConfig;
pub use self::status::Documents;
pub use self::store::{Compression, LayerError, LayerInfo, Lease, Limits, NewImage, Store};
use crate::model::ImageId;

/// Settings of the image room.
#[derive(Clone, Debug)]
pub struct ImageConfig {
    /// Where images live; made with mode 0700 if missing. Everything below it belongs to this room.
    pub dir: PathBuf,
    /// Globs (`*`, `?`) over normalised tags and digests: images that the kubelet must not collect.
    pub pinned: Vec<String>,
    /// The machine's boot id: layers of a pull that never ended do not outlive a boot.
    pub boot_id: String,
    /// What a layer may cost at most.
    pub limits: Limits,
    /// How long layers of a pull that never ended are kept for its retry.
    pub orphan_grace: Duration,
    /// How registries are asked.
    pub registry: RegistryConfig,
    /// How many layers of one pull are fetched at the same time.
    pub layers_at_once: usize,
}

impl ImageConfig {
    /// The defaults, below `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            pinned: Vec::new(),
            boot_id: String::new(),
            limits: Limits::default(),
            orphan_grace: Duration::from_secs(600),
            registry: RegistryConfig::default(),
            layers_at_once: 6,
        }
    }
}

/// The node's images.
pub struct Images {
    store: Arc<Store>,
    config: ImageConfig,
    puller: Arc<pull::Puller>,
}

impl Images {
    /// Opens the images below `config.dir`: reads the records, removes what was never finished.
    ///
    /// # Errors
    /// When the directory cannot be made or read. A damaged image is left out and logged, not an error.
    pub async fn open(config: ImageConfig) -> Result<Arc<Self>, ImageError> {
        let settings = config.clone();
        let store = blocking("open images", move || Store::open(&settings)).await?;
        tokio::spawn(Store::keep_swept(Arc::downgrade(&store)));
        let puller = pull::Puller::new(store.clone(), config.clone());
        Ok(Arc::new(Self { store, config, puller }))
    }

    /// The settings it was opened with.
    pub fn config(&self) -> &ImageConfig {
        &self.config
    }

    /// The layers and records below.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Keeps the image's layers until the lease is dropped, even if the image is removed meanwhile. `None` if the
    /// image is unknown. A container takes one; after a restart of the daemon it takes it again, before
    /// [`Images::settle`].
    pub fn hold(&self, image_id: &ImageId) -> Option<Lease> {
        self.store.hold(image_id)
    }

    /// Says that all containers that survived a restart have taken their leases again: what nobody holds and no image
    /// needs is removed from now on.
    pub async fn settle(&self) -> Result<(), ImageError> {
        let store = self.store.clone();
        blocking("settle images", move || store.settle()).await
    }

    /// Says that the daemon goes down and containers run on: nothing that they need is removed from now on.
    pub fn keep(&self) {
        self.store.keep();
    }

    /// The overlay lower directories of `image`, top first.
    pub fn layers(&self, image: &Image) -> Vec<PathBuf> {
        self.store.lower_dirs(image)
    }
}

/// Runs file work where it may block.
async fn blocking<T: Send + 'static>(
    op: &'static str,
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|source| ImageError::Interrupted { op, source })?
}

/// The user an image's processes run as by default (the part of `config.User` before the colon).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageUser {
    /// A number.
    Uid(i64),
    /// A name of the image's own passwd file.
    Name(String),
}

impl ImageUser {
    /// Reads `config.User`: `uid`, `uid:gid`, `name`, `name:group`. `None` if no user is named.
    pub fn parse(user: &str) -> Option<Self> {
        let user = user.split(':').next().unwrap_or_default();
        if user.is_empty() {
            return None;
        }
        // A sign is no part of a number here: passwd(5) takes names such as "+1".
        match user.parse::<u32>() {
            Ok(uid) if user.bytes().all(|b| b.is_ascii_digit()) => Some(Self::Uid(i64::from(uid))),
            _ => Some(Self::Name(user.to_owned())),
        }
    }
}

/// An image, as it was when it was looked up.
#[derive(Clone, Debug)]
pub struct Image {
    /// `sha256:` and the digest of the configuration.
    pub id: ImageId,
    /// Normalised, sorted: `docker.io/library/busybox:1.36`.
    pub repo_tags: Vec<String>,
    /// Normalised, sorted: `docker.io/library/busybox@sha256:...`.
    pub repo_digests: Vec<String>,
    /// What its layers take on disk, in bytes; layers that it shares with other images count in full.
    pub size_bytes: u64,
    /// The configuration.
    pub config: ImageConfiguration,
    /// Who its processes run as by default.
    pub user: Option<ImageUser>,
    /// Whether the kubelet must not collect it.
    pub pinned: bool,
    /// The layers' digests (`sha256:...`, of the uncompressed archives), bottom first.
    pub layers: Vec<String>,
    /// Digest of the manifest that was pulled last for it.
    pub manifest_digest: String,
    /// Mode, owner and group of the root directory, for the container's upper directory (which shows as `/`).
    pub root: store::RootAttributes,
    /// Directories of `layers/`, top first.
    lower: Vec<String>,
}
