//! After a restart of the daemon: a container as its record, its monitor and its exit record know it.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock};

use prost::Message;
use tokio::sync::watch;

use super::leash::ExecCgroups;
use super::{Container, ContainerError, Containers, Inherited, State, blocking, now_ns};
use crate::cri;
use crate::events::Kind;
use crate::model::{ContainerId, SandboxId};
use crate::monitor::Access;
use crate::monitor::protocol::{ContainerSnapshot, ContainerState, Snapshot};
use crate::store::{ContainerPhase, ContainerRecord, ContainerStatus, Exit, Process, StoredContainer};
use crate::sys::pidfd::{self, Sight};

impl Containers {
    /// Takes over a container of an earlier daemon. `snapshot` is what its pod's monitor says, if one answers; if it has
    /// yet to, what the kernel shows counts until [`Containers::rejoin`]. What was never answered for is undone, and a
    /// removal that was cut short is finished, in the background.
    pub async fn adopt(
        self: &Arc<Self>,
        stored: StoredContainer,
        monitor: &Access,
        snapshot: Option<&Snapshot>,
        same_boot: bool,
    ) {
        let StoredContainer { mut record, status } = stored;
        let known = snapshot.and_then(|snapshot| snapshot_of(snapshot, &record));
        let state = match (known, &status.exit) {
            (_, Some(exit)) => exited(status.started_at_ns, exit.clone()),
            (Some(known), None) => told(known, status.started_at_ns),
            (None, None) if monitor.is_silent() => self.seen(&record, &status),
            (None, None) => {
                let why = if same_boot {
                    "the pod's monitor was lost"
                } else {
                    "the node was rebooted"
                };
                let exit = self
                    .recorded_exit(&record)
                    .unwrap_or_else(|| Exit::unknown(why, now_ns()));
                exited(status.started_at_ns, exit)
            }
        };
        // A record whose policy cannot be read belongs to another daemon: the container runs, only exec into it fails.
        let policy = record.policy.take();
        let policy = match policy.map(|policy| serde_json::from_str(policy.get())).transpose() {
            Ok(policy) => policy,
            Err(error) => {
                tracing::warn!(container_id = %record.id, %error, "process policy cannot be read: no exec");
                None
            }
        };
        let updated = status
            .resources
            .as_deref()
            .and_then(|bytes| cri::LinuxContainerResources::decode(bytes).ok());
        let asked = || record.config.linux.as_ref().and_then(|linux| linux.resources.clone());
        let inherited = Inherited {
            unfinished: matches!(status.phase, ContainerPhase::Creating | ContainerPhase::Removing),
            unanswered: (status.phase == ContainerPhase::Created).into(),
            start_unanswered: (status.phase != ContainerPhase::Exited).into(),
        };
        let container = Arc::new(Container {
            inherited,
            listing: OnceLock::default(),
            state: watch::Sender::new(state),
            resources: Mutex::new(updated.or_else(asked).unwrap_or_default()),
            updating: tokio::sync::Mutex::default(),
            policy,
            monitor: monitor.clone(),
            starting: tokio::sync::Mutex::default(),
            end_told: false.into(),
            leases: [&record.image_id]
                .into_iter()
                .chain(record.volume_images.values())
                .filter_map(|image_id| self.parts.images.hold(image_id))
                .collect(),
            record,
        });
        if !monitor.is_silent() {
            self.end_execs(&container, snapshot).await;
        }
        self.take_in(&container);
        match status.phase {
            ContainerPhase::Creating | ContainerPhase::Removing => self.finish_removal(container),
            ContainerPhase::Created | ContainerPhase::Running => {
                if container.state().exit().is_some() {
                    if same_boot {
                        self.kill_the_rest_later(&container);
                    }
                    self.record_status(&container, ContainerPhase::Exited).await;
                }
            }
            // The daemon may have died over it.
            ContainerPhase::Exited if same_boot => self.kill_the_rest_later(&container),
            ContainerPhase::Exited => {}
        }
    }

    /// What the kernel shows of a container whose monitor is silent.
    fn seen(&self, record: &ContainerRecord, status: &ContainerStatus) -> State {
        let unseen = || Exit::unknown("the daemon died before it ran", now_ns());
        let exit = match status.process {
            None => Some(unseen()),
            Some(process) => self.recorded_exit(record).or_else(|| exit_by_sight(process)),
        };
        match (exit, status.process) {
            (None, Some(process)) if status.started_at_ns > 0 => State::Running {
                process,
                started_at_ns: status.started_at_ns,
            },
            (None, Some(process)) => State::Created { process },
            (exit, _) => exited(status.started_at_ns, exit.unwrap_or_else(unseen)),
        }
    }

