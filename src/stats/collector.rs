//! Who asks gets figures; what is needed for the next time is kept.

use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::container::{container_stats, number};
use super::filesystem::Layer;
use super::tracked::{Reading, Tracked};
use super::{ContainerTarget, PodTarget, StatsError};
use crate::cri;
use crate::sys::cgroup::{Cgroup, page_sizes};

/// What nobody asked for in this time is forgotten: each holds some open directories of cgroups.
const REMEMBERED_FOR: Duration = Duration::from_secs(120);
/// How much of a request's time may go into first walks over writable layers, all of its containers together. A
/// fresh layer takes well below a millisecond, so that the first answer is complete already.
pub(super) const WALK_BUDGET: Duration = Duration::from_millis(20);

/// Reads figures of containers and pods on request. One per daemon; shared.
#[derive(Debug)]
pub struct Collector {
    /// The file system of images and writable layers, by the directory that the image room reports.
    pub(super) mountpoint: String,
    /// The sizes of huge pages that this kernel has.
    pub(super) page_sizes: Vec<String>,
    tracked: Mutex<HashMap<String, Arc<Tracked>>>,
    walks: Mutex<Walks>,
}

/// Writable layers to walk over, by at most one thread.
#[derive(Debug, Default)]
struct Walks {
    queue: VecDeque<Arc<Layer>>,
    running: bool,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

impl Collector {
    /// `image_mountpoint` is what `ImageFsInfo` reports: writable layers are on the same file system.
    pub fn new(image_mountpoint: &Path) -> Arc<Self> {
        let mountpoint = image_mountpoint.to_string_lossy().into_owned();
        Arc::new(Self {
            mountpoint,
            page_sizes: page_sizes(),
            tracked: Mutex::default(),
            walks: Mutex::default(),
        })
    }

    /// The figures of one container. One that does not run has its writable layer only.
    pub async fn container(self: &Arc<Self>, target: ContainerTarget) -> Result<cri::ContainerStats, StatsError> {
        let id = target.id.clone();
        self.blocking(id, move |this| {
            this.read_container(&target, Instant::now() + WALK_BUDGET)
        })
        .await?
    }

    /// The figures of many containers, in the order given. One that cannot be read is left out.
    pub async fn containers(self: &Arc<Self>, targets: Vec<ContainerTarget>) -> Vec<cri::ContainerStats> {
        let read = move |this: &Arc<Self>| {
            this.forget_unasked();
            let walk_until = Instant::now() + WALK_BUDGET;
            targets
                .iter()
                .filter_map(|target| logged(this.read_container(target, walk_until)))
                .collect()
        };
        logged(self.blocking("all containers".to_owned(), read).await).unwrap_or_default()
    }

    /// The figures of one pod and of its containers.
    pub async fn pod(self: &Arc<Self>, target: PodTarget) -> Result<cri::PodSandboxStats, StatsError> {
        let id = target.id.clone();
        self.blocking(id, move |this| this.read_pod(&target, Instant::now() + WALK_BUDGET))
            .await?
    }

    /// The figures of many pods, in the order given. One that cannot be read is left out.
    pub async fn pods(self: &Arc<Self>, targets: Vec<PodTarget>) -> Vec<cri::PodSandboxStats> {
        let read = move |this: &Arc<Self>| {
            this.forget_unasked();
            let walk_until = Instant::now() + WALK_BUDGET;
            targets
                .iter()
                .filter_map(|target| logged(this.read_pod(target, walk_until)))
                .collect()
        };
        logged(self.blocking("all pods".to_owned(), read).await).unwrap_or_default()
    }

    /// Forgets a container or pod that was removed. Without it what is kept goes after a while.
    pub fn forget(&self, id: &str) {
        locked(&self.tracked).remove(id);
    }

    fn forget_unasked(&self) {
        locked(&self.tracked).retain(|_, known| known.idle() < REMEMBERED_FOR);
    }

