//! What can go wrong with a container.

use std::io;
use std::path::PathBuf;

use super::cdi::CdiError;
use super::spec::SpecError;
use super::spec::seccomp::SeccompError;
use crate::handler::UnknownHandler;
use crate::model::{ContainerId, ImageId, SandboxId};
use crate::monitor::client::MonitorError;
use crate::store::StoreError;

#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    #[error("container {id:?} not found")]
    NotFound { id: String },
    #[error("{id:?} begins the id of more than one container")]
    Ambiguous { id: String },
    #[error("{what}")]
    Invalid { what: String },
    #[error("container name {name:?} attempt {attempt} of pod {sandbox_id} belongs to container {container_id}")]
    NameTaken {
        name: String,
        attempt: u32,
        sandbox_id: SandboxId,
        container_id: ContainerId,
    },
    #[error("another request is creating a different container named {name:?} in pod {sandbox_id}")]
    NameBusy { name: String, sandbox_id: SandboxId },
    #[error("the operation on the container ended without a result")]
    Lost,
    #[error("image {reference:?} not found: pull it first")]
    ImageNotFound { reference: String },
    #[error("image {image_id} was removed meanwhile")]
    ImageGone { image_id: ImageId },
    #[error("container {container_id} is {state}, not {needed}")]
    WrongState {
        container_id: ContainerId,
        state: &'static str,
        needed: &'static str,
    },
    #[error("container {container_id} cannot start: {message}")]
    StartFailed { container_id: ContainerId, message: String },
    #[error("the monitor of container {container_id}'s pod is gone")]
    MonitorGone { container_id: ContainerId },
    #[error("the monitor of container {container_id}'s pod does not answer")]
    MonitorSilent { container_id: ContainerId },
    #[error("the recorded process policy of container {container_id} cannot be read")]
    NoPolicy { container_id: ContainerId },
    #[error("container {container_id} has no log")]
    NoLog { container_id: ContainerId },
    #[error("command {command:?} in container {container_id} did not end within {seconds} s")]
    ExecTimeout {
        container_id: ContainerId,
        command: String,
        seconds: i64,
    },
    #[error("container {container_id} did not end although it was killed")]
    Unkillable { container_id: ContainerId },
    #[error("{} did not answer within {seconds} s", path.display())]
    Hung { path: PathBuf, seconds: u64 },
    #[error("{} has not answered since an earlier request asked for it", path.display())]
    StillHung { path: PathBuf },
    #[error("{op} for container {container_id}")]
    Monitor {
        op: &'static str,
        container_id: ContainerId,
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
    #[error(transparent)]
    UnknownHandler(#[from] UnknownHandler),
    #[error(transparent)]
    Cdi(#[from] CdiError),
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error("seccomp profile")]
    Seccomp(#[from] SeccompError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Fault(#[from] crate::fault::Injected),
}

impl ContainerError {
    /// A closure for `map_err` that says what was done to which path.
    pub(super) fn path(op: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Path { op, path, source }
    }

    /// A closure for `map_err` that says what was asked of the monitor.
    pub(super) fn monitor(op: &'static str, container_id: &ContainerId) -> impl FnOnce(MonitorError) -> Self {
        let container_id = container_id.clone();
        move |source| Self::Monitor {
            op,
            container_id,
            source,
        }
    }
}