    /// Takes in the ends of a pod's containers that the kernel shows while its monitor is silent.
    pub async fn look_at(self: &Arc<Self>, sandbox_id: &SandboxId) {
        for container in self.of_pod(sandbox_id) {
            let Some(process) = container.state().process().filter(|_| container.monitor.is_silent()) else {
                continue;
            };
            let exit = match pidfd::look(process.pid, process.start_time) {
                Sight::Lives => None,
                // Its monitor has seen how it ended: what it has recorded, or will tell, is the truth.
                Sight::Gone => self.recorded_exit(&container.record),
                Sight::Ended(_) => exit_by_sight(process),
            };
            if let Some(exit) = exit {
                self.exited(&container.record.id, exit).await;
            }
        }
    }

    /// Takes in what a monitor says that was silent until now.
    pub async fn rejoin(self: &Arc<Self>, container: &Arc<Container>, snapshot: &Snapshot) {
        let record = &container.record;
        self.end_execs(container, Some(snapshot)).await;
        let now = container.state();
        let state = match snapshot_of(snapshot, record) {
            Some(known) => told(known, now.started_at_ns().unwrap_or(0)),
            None => {
                let exit = self.recorded_exit(record);
                let exit = exit.unwrap_or_else(|| Exit::unknown("the pod's monitor does not know it", now_ns()));
                exited(now.started_at_ns().unwrap_or(0), exit)
            }
        };
        match (now, state) {
            (_, State::Exited { exit, .. }) => self.exited(&record.id, exit).await,
            (State::Created { .. }, State::Running { started_at_ns, .. }) => {
                // An end that was seen meanwhile stays.
                container.state.send_modify(|state| drop(state.started(started_at_ns)));
                self.record_status(container, ContainerPhase::Running).await;
                self.tell(Kind::Started, record);
            }
            _ => {}
        }
    }

    /// Ends the commands in the container that an earlier daemon waited for, in the background; later ones are safe.
    async fn end_execs(&self, container: &Arc<Container>, snapshot: Option<&Snapshot>) {
        let (cgroups, container) = (self.parts.cgroups.clone(), container.clone());
        let execs = snapshot.iter().flat_map(|snapshot| &snapshot.execs);
        let under_way: Vec<u64> = execs.map(|exec| exec.exec_id).collect();
        let path = container.record.cgroup.clone();
        let found = blocking(move || ExecCgroups::find(&cgroups, &container.record)).await;
        tokio::task::spawn_blocking(move || {
            if let Err(error) = found.and_then(|found| ExecCgroups::end_found(found, &under_way)) {
                tracing::warn!(cgroup = path, %error, "commands of an earlier daemon remain");
            }
        });
    }

    /// What a request finds of its first try, over which an earlier daemon died: the container, if it was made before
    /// anyone was told. If it was not, it is removed here, and its name with it.
    pub(super) async fn inherit(
        self: &Arc<Self>,
        name: &str,
        config: &cri::ContainerConfig,
    ) -> Result<Option<ContainerId>, ContainerError> {
        let holder = self.names.lock().expect("no panic holds it").get(name).cloned();
        let Some(container) = holder.and_then(|id| self.find(id.as_str()).ok()) else {
            return Ok(None);
        };
        if container.inherited.unfinished {
            self.remove_found(&container).await?;
            return Ok(None);
        }
        let waits = container.record.config == *config && matches!(container.state(), State::Created { .. });
        let is_first = waits && container.inherited.unanswered.swap(false, Ordering::Relaxed);
        Ok(is_first.then(|| container.record.id.clone()))
    }
}

fn snapshot_of<'a>(snapshot: &'a Snapshot, record: &ContainerRecord) -> Option<&'a ContainerSnapshot> {
    let mut containers = snapshot.containers.iter();
    containers.find(|container| container.container_id == record.id.as_str())
}

/// How a process ended, as the kernel shows it; none while it lives.
pub(super) fn exit_by_sight(process: Process) -> Option<Exit> {
    match pidfd::look(process.pid, process.start_time) {
        Sight::Lives => None,
        Sight::Ended(status) => Some(Exit {
            code: match status & 0x7f {
                0 => (status >> 8) & 0xff,
                signal => 128 + signal,
            },
            finished_at_ns: now_ns(),
            oom_killed: false,
            reason: String::new(),
            message: "its end was seen while the pod's monitor did not answer".to_owned(),
        }),
        Sight::Gone => Some(Exit::unknown(
            "it ended while the pod's monitor did not answer",
            now_ns(),
        )),
    }
}

fn exited(started_at_ns: i64, exit: Exit) -> State {
    State::Exited {
        started_at_ns: (started_at_ns > 0).then_some(started_at_ns),
        exit,
    }
}

/// The state that a monitor tells. A start that the daemon did not live to record has happened all the same.
fn told(known: &ContainerSnapshot, started_at_ns: i64) -> State {
    let process = Process {
        pid: known.process.pid,
        start_time: known.process.start_time,
    };
    match (known.state(), known.exit) {
        (ContainerState::Exited, Some(exit)) => exited(started_at_ns, exit.into()),
        (ContainerState::Running, _) => State::Running {
            process,
            started_at_ns: if started_at_ns > 0 { started_at_ns } else { now_ns() },
        },
        (ContainerState::Created | ContainerState::Exited, _) => State::Created { process },
    }
}
