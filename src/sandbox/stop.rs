//! StopPodSandbox: its containers end, its addresses go back, its namespaces go away. It can be asked for any number
//! of times, and goes on where it failed.

use std::sync::Arc;
use std::time::Duration;

use super::{Sandbox, SandboxError, Sandboxes, blocking, files};
use crate::container::spec::SandboxFile;
use crate::events::Kind;
use crate::fault;
use crate::model::chain;
use crate::network::{Attached, Plan, netns};
use crate::store::PodPhase;

impl Sandboxes {
    /// Stops a sandbox. Fine if it is stopped, or not known.
    pub async fn stop(self: &Arc<Self>, id: &str) -> Result<(), SandboxError> {
        let sandbox = match self.find(id) {
            Ok(sandbox) => sandbox,
            Err(SandboxError::NotFound { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        let this = self.clone();
        // A caller that goes away must not leave a sandbox half stopped.
        let stopped = tokio::spawn(async move {
            let _ending = sandbox.ending.lock().await;
            this.stop_found(&sandbox).await
        });
        stopped.await.unwrap_or(Err(SandboxError::Lost))
    }

    /// As [`Sandboxes::stop`], of a sandbox at hand whose `ending` the caller holds.
    pub(super) async fn stop_found(&self, sandbox: &Sandbox) -> Result<(), SandboxError> {
        let id = &sandbox.record.id;
        let was_ready = sandbox.is_ready();
        // No container may be created from here on.
        let status = sandbox.change(|status| status.phase = PodPhase::NotReady);
        if was_ready {
            self.try_record_status(id, status).await;
        }
        fault::point("stop: recorded").await?;
        self.stop_containers(sandbox).await?;
        // Those that were being made when it was said.
        if !sandbox.all_made().await {
            let sandbox_id = id.clone();
            return Err(SandboxError::StillMaking { sandbox_id });
        }
        self.stop_containers(sandbox).await?;
        fault::point("stop: containers ended").await?;
        // The network needs the namespace, not the pause: both end at once.
        let (released, ()) = tokio::join!(self.release_network(sandbox), self.end_pause(sandbox));
        released?;
        fault::point("stop: pause ended").await?;
        self.remove_namespaces(sandbox).await?;
        fault::point("stop: namespaces removed").await?;
        self.remove_cgroup(sandbox).await?;
        self.end_scope(&sandbox.record).await?;
        fault::point("stop: cgroup removed").await?;
        if was_ready {
            self.tell(Kind::Stopped, id);
        }
        Ok(())
    }

    async fn stop_containers(&self, sandbox: &Sandbox) -> Result<(), SandboxError> {
        let containers = self.parts.containers.of_pod(&sandbox.record.id);
        let ends = containers
            .iter()
            .map(|container| self.parts.containers.stop_found(container, Duration::ZERO));
        for end in futures_util::future::join_all(ends).await {
            end.map_err(|source| SandboxError::Containers {
                sandbox_id: sandbox.record.id.clone(),
                source,
            })?;
        }
        Ok(())
    }

    /// DEL, unless it has succeeded before; a failure keeps the plan for the next try.
    async fn release_network(&self, sandbox: &Sandbox) -> Result<(), SandboxError> {
        let status = sandbox.status();
        let Some(plan) = sandbox.record.network.clone().filter(|_| !status.network_released) else {
            return Ok(());
        };
        let id = &sandbox.record.id;
        let invalid = |what: &str, error: serde_json::Error| SandboxError::Invalid {
            what: format!("pod sandbox {id}: recorded {what}: {error}"),
        };
        let plan: Plan = serde_json::from_str(plan.get()).map_err(|error| invalid("network plan", error))?;
        let attached: Option<Attached> = status
            .attached
            .map(|attached| serde_json::from_str(attached.get()))
            .transpose()
            .map_err(|error| invalid("network result", error))?;
        self.parts
            .networks
            .del(&plan, attached.as_ref())
            .await
            .map_err(|source| SandboxError::Network {
                op: "release the network",
                sandbox_id: id.clone(),
                source,
            })?;
        fault::point("stop: network released").await?;
        let status = sandbox.change(|status| status.network_released = true);
        self.try_record_status(id, status).await;
        Ok(())
    }

    /// Ends pause and the monitor. A monitor that does not answer is no obstacle: the cgroup kills what is left.
    async fn end_pause(&self, sandbox: &Sandbox) {
        let id = &sandbox.record.id;
        let silent = sandbox.monitor.is_silent();
        let Some(monitor) = sandbox.monitor.take() else {
            if silent {
                self.kill_silent_monitor(sandbox).await;
            }
            return;
        };
        if let Err(error) = monitor.stop_sandbox().await {
            tracing::debug!(sandbox_id = %id, error = %chain(&error), "pause not ended by its monitor");
        }
        if let Err(error) = monitor.shutdown().await {
            tracing::debug!(sandbox_id = %id, error = %chain(&error), "monitor not ended by itself");
        }
    }

    async fn remove_namespaces(&self, sandbox: &Sandbox) -> Result<(), SandboxError> {
        let run_dir = self.parts.store.pod_run_dir(&sandbox.record.id);
        let netns = sandbox.record.netns.clone();
        blocking(move || {
            if let Some(netns) = netns {
                netns::remove(&netns).map_err(SandboxError::path("remove the network namespace", &netns))?;
            }
            files::unmount_shm(&run_dir).map_err(SandboxError::path("unmount", run_dir.join(SandboxFile::Shm.name())))
        })
        .await
    }
}
