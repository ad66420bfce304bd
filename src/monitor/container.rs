//! Containers as the monitor has them, and what can be asked of one that exists.
//!
//! ```text
//! Making -> Created -> Starting -> Running -> Exited
//!    |          \_________\__________________/^
//!    gone (it never was)
//! ```

use std::os::fd::OwnedFd;

use super::birth::{Birth, Sent, failure};
use super::connection::ReplyTo;
use super::oom;
use super::protocol::{
    Answer, ContainerSnapshot, ContainerState, EXITS, Empty, Exit, Failure, FailureKind, Process, Resize, Role, Signal,
    StartContainer,
};
use super::server::Monitor;
use super::stdio::{Output, STDERR, STDOUT};
use crate::oci::line;
use crate::sys::{pidfd, process};

pub enum State {
    Making(Birth),
    /// Waits for the word to start.
    Created(Birth),
    /// Has got the word; its program is not executing yet.
    Starting(Birth),
    Running,
    Exited(Exit),
}

pub struct Container {
    pub key: u32,
    pub id: String,
    pub state: State,
    /// Made by an external runtime, which also starts it.
    pub external: bool,
    /// Absent while `Making`.
    pub process: Option<Process>,
    pub pidfd: Option<OwnedFd>,
    pub output: Output,
    /// The pipe to its standard input.
    pub stdin: Option<OwnedFd>,
    /// Its terminal's master.
    pub terminal: Option<OwnedFd>,
    pub oom: Option<oom::Watch>,
    /// The daemon killed it, or is about to.
    pub killed_by_us: bool,
}

impl Container {
    /// The birth, as long as the program is not executing.
    pub fn birth(&mut self) -> Option<&mut Birth> {
        match &mut self.state {
            State::Making(birth) | State::Created(birth) | State::Starting(birth) => Some(birth),
            State::Running | State::Exited(_) => None,
        }
    }

    /// As the daemon is told; nothing while it is not made yet.
    pub fn snapshot(&self) -> Option<ContainerSnapshot> {
        let (state, exit) = match &self.state {
            State::Making(_) => return None,
            State::Created(_) => (ContainerState::Created, None),
            State::Starting(_) | State::Running => (ContainerState::Running, None),
            State::Exited(exit) => (ContainerState::Exited, Some(*exit)),
        };
        Some(ContainerSnapshot {
            container_id: self.id.clone(),
            process: self.process?,
            state: state as i32,
            exit,
            log_bytes_lost: self.output.log.lost,
        })
    }
}

pub type Outcome = Result<(), Failure>;

impl Monitor {
    /// The container `id`.
    pub fn container(&mut self, id: &str) -> Result<&mut Container, Failure> {
        self.containers
            .iter_mut()
            .find(|container| container.id == id)
            .ok_or_else(|| failure(FailureKind::NotFound, format!("no container {id}")))
    }

    /// Gives a created container the word. It is answered when its program executes.
    pub fn start(&mut self, call: StartContainer, sent: Sent, reply: ReplyTo) -> Outcome {
        let id = call.container_id.as_str();
        if let Some(runtime) = call.runtime {
            return self.start_external(id, runtime, sent, reply);
        }
        let container = self.container(id)?;
        match std::mem::replace(&mut container.state, State::Running) {
            State::Created(mut birth) => {
                birth.reply = Some(reply);
                // When nobody is there to hear it, the line closes and that is answered.
                let _ = line::start(&birth.line);
                container.state = State::Starting(birth);
                Ok(())
            }
            other => {
                container.state = other;
                Err(failure(
                    FailureKind::State,
                    format!("container {id} is not waiting to be started"),
                ))
            }
        }
    }

    /// Signals a container's first process.
    pub fn signal(&mut self, call: &Signal) -> Result<Answer, Failure> {
        let container = self.container(&call.container_id)?;
        if call.signo == libc::SIGKILL || call.announce_only {
            container.killed_by_us = true;
        }
        if !call.announce_only {
            send_signal(container.pidfd.as_ref(), call.signo, &call.container_id)?;
        }
        Ok(Answer::Done(Empty {}))
    }

