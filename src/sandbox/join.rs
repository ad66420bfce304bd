//! A monitor that did not answer when the daemon came back: its pod is shown as the kernel knows it, and joins later.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::{Sandbox, Sandboxes};
use crate::model::{SandboxId, chain};
use crate::monitor::client::{Client, Events, MonitorError};
use crate::monitor::protocol::Snapshot;
use crate::store::{PodPhase, PodStatus};
use crate::sys::pidfd::{self, Sight};

/// How long all monitors together may take to answer before their pods are shown without them.
pub(super) const GREETING: Duration = Duration::from_millis(500);

/// How often the kernel is asked for the ends that a silent monitor does not tell.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// A monitor that answers, what it knows, and what it will tell.
pub(super) type Connected = (Client, Snapshot, Events);

/// A monitor that is being asked; none in the end if there is no monitor.
pub(super) type Connecting = tokio::task::JoinHandle<Option<Connected>>;

impl Sandboxes {
    /// Asks the monitor of a pod for as long as there is one.
    pub(super) fn greet(&self, id: &SandboxId) -> Connecting {
        let (run_dir, id) = (self.parts.store.pod_run_dir(id), id.clone());
        tokio::spawn(async move {
            loop {
                match Client::connect_patiently(&run_dir).await {
                    Ok(connected) => return Some(connected),
                    Err(error) if shows_no_monitor(&error) => {
                        tracing::debug!(sandbox_id = %id, error = %chain(&error), "no monitor answers");
                        return None;
                    }
                    Err(error) => {
                        tracing::warn!(sandbox_id = %id, error = %chain(&error), "the monitor cannot be asked yet");
                        tokio::time::sleep(LOOK_AGAIN).await;
                    }
                }
            }
        })
    }

    /// Waits in the background for the monitor of a pod that is shown without it.
    pub(super) fn join_later(self: &Arc<Self>, sandbox: Arc<Sandbox>, mut connecting: Connecting) {
        let this = self.clone();
        tracing::warn!(sandbox_id = %sandbox.record.id, "the monitor does not answer: going on without it");
        tokio::spawn(async move {
            let connected = loop {
                match tokio::time::timeout(LOOK_AGAIN, &mut connecting).await {
                    Ok(answer) => break answer.ok().flatten(),
                    Err(_) => this.parts.containers.look_at(&sandbox.record.id).await,
                }
            };
            // Whoever ends the pod does so without the monitor, and is not to be disturbed.
            let _ending = sandbox.ending.lock().await;
            match connected {
                Some((client, _, _)) if !sandbox.monitor.is_silent() => end(&sandbox, &client).await,
                Some(connected) => this.join(&sandbox, connected).await,
                None if sandbox.monitor.is_silent() => this.monitor_gone(&sandbox).await,
                None => {}
            }
        });
    }

    async fn join(self: &Arc<Self>, sandbox: &Arc<Sandbox>, (client, snapshot, events): Connected) {
        tracing::info!(sandbox_id = %sandbox.record.id, "the monitor answers");
        for container in self.parts.containers.of_pod(&sandbox.record.id) {
            self.parts.containers.rejoin(&container, &snapshot).await;
        }
        sandbox.monitor.set(client);
        self.follow(sandbox, events);
        if snapshot.pause.is_none() || snapshot.pause_exit.is_some() {
            self.pause_gone(sandbox).await;
        }
    }

    /// Ends a monitor that does not answer, lest it stay for ever when its pod is gone.
    pub(super) async fn kill_silent_monitor(&self, sandbox: &Sandbox) {
        let id = &sandbox.record.id;
        let Some(pid) = sandbox.status().monitor_pid else {
            return;
        };
        let killed = pidfd::open(pid).and_then(|process| {
            // Looked at after it was opened: the descriptor is of the process that is seen now, or of none.
            let command = std::fs::read(format!("/proc/{pid}/cmdline"))?;
            if command
                .split(|byte| *byte == 0)
                .any(|word| word == id.as_str().as_bytes())
            {
                pidfd::signal(process, libc::SIGKILL)?;
            }
            Ok(())
        });
        if let Err(error) = killed {
            tracing::debug!(sandbox_id = %id, pid, %error, "monitor not ended");
        }
    }
}

/// Whether there is no monitor, or none that can be talked to. That this process has no descriptors or memory left to ask it
/// says nothing of it, and its pod must not die of that.
fn shows_no_monitor(error: &MonitorError) -> bool {
    match error {
        MonitorError::Io { source, .. } => {
            matches!(
                source.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            )
        }
        // It ended under the question; asked again, it is not there.
        MonitorError::Lost => false,
        _ => true,
    }
}

/// What is to be shown of a pod whose monitor is silent: it is ready as long as its pause lives.
pub(super) fn phase_by_sight(status: &PodStatus) -> PodPhase {
    let lives = |pause: crate::store::Process| pidfd::look(pause.pid, pause.start_time) == Sight::Lives;
    match status.phase {
        PodPhase::Ready if !status.pause.is_some_and(lives) => PodPhase::NotReady,
        phase => phase,
    }
}

/// The pod was stopped while its monitor was silent: there is nothing left for it to do.
async fn end(sandbox: &Sandbox, client: &Client) {
    let ended = match client.stop_sandbox().await {
        Ok(()) => client.shutdown().await,
        failed => failed,
    };
    if let Err(error) = ended {
        tracing::debug!(sandbox_id = %sandbox.record.id, error = %chain(&error), "monitor not ended by itself");
    }
}
