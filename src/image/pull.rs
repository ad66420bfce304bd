//! Pulling an image: resolve, fetch and unpack the layers that are missing, record.
//!
//! Pulls of one reference with the same credentials are one pull, and a layer that several images of one registry want
//! is fetched once. Who waits keeps the work going: when the last one goes away it stops, and what was half done is
//! removed.

mod flight;
mod layer;
mod progress;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt};
use tokio::time::MissedTickBehavior;

use self::flight::Flights;
use self::layer::LayerKey;
use self::progress::Progress;
use super::digest::Digest;
use super::reference::Reference;
use super::registry::{Auth, Client, Platform, RegistryError, RemoteLayer, Resolved, Session};
use super::{ErrorKind, ImageConfig, ImageError, Images, LayerInfo, NewImage, Store};
use crate::model::ImageId;

/// How often a running pull says how far it is.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
/// Left free for records and for whatever else writes there.
const SPACE_MARGIN: u64 = 16 * 1024 * 1024;

/// What to pull, and as whom.
#[derive(Clone, Debug)]
pub struct PullRequest {
    /// In any form that [`Reference::parse`] takes.
    pub reference: String,
    /// `None` for anybody.
    pub auth: Option<Auth>,
}

/// Why a pull failed.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The registry did not say what the reference is.
    #[error("resolve {reference}")]
    Resolve {
        reference: Reference,
        source: RegistryError,
    },
    /// A layer could not be fetched.
    #[error("fetch layer {digest} of {reference}")]
    Fetch {
        reference: Reference,
        digest: Digest,
        source: RegistryError,
    },
    /// A layer was fetched and could not be unpacked.
    #[error("unpack layer {digest} of {reference}")]
    Unpack {
        reference: Reference,
        digest: Digest,
        source: Box<ImageError>,
    },
    /// The layers would not fit.
    #[error("pull {reference}: its missing layers have {needed} bytes and only {free} bytes are free")]
    NoSpace {
        reference: Reference,
        needed: u64,
        free: u64,
    },
    /// The image could not be looked up or recorded.
    #[error("record {reference}")]
    Record {
        reference: Reference,
        source: Box<ImageError>,
    },
    /// A task was lost, by a panic or because the runtime is going down.
    #[error("{op} was interrupted")]
    Interrupted {
        op: &'static str,
        source: tokio::task::JoinError,
    },
}

impl PullError {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Resolve { source, .. } | Self::Fetch { source, .. } => source.kind(),
            Self::Unpack { source, .. } | Self::Record { source, .. } => source.kind(),
            Self::NoSpace { .. } => ErrorKind::Exhausted,
            Self::Interrupted { .. } => ErrorKind::Internal,
        }
    }
}

/// A pull's identity: another one's credentials may lead elsewhere.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    reference: Reference,
    auth: Option<Auth>,
}

/// What all pulls share.
pub(super) struct Puller {
    client: Arc<Client>,
    store: Arc<Store>,
    config: ImageConfig,
    images: Flights<Key, ImageId>,
    layers: Flights<LayerKey, LayerInfo>,
}

impl fmt::Debug for Puller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Puller").finish_non_exhaustive()
    }
}

impl Images {
    /// Pulls the image that the request names, unless it is here and the registry still has the same for the
    /// reference; the registry is asked in any case, so that its refusal of the credentials counts. Dropping the
    /// future gives the pull up, unless somebody else waits for it too.
    ///
    /// # Errors
    /// [`ImageError::Reference`] or [`ImageError::Pull`].
    pub async fn pull(&self, request: PullRequest) -> Result<ImageId, ImageError> {
        let reference = Reference::parse(&request.reference)?;
        let puller = self.puller.clone();
        let key = Key {
            reference: reference.clone(),
            auth: request.auth.clone(),
        };
        let joined = self.puller.images.join(key, |_| puller.pull(reference, request.auth));
        Ok(joined.outcome.await?)
    }
}

impl Puller {
    pub(super) fn new(store: Arc<Store>, config: ImageConfig) -> Arc<Self> {
        Arc::new(Self {
            client: Client::new(config.registry.clone()),
            store,
            config,
            images: Flights::default(),
            layers: Flights::default(),
        })
    }

    async fn pull(self: Arc<Self>, reference: Reference, auth: Option<Auth>) -> Result<ImageId, Arc<PullError>> {
        let begin = Instant::now();
        tracing::info!(%reference, "pull begins");
        let outcome = self.run(&reference, auth.as_ref(), begin).await;
        if let Err(error) = &outcome {
            // The error itself is logged where the request is answered.
            tracing::debug!(%reference, %error, seconds = begin.elapsed().as_secs_f64(), "pull failed");
        }
        outcome
    }

