//! RemovePodSandbox: stops it if need be, removes its containers and then everything of it.

use std::sync::Arc;

use super::{Sandbox, SandboxError, Sandboxes, blocking, name_of};
use crate::events::Kind;
use crate::fault;
use crate::store::PodPhase;

impl Sandboxes {
    /// Removes a sandbox. Fine if it is not known.
    pub async fn remove(self: &Arc<Self>, id: &str) -> Result<(), SandboxError> {
        let sandbox = match self.find(id) {
            Ok(sandbox) => sandbox,
            Err(SandboxError::NotFound { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        let this = self.clone();
        let removed = tokio::spawn(async move {
            let _ending = sandbox.ending.lock().await;
            // It was removed while we waited.
            if this.find(sandbox.record.id.as_str()).is_err() {
                return Ok(());
            }
            this.remove_found(&sandbox).await
        });
        removed.await.unwrap_or(Err(SandboxError::Lost))
    }

    /// As [`Sandboxes::remove`], of a sandbox at hand whose `ending` the caller holds.
    pub(super) async fn remove_found(&self, sandbox: &Sandbox) -> Result<(), SandboxError> {
        let id = &sandbox.record.id;
        self.stop_found(sandbox).await?;
        let status = sandbox.change(|status| status.phase = PodPhase::Removing);
        self.try_record_status(id, status).await;
        fault::point("remove: recorded").await?;
        for container in self.parts.containers.of_pod(id) {
            let removed = self.parts.containers.remove_found(&container).await;
            removed.map_err(|source| SandboxError::Containers {
                sandbox_id: id.clone(),
                source,
            })?;
        }
        fault::point("remove: containers removed").await?;
        self.remove_cgroup_parent(&sandbox.record).await?;
        fault::point("remove: cgroup parent removed").await?;
        let (store, at) = (self.parts.store.clone(), id.clone());
        blocking(move || store.remove_pod(&at)).await?;
        fault::point("remove: directories removed").await?;
        self.release(sandbox);
        Ok(())
    }

    /// Gives back the name and tells that the sandbox is gone. Whoever holds its `ending` is the only one to do so.
    fn release(&self, sandbox: &Sandbox) {
        let id = &sandbox.record.id;
        // While it can still be seen: an event has its pod's status.
        self.tell(Kind::Deleted, id);
        let name = name_of(&sandbox.record.metadata());
        // Name and holder go at once: a request that finds the name held finds who holds it.
        let mut names = self.names.lock().expect("no panic holds it");
        self.running.forget(&name);
        if names.get(&name) == Some(id) {
            names.remove(&name);
        }
        self.index.write().expect("no panic holds it").remove(id);
    }
}
