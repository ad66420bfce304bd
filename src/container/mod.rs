//! A container's life, one verb a file. What a container is to be (its OCI spec) is in [`spec`].

mod attach;
mod cdi;
mod create;
mod error;
mod exec;
mod exec_sync;
mod exited;
mod external;
mod layers;
mod leash;
mod list;
mod log;
mod mounts;
mod patience;
mod policy;
mod recover;
mod remove;
mod reopen_log;
mod runtime_spec;
pub mod spec;
mod start;
mod state;
mod stop;
mod unfinished;
mod update_resources;
mod volume;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

pub use attach::Attachment;
pub use cdi::CdiError;
pub use create::hostname;
pub use error::ContainerError;
pub use exec::{ExecProcess, ExecStreams, Pipes};
pub use exec_sync::{EXEC_OUTPUT_LIMIT_BYTES, ExecOutput};
pub use layers::Layers;
use patience::HungPaths;
pub use state::State;

use crate::cri;
use crate::events::{Event, Events, Kind};
use crate::handler::Handlers;
use crate::image::{Images, Lease};
use crate::model::{ContainerId, SandboxId, chain};
use crate::monitor::Access;
use crate::monitor::client::Client;
use crate::operation::Operations;
use crate::store::{ContainerPhase, ContainerRecord, ContainerStatus, PodRecord, Process, Store, UPPER};
use crate::sys::cgroup::Hierarchy;

/// What a container needs of its pod.
#[derive(Clone)]
pub struct Pod {
    pub record: Arc<PodRecord>,
    pub monitor: Client,
    /// The same, for as long as the pod lives.
    pub access: Access,
    pub pause: Process,
}

/// Held while a container is made: whoever ends the pod waits for it, so that it finds all that it has to end.
pub type Making = tokio::sync::OwnedRwLockReadGuard<()>;

/// A container.
pub struct Container {
    pub record: ContainerRecord,
    /// Watched by whoever waits for its end.
    state: watch::Sender<State>,
    /// What every process in it is held to; absent if its record cannot be read any more.
    policy: Option<spec::Policy>,
    /// As last updated.
    resources: Mutex<cri::LinuxContainerResources>,
    /// Held while they are changed: each change begins with what the one before it left.
    updating: tokio::sync::Mutex<()>,
    monitor: Access,
    /// Held while it is started: its end is told after its start, however soon it comes.
    starting: tokio::sync::Mutex<()>,
    /// Its end is told once.
    end_told: AtomicBool,
    /// Keep the layers of its image, and of those it has as volumes, while the container lives. Without those that were
    /// gone when the daemon came back.
    leases: Vec<Lease>,
    inherited: Inherited,
    listing: OnceLock<Box<[u8]>>,
}

/// What an earlier daemon left to do about a container.
#[derive(Default)]
struct Inherited {
    /// It was being made, or being removed: there is nothing to do but to remove it.
    unfinished: bool,
    /// It was made, but whoever asked for it may not have been told.
    unanswered: AtomicBool,
    /// It was started, but whoever asked for that may not have been told.
    start_unanswered: AtomicBool,
}

impl Container {
    /// Where it is in its life.
    pub fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// How it is listed but for its state, in the list's own form, which `make` gives the first time.
    pub fn listing(&self, make: impl FnOnce(&Self) -> Vec<u8>) -> &[u8] {
        self.listing.get_or_init(|| make(self).into())
    }

    /// Refuses if it is not running.
    fn check_running(&self) -> Result<(), ContainerError> {
        match self.state() {
            State::Running { .. } => Ok(()),
            state => Err(ContainerError::WrongState {
                container_id: self.record.id.clone(),
                state: state.name(),
                needed: "running",
            }),
        }
    }

    /// The resources as last updated.
    pub fn resources(&self) -> cri::LinuxContainerResources {
        self.resources.lock().expect("no panic holds it").clone()
    }

    /// The pod's monitor. One that has not answered since the daemon came back is waited for.
    async fn monitor(&self) -> Result<Client, ContainerError> {
        let container_id = || self.record.id.clone();
        self.monitor.answering().await.ok_or_else(|| {
            if self.monitor.is_silent() {
                ContainerError::MonitorSilent {
                    container_id: container_id(),
                }
            } else {
                ContainerError::MonitorGone {
                    container_id: container_id(),
                }
            }
        })
    }

    fn policy(&self) -> Result<&spec::Policy, ContainerError> {
        self.policy.as_ref().ok_or_else(|| ContainerError::NoPolicy {
            container_id: self.record.id.clone(),
        })
    }

    /// What belongs on disk now.
    fn status(&self, phase: ContainerPhase) -> ContainerStatus {
        let state = self.state.borrow();
        ContainerStatus {
            phase,
            process: state.process(),
            started_at_ns: state.started_at_ns().unwrap_or(0),
            exit: state.exit().cloned(),
            resources: Some(prost::Message::encode_to_vec(&self.resources())),
        }
    }
}