    async fn run(
        self: &Arc<Self>,
        reference: &Reference,
        auth: Option<&Auth>,
        begin: Instant,
    ) -> Result<ImageId, Arc<PullError>> {
        let failed = |source| PullError::Resolve {
            reference: reference.clone(),
            source,
        };
        let session = self.client.session(reference, auth).await.map_err(failed)?;
        if let Some(image_id) = self.unchanged(reference, &session).await.map_err(failed)? {
            tracing::info!(%reference, %image_id, "pulled: nothing has changed");
            return Ok(image_id);
        }
        let resolved = session.resolve(&Platform::host()).await.map_err(failed)?;
        let progress = Progress::new(reference, &resolved.layers);
        tracing::info!(
            %reference,
            digest = %resolved.digest,
            image_id = %resolved.config_digest,
            layers = progress.layers(),
            total_bytes = progress.total_bytes(),
            "resolved"
        );
        let layers = self.fetch_all(reference, &session, &resolved.layers, &progress).await?;
        let image_id = self.record(reference, resolved, layers).await?;
        let seconds = begin.elapsed().as_secs_f64();
        tracing::info!(%reference, %image_id, received_bytes = progress.fetched_bytes(), seconds, "pulled");
        Ok(image_id)
    }

    /// The image that is here for `reference`, if the registry says that it is still what the reference names. What
    /// goes wrong with the question for good is left to the pull proper, whose answers say more.
    async fn unchanged(&self, reference: &Reference, session: &Session) -> Result<Option<ImageId>, RegistryError> {
        let name = match reference.digest() {
            Some(digest) => reference.repo_digest(digest),
            None => reference.to_string(),
        };
        let Some(image) = self.store.snapshot().named(&name).cloned() else {
            return Ok(None);
        };
        let digest = match session.head().await {
            Ok(Some(digest)) => reference.repo_digest(&digest),
            Ok(None) => return Ok(None),
            Err(error) if error.is_transient() => return Err(error),
            Err(_) => return Ok(None),
        };
        Ok(image.repo_digests.contains(&digest).then(|| image.id.clone()))
    }

    /// Fetches what is missing of `layers`, several at once, the largest first. The outcome is in their order.
    async fn fetch_all(
        self: &Arc<Self>,
        reference: &Reference,
        session: &Arc<Session>,
        layers: &[RemoteLayer],
        progress: &Progress,
    ) -> Result<Vec<LayerInfo>, Arc<PullError>> {
        let mut found: HashMap<Digest, LayerInfo> = HashMap::new();
        let mut missing: Vec<RemoteLayer> = Vec::new();
        for layer in layers {
            if found.contains_key(&layer.diff_id) || missing.iter().any(|other| other.diff_id == layer.diff_id) {
                continue;
            }
            match self.store.has_layer(layer.diff_id.as_str()) {
                Some(info) => {
                    progress.was_here(layer);
                    found.insert(layer.diff_id.clone(), info);
                }
                None => missing.push(layer.clone()),
            }
        }
        self.check_space(reference, &missing)?;
        missing.sort_by_key(|layer| std::cmp::Reverse(layer.size));
        let mut fetched = stream::iter(missing)
            .map(|layer| async move {
                let outcome = self.layer(reference, session, &layer, progress).await;
                (layer.diff_id, outcome)
            })
            .buffer_unordered(self.config.layers_at_once.max(1));
        let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + PROGRESS_INTERVAL, PROGRESS_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                layer = fetched.next() => match layer {
                    Some((diff_id, outcome)) => {
                        found.insert(diff_id, outcome?);
                    }
                    None => break,
                },
                _ = ticks.tick() => progress.log(),
            }
        }
        Ok(layers.iter().map(|layer| found[&layer.diff_id].clone()).collect())
    }

    /// A layer takes at least about what its blob has: what does not fit even so is not begun.
    fn check_space(&self, reference: &Reference, missing: &[RemoteLayer]) -> Result<(), PullError> {
        let needed = missing.iter().fold(0u64, |sum, layer| sum.saturating_add(layer.size));
        let free = self.store.free_bytes().map_err(|error| PullError::Record {
            reference: reference.clone(),
            source: Box::new(error),
        })?;
        if needed > 0 && needed.saturating_add(SPACE_MARGIN) > free {
            return Err(PullError::NoSpace {
                reference: reference.clone(),
                needed,
                free,
            });
        }
        Ok(())
    }

    async fn record(
        &self,
        reference: &Reference,
        resolved: Resolved,
        layers: Vec<LayerInfo>,
    ) -> Result<ImageId, PullError> {
        let image = NewImage {
            config_bytes: resolved.config,
            manifest_bytes: resolved.manifest,
            manifest_digest: resolved.digest.to_string(),
            repo_tag: reference.repo_tag(),
            repo_digest: Some(reference.repo_digest(&resolved.digest)),
            layers,
        };
        let store = self.store.clone();
        let recorded = tokio::task::spawn_blocking(move || store.put_image(image))
            .await
            .map_err(|source| PullError::Interrupted {
                op: "record image",
                source,
            })?;
        match recorded {
            Ok(image) => Ok(image.id.clone()),
            Err(error) => Err(PullError::Record {
                reference: reference.clone(),
                source: Box::new(error),
            }),
        }
    }
}
