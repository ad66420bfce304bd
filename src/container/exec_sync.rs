//! ExecSync: one command in a running container, its output, its exit code.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;

use super::leash::{self, Entry, ExecCgroups, Leash};
use super::spec::Policy;
use super::{Container, ContainerError, Containers, blocking, spec};
use crate::monitor::client::{Client, ExecFds, ExecSpec, RunningExec};

/// The most of each stream that is kept (CRI: ExecSyncRequest); the rest is read and dropped, so that the command
/// neither blocks nor fills the daemon's memory.
pub const EXEC_OUTPUT_LIMIT_BYTES: usize = 16 * 1024 * 1024;

/// How long output may stay silent, once the command has ended, while a process that it left behind holds the pipe.
const DRAIN_IDLE: Duration = Duration::from_millis(100);

/// How long such a process may keep writing into the answer.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);

/// What a command did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ExecOutput {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// 0 to 255; 128 + n for signal n.
    pub exit_code: i32,
}

impl Containers {
    /// Runs `command` in a running container. `timeout` of zero is none; at the timeout, which counts from here, every
    /// process that the command started is killed.
    pub async fn exec_sync(
        &self,
        id: &str,
        command: &[String],
        timeout: Duration,
    ) -> Result<ExecOutput, ContainerError> {
        // One beyond what the clock can name is as good as none.
        let until = Some(timeout).filter(|timeout| !timeout.is_zero());
        let until = until.and_then(|timeout| tokio::time::Instant::now().checked_add(timeout));
        let container = self.find(id)?;
        let policy = exec_policy(&container, command, false)?;
        let mut leash = None;
        let work = async {
            let (monitor, held, entry) = self.enter(&container).await?;
            leash = Some(held);
            self.run_and_collect(&container, &monitor, entry, policy).await
        };
        let outcome = match until {
            None => work.await,
            Some(until) => tokio::time::timeout_at(until, work).await.unwrap_or_else(|_| {
                Err(ContainerError::ExecTimeout {
                    container_id: container.record.id.clone(),
                    command: command.join(" "),
                    seconds: timeout.as_secs() as i64,
                })
            }),
        };
        match (leash, &outcome) {
            (Some(leash), Ok(_)) => leash.ended(),
            (Some(leash), Err(_)) => leash.kill_now().await,
            (None, _) => {}
        }
        outcome
    }

    async fn run_and_collect(
        &self,
        container: &Container,
        monitor: &Client,
        entry: Entry,
        policy: Policy,
    ) -> Result<ExecOutput, ContainerError> {
        let (stdout, stdout_write) = pipe().map_err(ContainerError::path("make a pipe for", "stdout"))?;
        let (stderr, stderr_write) = pipe().map_err(ContainerError::path("make a pipe for", "stderr"))?;
        let fds = ExecFds {
            stdout: Some(stdout_write),
            stderr: Some(stderr_write),
            ..ExecFds::default()
        };
        let running = self.launch_in(container, monitor, entry, policy, fds).await?;
        collect(container, running, stdout, stderr).await
    }

    /// Starts `command` in a running container, in a cgroup of its own. `fds` have all but the cgroup.
    pub(super) async fn launch(
        &self,
        container: &Arc<Container>,
        command: &[String],
        tty: bool,
        fds: ExecFds,
    ) -> Result<(RunningExec, Leash), ContainerError> {
        let policy = exec_policy(container, command, tty)?;
        let (monitor, leash, entry) = self.enter(container).await?;
        let running = self.launch_in(container, &monitor, entry, policy, fds).await?;
        Ok((running, leash))
    }

    /// Makes the cgroups of a command in a running container, whose monitor is there.
    async fn enter(&self, container: &Arc<Container>) -> Result<(Client, Leash, Entry), ContainerError> {
        // Before the cgroups: of a monitor that was silent until now, the commands of an earlier daemon are ended by
        // those that there are.
        let monitor = container.monitor().await?;
        let exec_id = monitor.new_exec_id();
        let made = blocking({
            let (cgroups, container) = (self.parts.cgroups.clone(), container.clone());
            // On its leash at once: the request may be gone by now.
            move || {
                let made = ExecCgroups::make(&cgroups, &container.record, exec_id);
                made.map(|(made, entry)| (Leash::new(made), entry))
            }
        });
        let (leash, entry) = made.await.map_err(|source| ContainerError::Cgroup {
            op: "enter",
            path: container.record.cgroup.clone(),
            source,
        })?;
        Ok((monitor, leash, entry))
    }

