//! StartContainer: the waiting first process executes its program.

use super::{ContainerError, Containers, State, now_ns};
use crate::events::Kind;
use crate::fault;
use crate::monitor::client::MonitorError;
use crate::monitor::protocol::FailureKind;
use crate::store::{ContainerPhase, Exit};

impl Containers {
    /// Starts a created container. A program that cannot be executed is an error, and the container has exited with
    /// the code a shell would give: 127 if there is no such program, 126 if it cannot be executed.
    pub async fn start(&self, id: &str) -> Result<(), ContainerError> {
        let container = self.find(id)?;
        let id = &container.record.id;
        let state = container.state();
        if !matches!(state, State::Created { .. }) {
            return Err(ContainerError::WrongState {
                container_id: id.clone(),
                state: state.name(),
                needed: "created",
            });
        }
        let started_at_ns = now_ns();
        fault::point("start: begun").await?;
        let monitor = container.monitor()?;
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
                self.tell(Kind::Stopped, &container.record);
                self.record_status(&container, ContainerPhase::Exited).await;
                return Err(ContainerError::StartFailed {
                    container_id: id.clone(),
                    message,
                });
            }
            Err(error) => return Err(ContainerError::monitor("start the program", id)(error)),
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
        let phase = match container.state() {
            State::Exited { .. } => ContainerPhase::Exited,
            State::Created { .. } | State::Running { .. } => ContainerPhase::Running,
        };
        self.record_status(&container, phase).await;
        fault::point("start: recorded").await?;
        self.tell(Kind::Started, &container.record);
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
