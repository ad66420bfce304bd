//! What can go wrong with a registry.

use std::path::PathBuf;
use std::time::Duration;

use crate::image::ErrorKind;
use crate::image::digest::Digest;

/// Errors of the registry client. No variant holds a secret: addresses are without query and user part, and the
/// texts of registries are cut and freed of control characters.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The node's registry configuration has mistakes; all of them.
    #[error("registry configuration {}: {}", path.display(), mistakes.join("; "))]
    Config { path: PathBuf, mistakes: Vec<String> },
    /// The registry's name in a reference is not the address of a host.
    #[error("{registry} is not the address of a host")]
    Address { registry: String },
    /// A client cannot be made from the configured certificates.
    #[error("set up TLS for {host}")]
    Tls { host: String, source: reqwest::Error },
    /// The `auth` field of the request is not base64 of `user:password`.
    #[error("credentials for {host}: auth is not base64 of user:password")]
    Credentials { host: String },
    /// No answer: name resolution, connection, TLS or the transfer failed.
    #[error("{op} {url}")]
    Network {
        op: &'static str,
        url: String,
        source: reqwest::Error,
    },
    /// Nothing was received for too long.
    #[error("{op} {url}: nothing received for {after:?}")]
    Stalled {
        op: &'static str,
        url: String,
        after: Duration,
    },
    /// The stream ended before its announced end.
    #[error("{op} {url}: cut after {received} of {expected} bytes")]
    Cut {
        op: &'static str,
        url: String,
        received: u64,
        expected: u64,
    },
    /// An answer that is neither success nor one of the cases below.
    #[error("{op} {url}: status {status}{detail}")]
    Status {
        op: &'static str,
        url: String,
        status: u16,
        detail: String,
        retry_after: Option<Duration>,
    },
    /// The registry asks for a pause that is longer than a pull waits.
    #[error("{op} {url}: status {status}, the registry asks to wait for {wait:?}{detail}")]
    TooBusy {
        op: &'static str,
        url: String,
        status: u16,
        detail: String,
        wait: Duration,
    },
    /// No such repository, tag or blob.
    #[error("{op} {url}: not found{detail}")]
    NotFound {
        op: &'static str,
        url: String,
        detail: String,
    },
    /// The registry wants other credentials than it got.
    #[error("{op} {url}: {}{detail}", if *sent { "credentials refused" } else { "authorization required" })]
    Denied {
        op: &'static str,
        url: String,
        sent: bool,
        detail: String,
    },
    /// The registry asks for authorization in a way that cannot be followed.
    #[error("authorize at {url}: {why}")]
    Challenge { url: String, why: &'static str },
    /// A redirect that is not followed.
    #[error("{op} {url}: redirect refused: {why}")]
    Redirect {
        op: &'static str,
        url: String,
        why: &'static str,
    },
    /// Something that goes into memory is larger than it may be.
    #[error("{op} {url}: more than {limit} bytes")]
    TooLarge { op: &'static str, url: String, limit: u64 },
    /// Content that is not what it was asked for as.
    #[error("{op} {url}: content is {actual}, expected {expected}")]
    DigestMismatch {
        op: &'static str,
        url: String,
        expected: Digest,
        actual: Digest,
    },
    /// Content whose length is not the one that its manifest gives.
    #[error("{op} {url}: {actual} bytes, expected {expected}")]
    LengthMismatch {
        op: &'static str,
        url: String,
        expected: u64,
        actual: u64,
    },
    /// An answer breaks the protocol.
    #[error("{op} {url}: {why}")]
    Protocol {
        op: &'static str,
        url: String,
        why: &'static str,
    },
    /// A manifest, an index or a configuration cannot be read.
    #[error("read {what} {digest}")]
    Json {
        what: &'static str,
        digest: Digest,
        source: serde_json::Error,
    },
    /// A manifest, an index or a configuration contradicts itself or the specification.
    #[error("{what} {digest}: {why}")]
    Malformed {
        what: &'static str,
        digest: Digest,
        why: String,
    },
    /// Well-formed content that crisp does not take.
    #[error("{digest}: {why}")]
    Unsupported { digest: Digest, why: String },
    /// The image exists, but not for this machine.
    #[error("{digest}: no image for {wanted}, only for {offered}")]
    Platform {
        digest: Digest,
        wanted: String,
        offered: String,
    },
    /// No configured host may be asked for this.
    #[error("no host of {registry} may {capability}")]
    NoHost { registry: String, capability: &'static str },
    /// A blocking task was lost because the runtime is going down.
    #[error("{op} was interrupted")]
    Interrupted {
        op: &'static str,
        source: tokio::task::JoinError,
    },
}

impl RegistryError {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Config { .. } | Self::Tls { .. } | Self::Interrupted { .. } => ErrorKind::Internal,
            Self::Credentials { .. } | Self::Address { .. } => ErrorKind::Invalid,
            Self::Network { .. } | Self::Cut { .. } | Self::TooBusy { .. } | Self::NoHost { .. } => {
                ErrorKind::Unavailable
            }
            Self::Stalled { .. } => ErrorKind::Timeout,
            Self::Status { .. } => ErrorKind::Unavailable,
            Self::NotFound { .. } | Self::Platform { .. } => ErrorKind::NotFound,
            Self::Denied { .. } | Self::Challenge { .. } => ErrorKind::Denied,
            Self::Redirect { .. } | Self::Protocol { .. } => ErrorKind::Unavailable,
            Self::TooLarge { .. } => ErrorKind::Exhausted,
            Self::DigestMismatch { .. } | Self::LengthMismatch { .. } | Self::Json { .. } | Self::Malformed { .. } => {
                ErrorKind::Corrupt
            }
            Self::Unsupported { .. } => ErrorKind::Unsupported,
        }
    }

    /// Whether the same host may do better a little later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Network { .. } | Self::Stalled { .. } | Self::Cut { .. } => true,
            Self::Status { status, .. } => matches!(status, 408 | 429 | 500..=599),
            _ => false,
        }
    }

    /// Whether another host may have what this one has not. What is wrong with the content itself, when its digest
    /// was right, is wrong everywhere.
    pub fn is_of_the_host(&self) -> bool {
        !matches!(
            self,
            Self::Json { .. } | Self::Malformed { .. } | Self::Unsupported { .. } | Self::Platform { .. }
        )
    }

    /// A host that asks for a longer pause than `longest` is not waited for.
    pub(super) fn or_too_busy(self, longest: Duration) -> Self {
        match self {
            Self::Status {
                op,
                url,
                status,
                detail,
                retry_after: Some(wait),
            } if wait > longest => Self::TooBusy {
                op,
                url,
                status,
                detail,
                wait,
            },
            error => error,
        }
    }

    /// The pause that the host asked for.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

/// What may be shown of a text from outside: no control characters, not endless.
pub(super) fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(240).collect()
}

/// What may be shown of an address: not the user part, and not the query, which is the signature of many a redirect.
pub(super) fn shown_url(url: &reqwest::Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    // These fail for addresses that cannot have a user part, which then is not there.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    shown(url.as_str())
}
