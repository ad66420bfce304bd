//! One layer: from the registry's stream into a directory of its own, in one pass.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::progress::Progress;
use super::{PullError, Puller};
use crate::image::digest::Digest;
use crate::image::reference::Reference;
use crate::image::registry::{RegistryError, RemoteLayer, Session, Streamed, Verdict, pipe};
use crate::image::{Compression, ErrorKind, LayerInfo};

/// Which fetch of a layer may be shared: of one blob of one registry. Any image can list the diffID of a layer that others
/// have, by a blob that is something else, or from a registry that never comes to its end. Two fetches that come to the
/// end at once meet in the store.
#[derive(PartialEq, Eq, Hash)]
pub(super) struct LayerKey {
    /// As the reference names it: its mirrors are the administrator's choice.
    registry: String,
    blob: Digest,
    diff_id: Digest,
}

impl LayerKey {
    pub(super) fn new(reference: &Reference, blob: &Digest, diff_id: &Digest) -> Self {
        Self {
            registry: reference.domain().to_owned(),
            blob: blob.clone(),
            diff_id: diff_id.clone(),
        }
    }
}

impl Puller {
    /// Fetches `layer`, or waits for whoever does so already from the same registry. If that one fails, by its
    /// credentials perhaps, tries by our own.
    pub(super) async fn layer(
        self: &Arc<Self>,
        reference: &Reference,
        session: &Arc<Session>,
        layer: &RemoteLayer,
        progress: &Progress,
    ) -> Result<LayerInfo, Arc<PullError>> {
        let begin = Instant::now();
        loop {
            let joined = self
                .layers
                .join(LayerKey::new(reference, &layer.digest, &layer.diff_id), |meter| {
                    self.clone()
                        .fetch(reference.clone(), session.clone(), layer.clone(), meter)
                });
            progress.meter(&layer.diff_id, &joined.meter);
            match joined.outcome.await {
                Ok(info) => {
                    progress.layer_done();
                    let seconds = begin.elapsed().as_secs_f64();
                    tracing::info!(%reference, layer = %layer.digest, bytes = layer.size, seconds, "layer done");
                    return Ok(info);
                }
                Err(error) if joined.is_others => {
                    tracing::debug!(layer = %layer.digest, %error, "another pull could not fetch the layer");
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Streams and unpacks. When a host served something else than the digest says, begins anew at the others.
    async fn fetch(
        self: Arc<Self>,
        reference: Reference,
        session: Arc<Session>,
        layer: RemoteLayer,
        meter: Arc<AtomicU64>,
    ) -> Result<LayerInfo, Arc<PullError>> {
        let mut excluded = Vec::new();
        loop {
            let mut used = Vec::new();
            let error = match self
                .attempt(&reference, &session, &layer, &meter, &excluded, &mut used)
                .await
            {
                Ok(info) => return Ok(info),
                Err(error) => error,
            };
            // What is corrupt although its digest is right is corrupt everywhere.
            let is_worth_it = error.is_of_the_host && error.source.kind() == ErrorKind::Corrupt && !used.is_empty();
            excluded.append(&mut used);
            if !is_worth_it || !session.has_more_than(&excluded) {
                return Err(Arc::new(error.source));
            }
            tracing::warn!(%reference, layer = %layer.digest, error = %error.source, "bad layer, trying other hosts");
            meter.store(0, Ordering::Relaxed);
        }
    }

    async fn attempt(
        &self,
        reference: &Reference,
        session: &Session,
        layer: &RemoteLayer,
        meter: &AtomicU64,
        excluded: &[usize],
        used: &mut Vec<usize>,
    ) -> Result<LayerInfo, Failed> {
        let (mut writer, reader) = pipe(layer.digest.clone(), layer.size);
        let verdict = writer.verdict();
        let (store, limits) = (self.store.clone(), self.config.limits.clone());
        let (diff_id, compression) = (layer.diff_id.to_string(), compression(layer));
        let unpacking =
            tokio::task::spawn_blocking(move || store.ingest_layer(&diff_id, compression, Box::new(reader), &limits));
        let count = |bytes| {
            meter.fetch_add(bytes, Ordering::Relaxed);
        };
        let streamed = session.stream(layer, &mut writer, excluded, used, &count).await;
        match &streamed {
            Ok(Streamed::Whole) => writer.finish(),
            Ok(Streamed::Unread) | Err(_) => drop(writer),
        }
        let unpacked = unpacking.await.map_err(|source| {
            Failed::here(PullError::Interrupted {
                op: "unpack layer",
                source,
            })
        })?;
        let fetch = |source| PullError::Fetch {
            reference: reference.clone(),
            digest: layer.digest.clone(),
            source,
        };
        match (unpacked, streamed, verdict.get()) {
            // Also when the stream failed: then the layer came by another way meanwhile.
            (Ok(info), _, _) => Ok(info),
            (Err(_), Err(error), _) => Err(Failed {
                is_of_the_host: error.is_of_the_host(),
                source: fetch(error),
            }),
            (Err(_), _, Verdict::Wrong(actual)) => Err(Failed {
                is_of_the_host: true,
                source: fetch(RegistryError::DigestMismatch {
                    op: "get layer",
                    url: session.host_of(used.last().copied()),
                    expected: layer.digest.clone(),
                    actual,
                }),
            }),
            (Err(error), _, verdict) => {
                let (reference, digest) = (reference.clone(), layer.digest.clone());
                let source = PullError::Unpack {
                    reference,
                    digest,
                    source: Box::new(error),
                };
                Err(Failed {
                    is_of_the_host: verdict == Verdict::Unfinished,
                    source,
                })
            }
        }
    }
}

struct Failed {
    source: PullError,
    /// Whether another host may have better bytes.
    is_of_the_host: bool,
}

impl Failed {
    fn here(source: PullError) -> Self {
        Self {
            source,
            is_of_the_host: false,
        }
    }
}

fn compression(layer: &RemoteLayer) -> Compression {
    if layer.media_type.ends_with("gzip") {
        Compression::Gzip
    } else if layer.media_type.ends_with("zstd") {
        Compression::Zstd
    } else {
        Compression::None
    }
}