    /// Goes on logging in another file.
    pub fn reopen_log(&mut self, id: &str, sent: &mut Sent) -> Result<Answer, Failure> {
        let file = sent
            .one(Role::Log)
            .ok_or_else(|| failure(FailureKind::Invalid, "no log came"))?;
        self.container(id)?.output.log.reopen(file);
        Ok(Answer::Done(Empty {}))
    }

    /// Sets the size of a container's terminal.
    pub fn resize(&mut self, call: &Resize) -> Result<Answer, Failure> {
        let container = self.container(&call.container_id)?;
        let terminal = container
            .terminal
            .as_ref()
            .ok_or_else(|| failure(FailureKind::State, "no terminal"))?;
        let cells = |count: u32| u16::try_from(count).unwrap_or(u16::MAX);
        process::set_window_size(
            std::os::fd::AsFd::as_fd(terminal),
            cells(call.columns),
            cells(call.rows),
        )
        .map_err(|e| failure(FailureKind::Failed, e.to_string()))?;
        Ok(Answer::Done(Empty {}))
    }

    /// Copies a container's output to what came, and hands out its input.
    pub fn attach(&mut self, id: &str, sent: &mut Sent, reply: ReplyTo) -> Outcome {
        let number = self.new_key();
        let epoll = self.wire.epoll();
        let container = self.container(id)?;
        let failed = |e: std::io::Error| failure(FailureKind::Failed, format!("attach to container {id}: {e}"));
        let input = container.terminal.as_ref().or(container.stdin.as_ref());
        let input = input.map(|fd| fd.try_clone()).transpose().map_err(failed)?;
        for (role, stream) in [(Role::Stdout, STDOUT), (Role::Stderr, STDERR)] {
            if let Some(fd) = sent.one(role) {
                container.output.watch(stream, fd, number, &epoll).map_err(failed)?;
            }
        }
        self.wire
            .answer(reply, Answer::Done(Empty {}), input.into_iter().collect());
        Ok(())
    }

    /// Closes the monitor's end of a container's standard input.
    pub fn close_stdin(&mut self, id: &str) -> Result<Answer, Failure> {
        self.container(id)?.stdin = None;
        Ok(Answer::Done(Empty {}))
    }

    /// Forgets a container that has exited. Fine if there is none. One that is still being made is given up.
    pub fn forget(&mut self, id: &str) -> Result<Answer, Failure> {
        let Some(at) = self.containers.iter().position(|container| container.id == id) else {
            return Ok(Answer::Done(Empty {}));
        };
        match &mut self.containers[at].state {
            State::Exited(_) => {}
            // Its process, if there is one already, waits on the line and ends when that closes.
            State::Making(birth) => {
                let _ = pidfd::open(birth.maker).and_then(|maker| pidfd::signal(maker, libc::SIGKILL));
                if let Some(reply) = birth.reply.take() {
                    let given_up = failure(FailureKind::Failed, format!("container {id} was given up"));
                    self.wire.answer(reply, Answer::Failure(given_up), Vec::new());
                }
            }
            State::Created(_) | State::Starting(_) | State::Running => {
                return Err(failure(FailureKind::State, format!("container {id} has not exited")));
            }
        }
        self.containers.swap_remove(at);
        match rustix::fs::unlinkat(&self.run_dir, format!("{EXITS}/{id}"), rustix::fs::AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(e) => {
                return Err(failure(
                    FailureKind::Failed,
                    format!("remove the exit record of {id}: {e}"),
                ));
            }
        }
        self.rest();
        Ok(Answer::Done(Empty {}))
    }
}

/// Sends `signo` to a process that may be gone already.
pub fn send_signal(pidfd: Option<&OwnedFd>, signo: i32, whom: &str) -> Outcome {
    let gone = || failure(FailureKind::NotFound, format!("the process of {whom} is gone"));
    match pidfd::signal(pidfd.ok_or_else(gone)?, signo) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(gone()),
        Err(e) => Err(failure(FailureKind::Failed, format!("signal {whom}: {e}"))),
    }
}
