//! ExecSync: one command in a running container, its output, its exit code.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;

use super::{Container, ContainerError, Containers, blocking, now_ns, spec};
use crate::monitor::client::{ExecFds, ExecSpec, RunningExec};
use crate::sys::cgroup::{Cgroup, Child};

/// The most of each stream that is kept (CRI: ExecSyncRequest); the rest is read and dropped, so that the command
/// neither blocks nor fills the daemon's memory.
pub const EXEC_OUTPUT_LIMIT_BYTES: usize = 16 * 1024 * 1024;

/// How long output may stay silent, once the command has ended, while a process that it left behind holds the pipe.
const DRAIN_IDLE: Duration = Duration::from_millis(100);

/// How long such a process may keep writing into the answer.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);

/// How the cgroups of commands begin, below their container's.
const EXEC_CGROUP: &str = "exec-";

/// How long a killed command may take to end.
const KILL_PATIENCE: Duration = Duration::from_secs(2);

/// What a command did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ExecOutput {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// 0 to 255; 128 + n for signal n.
    pub exit_code: i32,
}

/// Kills the command's whole tree unless it is told that the command has ended: the caller's deadline, a cancelled
/// request and an error on the way all end it.
pub(super) struct Leash {
    cgroup: Option<Child>,
}

impl Leash {
    /// The command ended by itself. What it left running in the background may go on, as after any exec.
    pub(super) fn ended(mut self) {
        if let Some(cgroup) = self.cgroup.take() {
            tokio::task::spawn_blocking(move || {
                // Processes that it left behind are the container's now.
                if let Err(error) = cgroup.dissolve() {
                    tracing::debug!(%error, "the cgroup of a command stays until its container goes");
                }
            });
        }
    }
}

impl Drop for Leash {
    fn drop(&mut self) {
        let Some(cgroup) = self.cgroup.take() else {
            return;
        };
        tokio::task::spawn_blocking(move || {
            if let Err(error) = end(&cgroup) {
                tracing::warn!(%error, "processes of an ended command remain");
            }
        });
    }
}

impl Containers {
    /// Runs `command` in a running container. `timeout` of zero is none; at the timeout every process that the
    /// command started is killed.
    pub async fn exec_sync(
        &self,
        id: &str,
        command: &[String],
        timeout: Duration,
    ) -> Result<ExecOutput, ContainerError> {
        let container = self.find(id)?;
        let (running, leash, stdout, stderr) = self.exec_piped(&container, command).await?;
        let finish = collect(&container, running, stdout, stderr);
        let outcome = if timeout.is_zero() {
            finish.await
        } else {
            match tokio::time::timeout(timeout, finish).await {
                Ok(outcome) => outcome,
                Err(_) => Err(ContainerError::ExecTimeout {
                    container_id: container.record.id.clone(),
                    command: command.join(" "),
                    seconds: timeout.as_secs() as i64,
                }),
            }
        };
        match outcome {
            Ok(output) => {
                leash.ended();
                Ok(output)
            }
            Err(error) => {
                leash.kill_now().await;
                Err(error)
            }
        }
    }

    async fn exec_piped(
        &self,
        container: &Container,
        command: &[String],
    ) -> Result<(RunningExec, Leash, Receiver, Receiver), ContainerError> {
        let (stdout, stdout_write) = pipe().map_err(ContainerError::path("make a pipe for", "stdout"))?;
        let (stderr, stderr_write) = pipe().map_err(ContainerError::path("make a pipe for", "stderr"))?;
        let fds = ExecFds {
            stdout: Some(stdout_write),
            stderr: Some(stderr_write),
            ..ExecFds::default()
        };
        let (running, leash) = self.launch(container, command, false, fds).await?;
        Ok((running, leash, stdout, stderr))
    }

