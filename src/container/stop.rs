//! StopContainer: the stop signal, the grace, then KILL for every process of the container.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Container, ContainerError, Containers, State, blocking};
use crate::fault;
use crate::sys::cgroup::Cgroup;

/// How long the end of a killed container may take to be seen: a process in uninterruptible sleep ends when the
/// kernel lets it, and the caller asks again.
const KILL_DEADLINE: Duration = Duration::from_secs(30);

impl Containers {
    /// Stops a container and returns once it has ended. Fine if it has ended, or is not known. A second stop with a
    /// shorter grace shortens the wait of the first: each kills at its own deadline.
    pub async fn stop(&self, id: &str, grace: Duration) -> Result<(), ContainerError> {
        let container = match self.find(id) {
            Ok(container) => container,
            Err(ContainerError::NotFound { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        self.stop_found(&container, grace).await
    }

    /// As [`Containers::stop`], of a container at hand.
    pub async fn stop_found(&self, container: &Arc<Container>, grace: Duration) -> Result<(), ContainerError> {
        let mut end = container.state.subscribe();
        match container.state() {
            State::Exited { .. } => return Ok(()),
            // It has never run a program that could make use of a grace.
            State::Created { .. } => {}
            State::Running { .. } if grace.is_zero() => {}
            State::Running { .. } => {
                let id = &container.record.id;
                let signal = container.record.stop_signal;
                if let Err(error) = container.monitor()?.signal(id, signal).await {
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
                if in_time {
                    return Ok(());
                }
            }
        }
        self.kill_all(container).await?;
        fault::point("container stop: killed").await?;
        let ended = end.wait_for(|state| state.exit().is_some());
        match tokio::time::timeout(KILL_DEADLINE, ended).await {
            Ok(_) => Ok(()),
            Err(_) => Err(ContainerError::Unkillable {
                container_id: container.record.id.clone(),
            }),
        }
    }

    /// Kills every process of the container: with a shared pid namespace nothing else ends with the first one.
    pub(super) async fn kill_all(&self, container: &Container) -> Result<(), ContainerError> {
        let id = &container.record.id;
        // The monitor must know who killed it, or the end looks like one by the kernel's OOM killer.
        if let Ok(monitor) = container.monitor()
            && let Err(error) = monitor.announce_kill(id).await
        {
            tracing::debug!(container_id = %id, %error, "kill not announced");
        }
        let (cgroups, path) = (self.parts.cgroups.clone(), container.record.cgroup.clone());
        let told = path.clone();
        let left = blocking(move || Cgroup::open(&cgroups, &path)?.kill()).await;
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
