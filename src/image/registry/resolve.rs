//! From a reference to verified manifest and configuration.

use reqwest::header::{CONTENT_TYPE, HeaderMap};
use reqwest::{Method, Url};

use super::error::{RegistryError, shown_url};
use super::hash::digest_of;
use super::manifest::{self, Manifest};
use super::platform::Platform;
use super::request::{Ask, Endpoint, body};
use super::session::{Capability, Session};
use crate::image::digest::{Algorithm, Digest};

/// What the specification asks clients to take at least (distribution-spec, "Pushing Manifests").
const MANIFEST_LIMIT: u64 = 4 * 1024 * 1024;
const CONFIG_LIMIT: u64 = 4 * 1024 * 1024;
/// An index may lead to an index, but not forever.
const INDEX_DEPTH: usize = 3;

/// An image at a registry; everything but its layers is here and verified.
#[derive(Debug)]
pub struct Resolved {
    /// Of what the reference names: an index, or the manifest itself.
    pub digest: Digest,
    pub manifest_digest: Digest,
    pub manifest: Vec<u8>,
    /// The image's id.
    pub config_digest: Digest,
    pub config: Vec<u8>,
    /// Bottom first.
    pub layers: Vec<RemoteLayer>,
}

/// A layer to be fetched.
#[derive(Debug, Clone)]
pub struct RemoteLayer {
    /// Of the blob as it is in the registry.
    pub digest: Digest,
    /// Of the blob, in bytes.
    pub size: u64,
    /// What its manifest says it is.
    pub media_type: String,
    /// Of the archive within.
    pub diff_id: Digest,
}

struct Document {
    bytes: Vec<u8>,
    content_type: String,
    digest: Digest,
}

impl Session {
    /// Asks what the reference is now, without its content; this does not count as a pull at registries that limit
    /// pulls. `None` if no host answers that.
    ///
    /// # Errors
    /// When the registry refuses the credentials or is out of reach.
    pub async fn head(&self) -> Result<Option<Digest>, RegistryError> {
        let mut rounds = self.rounds(self.capability(), &[])?;
        loop {
            let endpoint = rounds.endpoint();
            let url = self.manifest_url(endpoint, &self.name());
            let ask = Ask {
                op: "resolve",
                method: Method::HEAD,
                url,
                accept: Some(manifest::ACCEPT),
                from: 0,
            };
            match endpoint.send(&self.client, &ask).await {
                Ok(response) => return Ok(content_digest(response.headers())),
                // Some registries have no HEAD; the content itself will tell.
                Err(RegistryError::Status {
                    status: 400 | 405 | 501,
                    ..
                }) => return Ok(None),
                Err(error) => rounds.failed(error).await?,
            }
        }
    }

    /// Fetches manifest and configuration of the image for `platform`.
    pub async fn resolve(&self, platform: &Platform) -> Result<Resolved, RegistryError> {
        let mut document = self
            .manifest(&self.name(), self.reference.digest(), None, self.capability())
            .await?;
        let digest = document.digest.clone();
        for _ in 0..=INDEX_DEPTH {
            match Manifest::parse(&document.bytes, &document.content_type, &document.digest)? {
                Manifest::Index(entries) => {
                    let entry = manifest::choose(&entries, platform, &document.digest)?;
                    let next = entry.digest(&document.digest)?;
                    let size = Some(entry.size);
                    document = self
                        .manifest(next.as_str(), Some(&next), size, Capability::Pull)
                        .await?;
                }
                Manifest::Image { config, layers } => {
                    return self.image(platform, digest, document, &config, &layers).await;
                }
            }
        }
        Err(RegistryError::Unsupported {
            digest,
            why: format!("indexes more than {INDEX_DEPTH} deep"),
        })
    }

    async fn image(
        &self,
        platform: &Platform,
        digest: Digest,
        document: Document,
        config: &manifest::Descriptor,
        layers: &[manifest::Descriptor],
    ) -> Result<Resolved, RegistryError> {
        let manifest_digest = document.digest;
        let config_digest = config.digest(&manifest_digest)?;
        let bytes = self.config(&config_digest, config.size).await?;
        let diff_ids = manifest::diff_ids(&bytes, &config_digest, layers.len(), platform)?;
        let layers = layers
            .iter()
            .zip(diff_ids)
            .map(|(layer, diff_id)| {
                Ok(RemoteLayer {
                    digest: layer.digest(&manifest_digest)?,
                    size: layer.size,
                    media_type: layer.media_type.clone(),
                    diff_id,
                })
            })
            .collect::<Result<_, RegistryError>>()?;
        Ok(Resolved {
            digest,
            manifest_digest,
            manifest: document.bytes,
            config_digest,
            config: bytes,
            layers,
        })
    }