    pub(super) async fn blocking<T, F>(self: &Arc<Self>, id: String, work: F) -> Result<T, StatsError>
    where
        T: Send + 'static,
        F: FnOnce(&Arc<Self>) -> T + Send + 'static,
    {
        let this = self.clone();
        let outcome = tokio::task::spawn_blocking(move || work(&this)).await;
        outcome.map_err(|_| StatsError::ShuttingDown { id })
    }

    fn tracked(&self, id: &str, new: impl FnOnce() -> Tracked) -> Arc<Tracked> {
        let mut tracked = locked(&self.tracked);
        if let Some(known) = tracked.get(id) {
            return known.clone();
        }
        tracked.retain(|_, known| known.idle() < REMEMBERED_FOR);
        let new = Arc::new(new());
        tracked.insert(id.to_owned(), new.clone());
        new
    }

    pub(super) fn container_tracked(&self, target: &ContainerTarget) -> Arc<Tracked> {
        self.tracked(&target.id, || Tracked::new(target.writable_layer.clone()))
    }

    /// A reading of `cgroup`, remembered under `id`; none if it does not exist.
    pub(super) fn read_cgroup(&self, id: &str, cgroup: &Cgroup) -> Result<Option<Reading>, StatsError> {
        let tracked = self.tracked(id, || Tracked::new(None));
        tracked.read(cgroup).map_err(|source| StatsError::Read {
            id: id.to_owned(),
            source,
        })
    }

    fn read_container(
        self: &Arc<Self>,
        target: &ContainerTarget,
        walk_until: Instant,
    ) -> Result<cri::ContainerStats, StatsError> {
        self.read_container_twice(target, walk_until).map(|(stats, _)| stats)
    }

    /// The container's figures as a message and as they were read.
    pub(super) fn read_container_twice(
        self: &Arc<Self>,
        target: &ContainerTarget,
        walk_until: Instant,
    ) -> Result<(cri::ContainerStats, Option<Reading>), StatsError> {
        let tracked = self.container_tracked(target);
        let reading = tracked.read(&target.cgroup).map_err(|source| StatsError::Read {
            id: target.id.clone(),
            source,
        })?;
        let writable_layer = tracked
            .layer
            .as_ref()
            .and_then(|layer| self.read_layer(layer, walk_until));
        Ok((container_stats(target, reading.as_ref(), writable_layer), reading))
    }

    /// What the last walk found. A first walk is made here if it is short; any other goes to the background.
    pub(super) fn read_layer(
        self: &Arc<Self>,
        layer: &Arc<Layer>,
        walk_until: Instant,
    ) -> Option<cri::FilesystemUsage> {
        let (mut found, due) = layer.get();
        if due {
            let first = found.is_none() && Instant::now() < walk_until;
            if first && layer.walk(Some(walk_until)) {
                found = layer.get().0;
            } else {
                self.walk_later(layer.clone());
            }
        }
        let found = found?;
        Some(cri::FilesystemUsage {
            timestamp: found.timestamp_ns,
            fs_id: Some(cri::FilesystemIdentifier {
                mountpoint: self.mountpoint.clone(),
            }),
            used_bytes: number(found.usage.bytes),
            inodes_used: number(found.usage.inodes),
        })
    }

    fn walk_later(self: &Arc<Self>, layer: Arc<Layer>) {
        let mut walks = locked(&self.walks);
        walks.queue.push_back(layer);
        if !walks.running {
            walks.running = true;
            let this = self.clone();
            tokio::task::spawn_blocking(move || this.walk_all());
        }
    }

    fn walk_all(&self) {
        loop {
            let next = {
                let mut walks = locked(&self.walks);
                let next = walks.queue.pop_front();
                walks.running = next.is_some();
                next
            };
            let Some(layer) = next else { return };
            layer.walk(None);
        }
    }
}

pub(super) fn logged<T>(outcome: Result<T, StatsError>) -> Option<T> {
    outcome
        .inspect_err(|error| {
            let cause = std::error::Error::source(error)
                .map(ToString::to_string)
                .unwrap_or_default();
            tracing::debug!(%error, cause, "no figures");
        })
        .ok()
}
