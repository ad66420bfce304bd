//! What can go wrong in this room.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::pull::PullError;
use super::reference::ReferenceError;
use super::store::LayerError;

/// What a caller can do about an [`ImageError`]; the API's table maps it to a gRPC code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request itself is wrong: an unusable reference, an id that fits several images.
    Invalid,
    /// No such image here or at the registry.
    NotFound,
    /// The registry wants other credentials.
    Denied,
    /// Nobody answered, or not now; a retry may help.
    Unavailable,
    /// What was asked for did not come in time.
    Timeout,
    /// No space left, or a limit of size, entries or ratio was passed.
    Exhausted,
    /// What was found is sound, but crisp does not take its kind.
    Unsupported,
    /// The content is not what its digest or its format promises, or would leave its place.
    Corrupt,
    /// The host failed us.
    Internal,
}

/// Errors of the image room.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A file operation on the store failed.
    #[error("{op} {}", path.display())]
    Io {
        op: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// A layer could not be unpacked.
    #[error("unpack layer {diff_id}")]
    Layer { diff_id: String, source: LayerError },
    /// An image's configuration cannot be read.
    #[error("read configuration of image {image_id}")]
    Config {
        image_id: String,
        source: oci_spec::OciSpecError,
    },
    /// An image's configuration and its layers disagree.
    #[error("image {image_id} names layer {diff_id}, which was not unpacked for it")]
    MissingLayer { image_id: String, diff_id: String },
    /// An image may have that many layers and no more: overlayfs takes 500.
    #[error("image {image_id} has {layers} layers, more than {limit}")]
    TooManyLayers {
        image_id: String,
        layers: usize,
        limit: usize,
    },
    /// A short id that several images share.
    #[error("image id {id} is ambiguous")]
    Ambiguous { id: String },
    /// The request's reference is none.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// A pull failed; others may have waited for it too.
    #[error(transparent)]
    Pull(#[from] Arc<PullError>),
    /// A blocking task was lost because the runtime is going down.
    #[error("{op} was interrupted")]
    Interrupted {
        op: &'static str,
        source: tokio::task::JoinError,
    },
    #[error(transparent)]
    Fault(#[from] crate::fault::Injected),
}

impl ImageError {
    pub(crate) fn io(op: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::Io { op, path, source }
    }

    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { source, .. } => io_kind(source),
            Self::Layer { source, .. } => source.kind(),
            Self::Config { .. } | Self::MissingLayer { .. } => ErrorKind::Corrupt,
            Self::TooManyLayers { .. } => ErrorKind::Exhausted,
            Self::Ambiguous { .. } => ErrorKind::Invalid,
            Self::Reference(_) => ErrorKind::Invalid,
            Self::Pull(source) => source.kind(),
            Self::Interrupted { .. } | Self::Fault(_) => ErrorKind::Internal,
        }
    }
}

/// A full disk or quota is the caller's to clean up; everything else is the host's failure.
pub(crate) fn io_kind(error: &io::Error) -> ErrorKind {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::Exhausted,
        io::ErrorKind::TimedOut => ErrorKind::Timeout,
        _ => ErrorKind::Internal,
    }
}
