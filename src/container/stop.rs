//! StopContainer: the stop signal, the grace, then KILL for every process of the container.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::recover::exit_by_sight;
use super::{Container, ContainerError, Containers, State, blocking, leash, spec};
use crate::fault;
use crate::model::chain;
use crate::sys::cgroup::Cgroup;
use crate::sys::pidfd;

/// How long the end of a killed container may take to be seen: a process in uninterruptible sleep ends when the
/// kernel lets it, and the caller asks again.
const KILL_DEADLINE: Duration = Duration::from_secs(30);

impl Containers {
    /// Stops a container and returns once it has ended. Fine if it has ended, or is not known. A second stop with a
    /// shorter grace shortens the wait of the first: each kills at its own deadline.
    pub async fn stop(self: &Arc<Self>, id: &str, grace: Duration) -> Result<(), ContainerError> {
        let container = match self.find(id) {
            Ok(container) => container,
            Err(ContainerError::NotFound { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        self.stop_found(&container, grace).await
    }

    /// As [`Containers::stop`], of a container at hand.
    pub async fn stop_found(
        self: &Arc<Self>,
        container: &Arc<Container>,
        grace: Duration,
    ) -> Result<(), ContainerError> {
        let mut end = container.state.subscribe();
        let ends_at_once = spec::namespaces::ends_with_its_first_process(&container.record.config);
        match container.state() {
            State::Exited { .. } if ends_at_once => return Ok(()),
            State::Exited { .. } => {}
            // It has never run a program that could make use of a grace.
            State::Created { .. } => {}
            State::Running { .. } if grace.is_zero() => {}
            State::Running { .. } => {
                let id = &container.record.id;
                let signal = container.record.stop_signal;
                if let Err(error) = signal_first(container, signal).await {
                    tracing::debug!(container_id = %id, signal, %error, "stop signal not delivered");
                }
                fault::point("container stop: signalled").await?;
                // A grace beyond what the clock can name is as good as for ever.
                let deadline = Instant::now().checked_add(grace);
                let ended = end.wait_for(|state| state.exit().is_some());
                let in_time = match deadline {
                    Some(deadline) => tokio::time::timeout_at(deadline, ended).await.is_ok(),
                    None => ended.await.is_ok(),
                };
                if in_time && ends_at_once {
                    return Ok(());
                }
            }
        }
        self.kill_all(container).await?;
        fault::point("container stop: killed").await?;
        if container.monitor.is_silent() {
            self.end_by_sight(container).await;
        } else if container.monitor.client().is_none() {
            // Nobody will tell its end.
            self.orphaned(&container.record.id).await;
        }
        let ended = end.wait_for(|state| state.exit().is_some());
        match tokio::time::timeout(KILL_DEADLINE, ended).await {
            Ok(_) => Ok(()),
            Err(_) => Err(ContainerError::Unkillable {
                container_id: container.record.id.clone(),
            }),
        }
    }

    /// Nobody tells the end of a container whose monitor is stopped: what the kernel shows of it counts.
    async fn end_by_sight(self: &Arc<Self>, container: &Container) {
        let Some(process) = container.state().process() else {
            return;
        };
        let deadline = Instant::now() + KILL_DEADLINE;
        while Instant::now() < deadline && container.monitor.is_silent() {
            if let Some(exit) = exit_by_sight(process) {
                let exit = self.recorded_exit(&container.record).unwrap_or(exit);
                return self.exited(&container.record.id, exit).await;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Kills every process of the container: with a shared pid namespace nothing else ends with the first one.
    pub(super) async fn kill_all(&self, container: &Container) -> Result<(), ContainerError> {
        let id = &container.record.id;
        // The monitor must know who killed it, or the end looks like one by the kernel's OOM killer.
        if let Some(monitor) = container.monitor.client()
            && let Err(error) = monitor.announce_kill(id).await
        {
            tracing::debug!(container_id = %id, %error, "kill not announced");
        }
        let (cgroups, path) = (self.parts.cgroups.clone(), container.record.cgroup.clone());
        let told = path.clone();
        let external = container.record.runtime.is_some().then(|| container.record.clone());
        let left = blocking(move || {
            // What remains of them ends with the pod; the container is killed all the same.
            if let Some(record) = external
                && let Err(error) = leash::end_runtimes(&cgroups, &record)
            {
                tracing::warn!(container_id = %record.id, %error, "a runtime that starts a command remains");
            }
            Cgroup::open(&cgroups, &path)?.kill()
        })
        .await;
        match left {
            Ok(left) if left.is_empty() => Ok(()),
            Ok(_) => Err(ContainerError::Unkillable {
                container_id: id.clone(),
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(ContainerError::Cgroup {
                op: "kill",
                path: told,
                source,
            }),
        }
    }
}

/// Signals the container's first process: by the monitor, or without one that does not answer.
async fn signal_first(container: &Container, signal: i32) -> Result<(), String> {
    match (container.monitor.client(), container.state().process()) {
        (Some(monitor), _) => {
            let signalled = monitor.signal(&container.record.id, signal).await;
            signalled.map_err(|error| chain(&error))
        }
        (None, Some(process)) => {
            let opened = pidfd::open(process.pid).map_err(|error| error.to_string())?;
            // Looked at after it was opened: the descriptor is of the process that is seen now, or of none.
            match pidfd::look(process.pid, process.start_time) {
                pidfd::Sight::Lives => pidfd::signal(opened, signal).map_err(|error| error.to_string()),
                pidfd::Sight::Ended(_) | pidfd::Sight::Gone => Err("it has ended".to_owned()),
            }
        }
        (None, None) => Err("it has ended".to_owned()),
    }
}