    async fn manifest(
        &self,
        name: &str,
        expected: Option<&Digest>,
        size: Option<u64>,
        capability: Capability,
    ) -> Result<Document, RegistryError> {
        let mut rounds = self.rounds(capability, &[])?;
        loop {
            let endpoint = rounds.endpoint();
            let url = self.manifest_url(endpoint, name);
            let ask = Ask {
                op: "get manifest",
                method: Method::GET,
                url,
                accept: Some(manifest::ACCEPT),
                from: 0,
            };
            match self.document(endpoint, &ask, expected, size, MANIFEST_LIMIT).await {
                Ok(document) => return Ok(document),
                Err(error) => rounds.failed(error).await?,
            }
        }
    }

    async fn config(&self, digest: &Digest, size: u64) -> Result<Vec<u8>, RegistryError> {
        let mut rounds = self.rounds(Capability::Pull, &[])?;
        loop {
            let endpoint = rounds.endpoint();
            let url = self.blob_url(endpoint, digest);
            let ask = Ask {
                op: "get configuration",
                method: Method::GET,
                url,
                accept: None,
                from: 0,
            };
            match self
                .document(endpoint, &ask, Some(digest), Some(size), CONFIG_LIMIT)
                .await
            {
                Ok(document) => return Ok(document.bytes),
                Err(error) => rounds.failed(error).await?,
            }
        }
    }

    /// Fetches something small. Its digest is computed here, whatever the host says of it.
    async fn document(
        &self,
        endpoint: &Endpoint,
        ask: &Ask,
        expected: Option<&Digest>,
        size: Option<u64>,
        limit: u64,
    ) -> Result<Document, RegistryError> {
        if size.is_some_and(|size| size > limit) {
            return Err(RegistryError::TooLarge {
                op: ask.op,
                url: shown_url(&ask.url),
                limit,
            });
        }
        let response = endpoint.send(&self.client, ask).await?;
        let announced = content_digest(response.headers());
        let content_type = response
            .headers()
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok());
        let content_type = content_type.unwrap_or_default().to_owned();
        let bytes = body(&self.client, ask.op, &ask.url, response, limit).await?;
        if let Some(expected) = size.filter(|size| *size != bytes.len() as u64) {
            let (url, actual) = (shown_url(&ask.url), bytes.len() as u64);
            return Err(RegistryError::LengthMismatch {
                op: ask.op,
                url,
                expected,
                actual,
            });
        }
        // By tag, what the host says it is must at least be true: it guards against a cut on the way.
        let expected = expected.or(announced.as_ref());
        let actual = digest_of(expected.map_or(Algorithm::Sha256, Digest::algorithm), &bytes);
        match expected {
            Some(expected) if *expected != actual => Err(RegistryError::DigestMismatch {
                op: ask.op,
                url: shown_url(&ask.url),
                expected: expected.clone(),
                actual,
            }),
            _ => Ok(Document {
                bytes,
                content_type,
                digest: actual,
            }),
        }
    }

    /// A digest may come from any host that has content; a tag only from those that may say what tags are.
    fn capability(&self) -> Capability {
        match self.reference.digest() {
            Some(_) => Capability::Pull,
            None => Capability::Resolve,
        }
    }

    /// What the protocol calls `<reference>`.
    fn name(&self) -> String {
        match (self.reference.digest(), self.reference.tag()) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.to_owned(),
            (None, None) => unreachable!("a reference has a tag or a digest"),
        }
    }

    fn manifest_url(&self, endpoint: &Endpoint, name: &str) -> Url {
        self.url(endpoint, &format!("manifests/{name}"))
    }

    pub(super) fn blob_url(&self, endpoint: &Endpoint, digest: &Digest) -> Url {
        self.url(endpoint, &format!("blobs/{digest}"))
    }

    fn url(&self, endpoint: &Endpoint, rest: &str) -> Url {
        let base = &endpoint.host.base;
        let mut url = base.clone();
        url.set_path(&format!(
            "{}/{}/{rest}",
            base.path().trim_end_matches('/'),
            self.reference.path()
        ));
        if endpoint.host.is_mirror_of(self.reference.domain()) {
            url.query_pairs_mut().append_pair("ns", self.reference.domain());
        }
        url
    }
}

fn content_digest(headers: &HeaderMap) -> Option<Digest> {
    headers.get("docker-content-digest")?.to_str().ok()?.parse().ok()
}
