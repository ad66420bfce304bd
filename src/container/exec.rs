//! Exec: a command in a running container whose streams somebody else moves.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::pipe::{PipeFlags, pipe_with};

use super::leash::Leash;
use super::{ContainerError, Containers};
use crate::model::ContainerId;
use crate::monitor::client::{ExecFds, RunningExec};
use crate::sys::process::set_window_size;

/// The streams that a command is to have. With a terminal, stdin and stdout are the terminal and stderr is none.
#[derive(Clone, Copy, Debug)]
pub struct ExecStreams {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

/// A command under way. Dropping it neither ends the command nor waits for it.
pub struct ExecProcess {
    container_id: ContainerId,
    running: RunningExec,
    terminal: Option<OwnedFd>,
    leash: Option<Leash>,
}

/// Our ends of streams, non-blocking. Absent also what there is not.
#[derive(Debug, Default)]
pub struct Pipes {
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
}

impl Containers {
    /// Refuses a container that is not running.
    pub fn check_running(&self, id: &str) -> Result<(), ContainerError> {
        self.find(id)?.check_running()
    }

    /// Starts `command` in a running container.
    pub async fn exec(
        &self,
        id: &str,
        command: &[String],
        streams: ExecStreams,
    ) -> Result<(ExecProcess, Pipes), ContainerError> {
        let container = self.find(id)?;
        let container_id = container.record.id.clone();
        if streams.tty {
            let (mut running, leash) = self.launch(&container, command, true, ExecFds::default()).await?;
            let failed = ContainerError::path("take over the terminal of a command in", container_id.as_str());
            let pipes = terminal_pipes(running.terminal.as_ref(), streams).map_err(failed)?;
            let terminal = running.terminal.take();
            return Ok((
                ExecProcess {
                    container_id,
                    running,
                    terminal,
                    leash: Some(leash),
                },
                pipes,
            ));
        }
        let failed = |stream| ContainerError::path("make a pipe for", stream);
        let mut fds = ExecFds::default();
        let mut pipes = Pipes::default();
        if streams.stdin {
            let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| failed("stdin")(e.into()))?;
            rustix::io::ioctl_fionbio(&write, true).map_err(|e| failed("stdin")(e.into()))?;
            (fds.stdin, pipes.stdin) = (Some(read), Some(write));
        }
        if streams.stdout {
            let (read, write) = output_pipe().map_err(failed("stdout"))?;
            (pipes.stdout, fds.stdout) = (Some(read), Some(write));
        }
        if streams.stderr {
            let (read, write) = output_pipe().map_err(failed("stderr"))?;
            (pipes.stderr, fds.stderr) = (Some(read), Some(write));
        }
        let (running, leash) = self.launch(&container, command, false, fds).await?;
        Ok((
            ExecProcess {
                container_id,
                running,
                terminal: None,
                leash: Some(leash),
            },
            pipes,
        ))
    }
}

impl ExecProcess {
    /// Waits for its end: 0 to 255, 128 + n for signal n. May be cancelled and called again.
    pub async fn ended(&mut self) -> Result<i32, ContainerError> {
        let exit = self
            .running
            .exit()
            .await
            .map_err(ContainerError::monitor("wait for a command", &self.container_id))?;
        Ok(exit.code)
    }

    /// Sets the size of its terminal, in characters. Without a terminal nothing happens.
    pub fn resize(&self, columns: u16, rows: u16) {
        if let Some(terminal) = &self.terminal
            && let Err(error) = set_window_size(terminal.as_fd(), columns, rows)
        {
            tracing::debug!(%error, "a command's terminal keeps its size");
        }
    }

    /// Lets go of the terminal. Once its pipes are dropped too, the kernel hangs it up. False without a terminal.
    pub fn let_go(&mut self) -> bool {
        self.terminal.take().is_some()
    }
}

impl Drop for ExecProcess {
    fn drop(&mut self) {
        if let Some(leash) = self.leash.take() {
            leash.ended();
        }
    }
}

fn terminal_pipes(terminal: Option<&OwnedFd>, streams: ExecStreams) -> io::Result<Pipes> {
    let terminal = terminal.ok_or(io::ErrorKind::NotFound)?;
    rustix::io::ioctl_fionbio(terminal, true)?;
    Ok(Pipes {
        stdin: streams.stdin.then(|| terminal.try_clone()).transpose()?,
        // Read even if nobody wants it: what nobody reads blocks whoever writes.
        stdout: Some(terminal.try_clone()?),
        stderr: None,
    })
}

/// A pipe for output: our end, which does not block, and the other, which does.
pub(super) fn output_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&read, true)?;
    Ok((read, write))
}
