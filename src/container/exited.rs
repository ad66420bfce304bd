//! A container's first process has ended.

use std::sync::Arc;

use super::{Container, Containers, now_ns, spec};
use crate::model::ContainerId;
use crate::monitor::protocol;
use crate::store::{ContainerPhase, ContainerRecord, Exit};

impl From<protocol::Exit> for Exit {
    fn from(exit: protocol::Exit) -> Self {
        Self {
            code: exit.code,
            finished_at_ns: exit.finished_at_ns,
            oom_killed: exit.oom_killed,
            reason: String::new(),
            message: String::new(),
        }
    }
}

impl Containers {
    /// Takes the end that a monitor reports. The state changes at once; nothing that can hang comes before it.
    pub async fn exited(self: &Arc<Self>, id: &ContainerId, exit: Exit) {
        let Ok(container) = self.find(id.as_str()) else {
            return;
        };
        tracing::info!(container_id = %id, code = exit.code, oom_killed = exit.oom_killed, "container exited");
        let mut first = false;
        container.state.send_modify(|state| {
            first = state.exit().is_none();
            state.exited(exit);
        });
        if first {
            self.kill_the_rest_later(&container);
            let starting = container.starting.lock().await;
            self.tell_end(&container);
            drop(starting);
            self.record_status(&container, ContainerPhase::Exited).await;
        }
    }

    /// Kills in the background what a first process that has ended left behind, as nothing else does where it shares its
    /// pid namespace: the next instance of the container would find its ports and its volumes taken.
    pub(super) fn kill_the_rest_later(self: &Arc<Self>, container: &Arc<Container>) {
        if spec::namespaces::ends_with_its_first_process(&container.record.config) {
            return;
        }
        let (this, container) = (self.clone(), container.clone());
        tokio::spawn(async move {
            if let Err(error) = this.kill_all(&container).await {
                tracing::warn!(container_id = %container.record.id, %error, "processes of a container that has ended remain");
            }
        });
    }

    /// The exit record that a monitor left, if there is one.
    pub(super) fn recorded_exit(&self, record: &ContainerRecord) -> Option<Exit> {
        let text = self.parts.store.exit_record(&record.sandbox_id, &record.id)?;
        protocol::Exit::from_record(&text).map(Exit::from)
    }

    /// The pod's monitor is gone, and with it the parent of the container's processes: whatever is left of them is
    /// killed, because nobody writes their logs or sees their end any more, and the end is recorded as far as known.
    pub async fn orphaned(self: &Arc<Self>, id: &ContainerId) {
        let Ok(container) = self.find(id.as_str()) else {
            return;
        };
        container.monitor.take();
        // Also one whose end is recorded: where nobody saw the end, it was taken for granted.
        if let Err(error) = self.kill_all(&container).await {
            tracing::warn!(container_id = %id, %error, "processes of an orphaned container remain");
        }
        if container.state().exit().is_some() {
            return;
        }
        let exit = self
            .recorded_exit(&container.record)
            .unwrap_or_else(|| Exit::unknown("the pod's monitor was lost", now_ns()));
        self.exited(id, exit).await;
    }
}