    /// Starts `command` in a running container, in a cgroup of its own. `fds` have all but the cgroup.
    pub(super) async fn launch(
        &self,
        container: &Container,
        command: &[String],
        tty: bool,
        fds: ExecFds,
    ) -> Result<(RunningExec, Leash), ContainerError> {
        // Later than those of an earlier daemon, whose commands may have left something running.
        static NEXT: LazyLock<AtomicU64> = LazyLock::new(|| AtomicU64::new(now_ns().unsigned_abs()));
        let id = &container.record.id;
        container.check_running()?;
        let mut policy = spec::exec_process(container.policy()?, command, tty)?;
        policy.oom_score_adj =
            spec::process::oom_score_adj(Some(&container.resources.lock().expect("no panic holds it")))?;
        let monitor = container.monitor().await?;
        let name = format!("{EXEC_CGROUP}{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let in_v2 = self.parts.cgroups.is_v2().then(|| name.clone());
        let (cgroups, path) = (self.parts.cgroups.clone(), container.record.cgroup.clone());
        let entered = blocking(move || {
            let cgroup = Cgroup::open(&cgroups, &path)?;
            // Where no cgroup2 is mounted a command has no cgroup of its own: its first process is all that a timeout
            // can kill.
            let child = match cgroup.child(&name) {
                Err(error) if error.kind() == io::ErrorKind::Unsupported => None,
                child => Some(child?),
            };
            let mut join = cgroup.join_fds()?;
            if let Some(child) = &child {
                join.directory = Some(child.directory_fd()?);
            }
            io::Result::Ok((child, join))
        });
        let (cgroup, join) = entered.await.map_err(|source| ContainerError::Cgroup {
            op: "enter",
            path: container.record.cgroup.clone(),
            source,
        })?;
        let leash = Leash { cgroup };
        let mut request = ExecSpec {
            container_id: id.to_string(),
            tty,
            ..ExecSpec::default()
        };
        let mut fds = ExecFds {
            cgroup_dir: join.directory,
            ..fds
        };
        let running = match &container.record.runtime {
            None => {
                request.policy = self.monitor_policy(&policy)?;
                fds.cgroup_procs = join.tasks;
                monitor.exec(request, fds).await
            }
            Some(runtime) => {
                let run = self.external_run(runtime, &container.record)?;
                let process = self.external_process(&policy)?;
                request.policy.oom_score_adj = Some(policy.oom_score_adj);
                monitor.exec_external(run, request, process, in_v2, fds).await
            }
        };
        let running = running.map_err(ContainerError::monitor("run a command", id))?;
        Ok((running, leash))
    }
}

/// The cgroups of commands in the container's cgroup.
pub(super) fn exec_cgroups(cgroup: &Cgroup) -> io::Result<Vec<Child>> {
    let mut children = cgroup.children()?;
    let is_exec = |name: &std::ffi::OsStr| name.to_string_lossy().starts_with(EXEC_CGROUP);
    children.retain(|child| child.path().file_name().is_some_and(is_exec));
    Ok(children)
}

/// Ends the commands of an earlier daemon: nobody waits for them, nor kills them at their timeout. `running` are their
/// first processes; what a command that has ended left behind goes on, as it would have.
pub(super) fn end_execs(children: Vec<Child>, running: &[i32]) -> io::Result<()> {
    for child in children {
        let pids = child.pids()?;
        if running.iter().any(|pid| pids.contains(pid)) {
            end(&child)?;
        } else {
            child.dissolve()?;
        }
    }
    Ok(())
}

/// Kills everybody in the cgroup of a command, waits for that and removes it.
fn end(cgroup: &Child) -> io::Result<()> {
    cgroup.kill()?;
    cgroup.wait_empty(KILL_PATIENCE)?;
    cgroup.remove()
}

impl Leash {
    /// As dropping it, but the processes are dead when this returns.
    async fn kill_now(mut self) {
        if let Some(cgroup) = self.cgroup.take() {
            let killed = blocking(move || end(&cgroup)).await;
            if let Err(error) = killed {
                tracing::warn!(%error, "processes of an ended command remain");
            }
        }
    }
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
