//! What a pod's monitor tells, and its silence.

use std::sync::Arc;

use super::{Sandbox, Sandboxes};
use crate::events::Kind;
use crate::model::chain;
use crate::monitor::client::{Event, Events};
use crate::store::PodPhase;

impl Sandboxes {
    /// Follows the monitor of `sandbox` in a task of its own, until it ends.
    pub(super) fn follow(self: &Arc<Self>, sandbox: &Arc<Sandbox>, mut events: Events) {
        let (this, sandbox) = (self.clone(), sandbox.clone());
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                match event {
                    Event::Exited { container_id, exit } => {
                        this.parts.containers.exited(&container_id, exit.into()).await;
                    }
                    Event::PauseExited { .. } => this.pause_gone(&sandbox).await,
                    Event::Lost => break,
                }
            }
            // Whoever stops a sandbox takes its monitor away first.
            if sandbox.monitor.client().is_some() {
                this.monitor_gone(&sandbox).await;
            }
        });
    }

    /// Pause is gone and with it the pod's namespaces: the pod is not ready any more, as everyone can see. Its
    /// containers run on until someone stops the sandbox.
    pub(super) async fn pause_gone(&self, sandbox: &Sandbox) {
        self.not_ready(sandbox, "pause has ended").await;
    }

    /// The monitor is gone: nobody writes the containers' logs or sees their ends. The pod is over.
    pub(super) async fn monitor_gone(&self, sandbox: &Sandbox) {
        sandbox.monitor.take();
        self.not_ready(sandbox, "the monitor is gone").await;
        self.orphan_containers(sandbox).await;
        // Those that were being made. One that comes yet later ends when the pod is stopped.
        sandbox.all_made().await;
        self.orphan_containers(sandbox).await;
        if let Err(error) = self.remove_cgroup(sandbox).await {
            tracing::warn!(sandbox_id = %sandbox.record.id, error = %chain(&error), "cgroup of a lost pod remains");
        }
    }

    async fn orphan_containers(&self, sandbox: &Sandbox) {
        for container in self.parts.containers.of_pod(&sandbox.record.id) {
            self.parts.containers.orphaned(&container.record.id).await;
        }
    }

    async fn not_ready(&self, sandbox: &Sandbox, why: &str) {
        if !sandbox.is_ready() {
            return;
        }
        let id = &sandbox.record.id;
        tracing::warn!(sandbox_id = %id, why, "pod sandbox is not ready any more");
        let status = sandbox.change(|status| status.phase = PodPhase::NotReady);
        self.tell(Kind::Stopped, id);
        self.try_record_status(id, status).await;
    }
}
