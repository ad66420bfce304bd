//! A pod sandbox's life, one verb a file.
//!
//! ```text
//!  (Creating) --born--> Ready --stop, or its processes are gone--> NotReady --remove--> (Removing)
//! ```
//! The states in parentheses are only ever met on disk, by the daemon that recovers.

mod cgroup;
mod error;
mod files;
mod join;
mod limits;
mod list;
mod lost;
mod port_forward;
mod recover;
mod remove;
mod run;
mod runtime_spec;
mod stop;
mod update_resources;

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock, RwLock};
use std::time::Duration;

pub use cgroup::CgroupDriver;
pub use error::SandboxError;
pub use limits::namespace_options;

use crate::container::spec::HostFacts;
use crate::container::{Containers, Making, Pod, blocking, now_ns};
use crate::cri;
use crate::events::{Event, Events, Kind};
use crate::handler::Handlers;
use crate::model::{SandboxId, chain};
use crate::monitor::{Access, Launcher};
use crate::network::Networks;
use crate::operation::Operations;
use crate::store::{PodPhase, PodRecord, PodStatus, Store, StoreError};
use crate::sys::cgroup::Hierarchy;

/// A sandbox.
pub struct Sandbox {
    pub record: Arc<PodRecord>,
    status: Mutex<PodStatus>,
    monitor: Access,
    /// Held by a stop or a removal: the two wait for each other.
    ending: tokio::sync::Mutex<()>,
    /// Read by those who make a container in it.
    making: Arc<tokio::sync::RwLock<()>>,
    inherited: Inherited,
    listing: OnceLock<Box<[u8]>>,
}

/// What an earlier try, or an earlier daemon, left to do about a sandbox.
#[derive(Default)]
struct Inherited {
    /// It was being made, or being removed: there is nothing to do but to remove it.
    unfinished: bool,
    /// It was ready, but whoever asked for it may not have been told.
    unanswered: AtomicBool,
}

impl Sandbox {
    /// What became of it.
    pub fn status(&self) -> PodStatus {
        self.status.lock().expect("no panic holds it").clone()
    }

    /// Whether containers can live in it.
    pub fn is_ready(&self) -> bool {
        self.status.lock().expect("no panic holds it").phase == PodPhase::Ready
    }

    /// Waits for the containers that are being made in it; false if that takes too long. One that is not ready takes no others.
    async fn all_made(&self) -> bool {
        let made = tokio::time::timeout(MAKING_DEADLINE, self.making.write()).await;
        made.is_ok()
    }

    /// How it is listed but for its state, in the list's own form, which `make` gives the first time.
    pub fn listing(&self, make: impl FnOnce(&Self) -> Vec<u8>) -> &[u8] {
        self.listing.get_or_init(|| make(self).into())
    }

    /// Its addresses, the primary one first.
    pub fn ips(&self) -> Vec<IpAddr> {
        self.status.lock().expect("no panic holds it").ips.clone()
    }

    /// Changes the status; what it is afterwards is returned, for the disk.
    fn change(&self, change: impl FnOnce(&mut PodStatus)) -> PodStatus {
        let mut status = self.status.lock().expect("no panic holds it");
        change(&mut status);
        status.clone()
    }
}

/// How long the end of a pod waits for containers that are being made: a hung file system keeps one for less.
const MAKING_DEADLINE: Duration = Duration::from_secs(90);

/// How long the end of the daemon may wait for the network.
const SETTLE_DEADLINE: Duration = Duration::from_secs(5);

/// What sandboxes are made of and kept in.
pub struct Parts {
    pub store: Store,
    pub launcher: Launcher,
    pub networks: Arc<Networks>,
    pub containers: Arc<Containers>,
    pub cgroups: Arc<Hierarchy>,
    pub host: Arc<HostFacts>,
    pub events: Events,
    /// Where network namespaces are bound.
    pub netns_dir: PathBuf,
    pub cgroup_driver: CgroupDriver,
    /// The parent of the cgroups of pods that name none: a path, or a slice of systemd's.
    pub cgroup_parent: String,
    pub boot_id: String,
    pub handlers: Arc<Handlers>,
}

/// All sandboxes.
pub struct Sandboxes {
    parts: Parts,
    /// Short critical sections only: no file, process or message is touched under it.
    index: RwLock<HashMap<SandboxId, Arc<Sandbox>>>,
    /// Who holds which name: "namespace, name, uid, attempt".
    names: Mutex<HashMap<String, SandboxId>>,
    running: Operations<SandboxId, Arc<SandboxError>>,
}

impl Sandboxes {
    /// No sandboxes yet; [`Sandboxes::recover`] brings back those of an earlier daemon.
    pub fn new(parts: Parts) -> Arc<Self> {
        Arc::new(Self {
            parts,
            index: RwLock::default(),
            names: Mutex::default(),
            running: Operations::default(),
        })
    }