    async fn launch_in(
        &self,
        container: &Container,
        monitor: &Client,
        entry: Entry,
        policy: Policy,
        fds: ExecFds,
    ) -> Result<RunningExec, ContainerError> {
        let id = &container.record.id;
        let mut request = ExecSpec {
            container_id: id.to_string(),
            exec_id: Some(entry.exec_id),
            tty: policy.terminal,
            ..ExecSpec::default()
        };
        let mut fds = ExecFds {
            cgroup_dir: entry.cgroup2_dir,
            ..fds
        };
        let running = match &container.record.runtime {
            None => {
                request.policy = self.monitor_policy(&policy)?;
                fds.cgroup_procs = entry.v1_tasks;
                monitor.exec(request, fds).await
            }
            Some(runtime) => {
                let run = self.external_run(runtime, &container.record)?;
                let process = self.external_process(&policy)?;
                request.policy.oom_score_adj = Some(policy.oom_score_adj);
                let in_v2 = self.parts.cgroups.is_v2().then(|| leash::of_command(entry.exec_id));
                monitor.exec_external(run, request, process, in_v2, fds).await
            }
        };
        running.map_err(ContainerError::monitor("run a command", id))
    }
}

/// What `command` is to be in a running container. Refused before anything is made for it.
fn exec_policy(container: &Container, command: &[String], tty: bool) -> Result<Policy, ContainerError> {
    container.check_running()?;
    let mut policy = spec::exec_process(container.policy()?, command, tty)?;
    policy.oom_score_adj = spec::process::oom_score_adj(Some(&container.resources.lock().expect("no panic holds it")))?;
    Ok(policy)
}

/// Reads both streams until the command has ended and its output is complete.
async fn collect(
    container: &Container,
    mut running: RunningExec,
    mut stdout: Receiver,
    mut stderr: Receiver,
) -> Result<ExecOutput, ContainerError> {
    let mut output = ExecOutput::default();
    let (mut out_open, mut err_open) = (true, true);
    let mut exit = None;
    let (mut out_buffer, mut err_buffer) = (Vec::new(), Vec::new());
    let mut drain_until = None;
    loop {
        if exit.is_some() && !out_open && !err_open {
            break;
        }
        let idle = async {
            match drain_until {
                Some(limit) => {
                    tokio::time::sleep_until(std::cmp::min(limit, tokio::time::Instant::now() + DRAIN_IDLE)).await
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            read = read_some(&mut stdout, &mut out_buffer), if out_open => out_open = keep(read, &mut out_buffer, &mut output.stdout),
            read = read_some(&mut stderr, &mut err_buffer), if err_open => err_open = keep(read, &mut err_buffer, &mut output.stderr),
            end = running.exit(), if exit.is_none() => {
                let end = end.map_err(ContainerError::monitor("wait for a command", &container.record.id))?;
                exit = Some(end.code);
                drain_until = Some(tokio::time::Instant::now() + DRAIN_LIMIT);
            }
            () = idle => break,
        }
        if drain_until.is_some_and(|limit| tokio::time::Instant::now() >= limit) {
            break;
        }
    }
    output.exit_code = exit.unwrap_or(255);
    Ok(output)
}

async fn read_some(stream: &mut Receiver, buffer: &mut Vec<u8>) -> io::Result<usize> {
    if buffer.capacity() == 0 {
        buffer.reserve(8 * 1024);
    }
    stream.read_buf(buffer).await
}

/// Keeps what was read, up to the limit. False at the end of the stream.
fn keep(read: io::Result<usize>, buffer: &mut Vec<u8>, kept: &mut Vec<u8>) -> bool {
    let open = matches!(read, Ok(count) if count > 0);
    let room = EXEC_OUTPUT_LIMIT_BYTES - kept.len();
    kept.extend_from_slice(&buffer[..buffer.len().min(room)]);
    buffer.clear();
    open
}

/// A pipe: the daemon's end, which does not block, and the command's, which does.
fn pipe() -> io::Result<(Receiver, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&read, true)?;
    Ok((Receiver::from_owned_fd_unchecked(read)?, write))
}
