//! StartContainer: the waiting first process executes its program.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Container, ContainerError, Containers, State, now_ns};
use crate::events::Kind;
use crate::fault;
use crate::monitor::client::MonitorError;
use crate::monitor::protocol::FailureKind;
use crate::operation::OperationError;
use crate::store::{ContainerPhase, Exit};

impl Containers {
    /// Starts a created container. A program that cannot be executed is an error, and the container has exited with
    /// the code a shell would give: 127 if there is no such program, 126 if it cannot be executed.
    ///
    /// The same request again, while the first is under way or has not been answered, gets the first one's result; so
    /// does the first one after a restart of the daemon over which an answer may have been lost. A container that was
    /// started, and whose starter knows, cannot be started again.
    pub async fn start(self: &Arc<Self>, id: &str) -> Result<(), Arc<ContainerError>> {
        let container = self.find(id)?;
        let key = container.record.id.to_string();
        let this = self.clone();
        // In a task of its own: a caller that goes away must not leave a program running that nobody knows to run.
        let work = || async move { this.start_found(&container).await.map_err(Arc::new) };
        match self.starting.run(&key, Vec::new(), work).await {
            Ok(result) => result,
            Err(OperationError::Conflict | OperationError::Lost) => Err(Arc::new(ContainerError::Lost)),
        }
    }

    async fn start_found(&self, container: &Container) -> Result<(), ContainerError> {
        let id = &container.record.id;
        // The monitor must have told what became of an earlier start.
        let monitor = container.monitor().await;
        let state = container.state();
        if !matches!(state, State::Created { .. }) {
            if state.started_at_ns().is_some() && container.inherited.start_unanswered.swap(false, Ordering::Relaxed) {
                return Ok(());
            }
            return Err(ContainerError::WrongState {
                container_id: id.clone(),
                state: state.name(),
                needed: "created",
            });
        }
        let starting = container.starting.lock().await;
        let started_at_ns = now_ns();
        fault::point("start: begun").await?;
        let monitor = monitor?;
        let started = match &container.record.runtime {
            None => monitor.start(id).await,
            Some(runtime) => {
                let run = self.external_run(runtime, &container.record)?;
                monitor.start_external(run, id).await
            }
        };
        match started {
            Ok(()) => {}
            Err(MonitorError::Refused { kind, message, .. }) if exit_code(kind).is_some() => {
                let failed = Exit {
                    code: exit_code(kind).unwrap_or(128),
                    finished_at_ns: now_ns(),
                    oom_killed: false,
                    reason: "StartError".to_owned(),
                    message: message.clone(),
                };
                container.state.send_modify(|state| state.start_failed(failed));
                self.tell_end(container);
                self.record_status(container, ContainerPhase::Exited).await;
                return Err(ContainerError::StartFailed {
                    container_id: id.clone(),
                    message,
                });
            }
            Err(error) => {
                // A monitor that is too late may start it yet: whoever is told that it did not start must find it so.
                if matches!(error, MonitorError::Timeout { .. })
                    && let Err(error) = self.kill_all(container).await
                {
                    tracing::warn!(container_id = %id, %error, "what was not started in time may run yet");
                }
                return Err(ContainerError::monitor("start the program", id)(error));
            }
        }
        fault::point("start: executed").await?;
        let mut allowed = Ok(());
        container
            .state
            .send_modify(|state| allowed = state.started(started_at_ns));
        if allowed.is_err() {
            return Err(ContainerError::WrongState {
                container_id: id.clone(),
                state: container.state().name(),
                needed: "created",
            });
        }
        self.tell(Kind::Started, &container.record);
        drop(starting);
        let phase = match container.state() {
            State::Exited { .. } => ContainerPhase::Exited,
            State::Created { .. } | State::Running { .. } => ContainerPhase::Running,
        };
        self.record_status(container, phase).await;
        fault::point("start: recorded").await?;
        Ok(())
    }
}

/// The exit code of a container whose program could not be executed, as a shell would say it; none if the refusal
/// says nothing about the program.
fn exit_code(kind: FailureKind) -> Option<i32> {
    match kind {
        FailureKind::ProgramNotFound => Some(127),
        FailureKind::ProgramDenied => Some(126),
        FailureKind::Failed => Some(128),
        FailureKind::Invalid
        | FailureKind::NotFound
        | FailureKind::Exists
        | FailureKind::State
        | FailureKind::Unknown => None,
    }
}