/// What containers are made of and kept in.
pub struct Parts {
    pub store: Store,
    pub images: Arc<Images>,
    pub cgroups: Arc<Hierarchy>,
    pub events: Events,
    pub host: Arc<spec::HostFacts>,
    pub handlers: Arc<Handlers>,
    pub seccomp: Arc<spec::seccomp::SeccompCache>,
    /// A longer line of output becomes several records, of this many bytes.
    pub log_line_max_bytes: u32,
    /// Where CDI specification files are.
    pub cdi_dirs: Vec<PathBuf>,
}

/// All containers.
pub struct Containers {
    parts: Parts,
    layers: Arc<Layers>,
    hung: HungPaths,
    /// Short critical sections only: no file, process or message is touched under it.
    index: RwLock<HashMap<ContainerId, Arc<Container>>>,
    /// Who holds which name: "sandbox id, name, attempt".
    names: Mutex<HashMap<String, ContainerId>>,
    creating: Operations<ContainerId, Arc<ContainerError>>,
    starting: Operations<(), Arc<ContainerError>>,
}

impl Containers {
    /// No containers yet; [`Containers::adopt`] brings back those of an earlier daemon.
    pub fn new(parts: Parts, layers: Layers) -> Self {
        Self {
            parts,
            layers: Arc::new(layers),
            hung: HungPaths::default(),
            index: RwLock::default(),
            names: Mutex::default(),
            creating: Operations::default(),
            // What could not be started cannot be started again: only the first one knows why.
            starting: Operations::keeping_failures(),
        }
    }

    /// The container of this id, or of this unambiguous beginning of one.
    pub fn find(&self, id: &str) -> Result<Arc<Container>, ContainerError> {
        let index = self.index.read().expect("no panic holds it");
        if let Some(container) = index.get(&ContainerId::new(id)) {
            return Ok(container.clone());
        }
        let mut found = index
            .iter()
            .filter(|(key, _)| !id.is_empty() && key.as_str().starts_with(id));
        match (found.next(), found.next()) {
            (Some((_, container)), None) => Ok(container.clone()),
            (Some(_), Some(_)) => Err(ContainerError::Ambiguous { id: id.to_owned() }),
            _ => Err(ContainerError::NotFound { id: id.to_owned() }),
        }
    }

    /// All containers of a pod.
    pub fn of_pod(&self, sandbox_id: &SandboxId) -> Vec<Arc<Container>> {
        let index = self.index.read().expect("no panic holds it");
        index
            .values()
            .filter(|container| container.record.sandbox_id == *sandbox_id)
            .cloned()
            .collect()
    }

    /// Whether pods can have user namespaces on this node, and if not, why.
    pub fn user_namespaces(&self) -> Result<(), String> {
        match self.layers.no_user_namespaces() {
            Some(why) => Err(why.to_owned()),
            None => Ok(()),
        }
    }

    /// All containers, by pod: for who looks at many pods.
    pub fn by_pod(&self) -> HashMap<SandboxId, Vec<Arc<Container>>> {
        let mut found: HashMap<SandboxId, Vec<Arc<Container>>> = HashMap::new();
        for container in self.index.read().expect("no panic holds it").values() {
            let of_pod = found.entry(container.record.sandbox_id.clone()).or_default();
            of_pod.push(container.clone());
        }
        found
    }

    /// Where a container's own files are.
    pub fn writable_layer(&self, record: &ContainerRecord) -> PathBuf {
        self.parts
            .store
            .container_dir(&record.sandbox_id, &record.id)
            .join(UPPER)
    }

    /// Tells that a container has ended, unless that was told.
    fn tell_end(&self, container: &Container) {
        if !container.end_told.swap(true, Ordering::Relaxed) {
            self.tell(Kind::Stopped, &container.record);
        }
    }

    fn tell(&self, kind: Kind, record: &ContainerRecord) {
        self.parts.events.tell(Event {
            kind,
            id: record.id.to_string(),
            sandbox_id: record.sandbox_id.clone(),
            at_ns: now_ns(),
        });
    }

    /// Writes the container's status off the asynchronous threads. A status that cannot be written is told and no
    /// more: the monitor and its exit records know the truth.
    async fn record_status(&self, container: &Container, phase: ContainerPhase) {
        let store = self.parts.store.clone();
        let (sandbox_id, id) = (container.record.sandbox_id.clone(), container.record.id.clone());
        let status = container.status(phase);
        let written = blocking(move || store.write_container_status(&sandbox_id, &id, &status)).await;
        if let Err(error) = written {
            tracing::warn!(container_id = %container.record.id, error = %chain(&error), "status not written");
        }
    }
}

/// The name that a container holds within its pod.
fn name_of(sandbox_id: &SandboxId, metadata: &cri::ContainerMetadata) -> String {
    format!("{sandbox_id}/{}/{}", metadata.name, metadata.attempt)
}

/// Nanoseconds since 1970.
pub fn now_ns() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos() as i64)
}

/// Runs what blocks on a thread that may.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
