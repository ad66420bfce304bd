//! RemoveContainer: ends it if it runs, then removes everything of it.

use std::sync::Arc;
use std::time::Duration;

use super::create::cgroup_of;
use super::{Container, ContainerError, Containers, blocking, name_of};
use crate::events::Kind;
use crate::fault;
use crate::model::{ContainerId, chain};
use crate::store::{ContainerPhase, PodRecord};
use crate::sys::cgroup::Cgroup;

impl Containers {
    /// Removes a container, killing it if it runs. Fine if it is not known.
    pub async fn remove(self: &Arc<Self>, id: &str) -> Result<(), ContainerError> {
        match self.find(id) {
            Ok(container) => self.remove_found(&container).await,
            Err(ContainerError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// As [`Containers::remove`], of a container at hand.
    pub async fn remove_found(self: &Arc<Self>, container: &Arc<Container>) -> Result<(), ContainerError> {
        let record = &container.record;
        self.stop_found(container, Duration::ZERO).await?;
        if container.inherited.unfinished {
            // What its state is taken for says nothing about its processes.
            self.kill_all(container).await?;
        }
        fault::point("container remove: stopped").await?;
        self.record_status(container, ContainerPhase::Removing).await;
        fault::point("container remove: recorded").await?;
        if let Some(monitor) = container.monitor.client()
            && let Err(error) = monitor.forget(&record.id).await
        {
            tracing::debug!(container_id = %record.id, %error, "not forgotten by the monitor");
        }
        fault::point("container remove: forgotten").await?;
        // Its processes are gone, and what it has on disk goes in any case: only what its hooks would do may be missed.
        if let Err(error) = self.delete_external(record).await {
            tracing::warn!(container_id = %record.id, error = %chain(&error), "not deleted by its runtime");
        }
        fault::point("container remove: deleted by its runtime").await?;
        self.remove_cgroup(&record.cgroup).await?;
        fault::point("container remove: cgroup removed").await?;
        let store = self.parts.store.clone();
        let (sandbox_id, id) = (record.sandbox_id.clone(), record.id.clone());
        blocking(move || store.remove_container(&sandbox_id, &id)).await?;
        fault::point("container remove: directories removed").await?;
        self.release(container);
        Ok(())
    }

    /// Removes what an earlier daemon had begun of a container, and did not live to record.
    pub async fn sweep(&self, pod: &PodRecord, id: &ContainerId) -> Result<(), ContainerError> {
        self.remove_cgroup(&cgroup_of(pod, id)).await?;
        let store = self.parts.store.clone();
        let (sandbox_id, id) = (pod.id.clone(), id.clone());
        Ok(blocking(move || store.remove_container(&sandbox_id, &id)).await?)
    }

    /// Removes the cgroup at `path`, after whatever is left in it.
    pub(super) async fn remove_cgroup(&self, path: &str) -> Result<(), ContainerError> {
        let (cgroups, at) = (self.parts.cgroups.clone(), path.to_owned());
        let removed = blocking(move || {
            let cgroup = Cgroup::open(&cgroups, &at)?;
            cgroup.kill()?;
            cgroup.remove()
        });
        match removed.await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(ContainerError::Cgroup {
                op: "remove",
                path: path.to_owned(),
                source: error,
            }),
            _ => Ok(()),
        }
    }

    /// Gives back the name and tells that the container is gone. Only the first of two concurrent removals tells.
    fn release(&self, container: &Container) {
        let record = &container.record;
        // Whoever saw it end may not have come to tell: what has gone has ended before.
        self.tell_end(container);
        let name = name_of(&record.sandbox_id, &record.metadata());
        // Name and holder go at once: a request that finds the name held finds who holds it.
        let mut names = self.names.lock().expect("no panic holds it");
        let found = self.index.write().expect("no panic holds it").remove(&record.id);
        if found.is_none() {
            return;
        }
        self.creating.forget(&name);
        self.starting.forget(record.id.as_str());
        if names.get(&name) == Some(&record.id) {
            names.remove(&name);
        }
        drop(names);
        self.tell(Kind::Deleted, record);
    }
}