    /// The sandbox of this id, or of this unambiguous beginning of one.
    pub fn find(&self, id: &str) -> Result<Arc<Sandbox>, SandboxError> {
        let index = self.index.read().expect("no panic holds it");
        if let Some(sandbox) = index.get(&SandboxId::new(id)) {
            return Ok(sandbox.clone());
        }
        let mut found = index
            .iter()
            .filter(|(key, _)| !id.is_empty() && key.as_str().starts_with(id));
        match (found.next(), found.next()) {
            (Some((_, sandbox)), None) => Ok(sandbox.clone()),
            (Some(_), Some(_)) => Err(SandboxError::Ambiguous { id: id.to_owned() }),
            _ => Err(SandboxError::NotFound { id: id.to_owned() }),
        }
    }

    /// Fine if the sandbox is ready.
    pub fn check_ready(&self, id: &str) -> Result<(), SandboxError> {
        let sandbox = self.find(id)?;
        if sandbox.is_ready() {
            return Ok(());
        }
        Err(SandboxError::NotReady {
            sandbox_id: sandbox.record.id.clone(),
        })
    }

    /// What a container needs of the sandbox to live in it: only a ready one takes containers. A monitor that has not
    /// answered since the daemon came back is waited for.
    pub async fn ready_pod(&self, id: &str) -> Result<(Pod, Making), SandboxError> {
        self.check_ready(id)?;
        let sandbox = self.find(id)?;
        let sandbox_id = || sandbox.record.id.clone();
        let monitor = sandbox.monitor.answering().await;
        if monitor.is_none() && sandbox.monitor.is_silent() {
            let sandbox_id = sandbox_id();
            return Err(SandboxError::MonitorSilent { sandbox_id });
        }
        // Before it is seen to be ready: who ends it says first that it is not, and waits then. After the wait for the monitor,
        // which may join only when nobody ends the pod.
        let making = sandbox.making.clone().read_owned().await;
        let status = sandbox.status();
        match (status.phase, monitor, status.pause) {
            (PodPhase::Ready, Some(monitor), Some(pause)) => {
                let pod = Pod {
                    record: sandbox.record.clone(),
                    monitor,
                    access: sandbox.monitor.clone(),
                    pause,
                };
                Ok((pod, making))
            }
            _ => Err(SandboxError::NotReady {
                sandbox_id: sandbox_id(),
            }),
        }
    }

    /// Whether Status can call the runtime ready, and why not. Blocks no longer than the file systems of its own directories do.
    pub fn check_writable(&self) -> Result<(), StoreError> {
        self.parts.store.check_writable()
    }

    /// Which network new pods get, as JSON for who asks.
    pub fn describe_network(&self) -> serde_json::Value {
        self.parts.networks.describe()
    }

    /// Whether Status can call the network ready, and why not.
    pub async fn network_status(&self) -> crate::network::NetworkStatus {
        self.parts.networks.status().await
    }

    /// Before the daemon ends: what stopped pods have left to the kernel's own time goes now.
    pub async fn settle_networks(&self) {
        match tokio::time::timeout(SETTLE_DEADLINE, self.parts.networks.settle()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(error = %chain(&error), "links of stopped pods stay until the next start"),
            Err(_) => tracing::warn!("links of stopped pods stay until the next start: no answer in time"),
        }
    }

    /// Takes the pod CIDRs that the kubelet gives this node.
    pub async fn set_pod_cidrs(&self, text: &str) -> Result<(), SandboxError> {
        let set = self.parts.networks.set_pod_cidrs(text).await;
        set.map_err(|source| SandboxError::PodCidrs { source })
    }

    fn tell(&self, kind: Kind, id: &SandboxId) {
        self.parts.events.tell(Event {
            kind,
            id: id.to_string(),
            sandbox_id: id.clone(),
            at_ns: now_ns(),
        });
    }

    async fn record_status(&self, id: &SandboxId, status: PodStatus) -> Result<(), SandboxError> {
        let (store, id) = (self.parts.store.clone(), id.clone());
        Ok(blocking(move || store.write_pod_status(&id, &status)).await?)
    }

    /// As [`Sandboxes::record_status`] where going on matters more: a failure is told and no more.
    async fn try_record_status(&self, id: &SandboxId, status: PodStatus) {
        if let Err(error) = self.record_status(id, status).await {
            tracing::warn!(sandbox_id = %id, error = %chain(&error), "status not written");
        }
    }
}

/// The name that a sandbox holds.
fn name_of(metadata: &cri::PodSandboxMetadata) -> String {
    format!(
        "{}/{}/{}/{}",
        metadata.namespace, metadata.name, metadata.uid, metadata.attempt
    )
}
