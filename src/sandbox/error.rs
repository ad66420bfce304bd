//! What can go wrong with a sandbox.

use std::io;
use std::path::PathBuf;

use crate::container::ContainerError;
use crate::handler::UnknownHandler;
use crate::model::SandboxId;
use crate::monitor::client::MonitorError;
use crate::network::NetworkError;
use crate::store::StoreError;
use crate::systemd::SystemdError;

#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error("pod sandbox {id:?} not found")]
    NotFound { id: String },
    #[error("{id:?} begins the id of more than one pod sandbox")]
    Ambiguous { id: String },
    #[error("pod sandbox {sandbox_id} is not ready")]
    NotReady { sandbox_id: SandboxId },
    #[error("the monitor of pod sandbox {sandbox_id} does not answer")]
    MonitorSilent { sandbox_id: SandboxId },
    #[error("a container of pod sandbox {sandbox_id} is still being made")]
    StillMaking { sandbox_id: SandboxId },
    #[error("{what}")]
    Invalid { what: String },
    #[error(transparent)]
    UnknownHandler(#[from] UnknownHandler),
    #[error("this node cannot give a pod a user namespace: {why}")]
    NoUserNamespaces { why: String },
    #[error("make the user namespace")]
    UserNamespace { source: io::Error },
    #[error("pod sandbox name {name:?} belongs to pod sandbox {sandbox_id}")]
    NameTaken { name: String, sandbox_id: SandboxId },
    #[error("another request is running a different pod sandbox named {name:?}")]
    NameBusy { name: String },
    #[error("the work on the pod sandbox ended without a result")]
    Lost,
    #[error("{op} for pod sandbox {sandbox_id}")]
    Network {
        op: &'static str,
        sandbox_id: SandboxId,
        source: NetworkError,
    },
    #[error("take over the pod CIDRs")]
    PodCidrs { source: NetworkError },
    #[error("{op} for pod sandbox {sandbox_id}")]
    Monitor {
        op: &'static str,
        sandbox_id: SandboxId,
        source: MonitorError,
    },
    #[error("{op} {}", path.display())]
    Path {
        op: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("cgroup {path}: {op}")]
    Cgroup {
        op: &'static str,
        path: String,
        source: io::Error,
    },
    #[error("scope of pod sandbox {sandbox_id}")]
    Systemd {
        sandbox_id: SandboxId,
        source: SystemdError,
    },
    #[error("connect to port {port} of pod sandbox {sandbox_id}")]
    Connect {
        port: u16,
        sandbox_id: SandboxId,
        source: io::Error,
    },
    #[error("pod sandbox {sandbox_id}")]
    Containers {
        sandbox_id: SandboxId,
        source: ContainerError,
    },
    #[error(transparent)]
    Spec(#[from] crate::container::spec::SpecError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Fault(#[from] crate::fault::Injected),
}

impl SandboxError {
    /// A closure for `map_err` that says what was done to which path.
    pub(super) fn path(op: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Path { op, path, source }
    }
}
