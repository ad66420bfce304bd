//! Starts a process in a container that runs.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use super::birth::{self, Birth, Outfit, Progress, Sent, failure, policy};
use super::connection::ReplyTo;
use super::container::{Outcome, State, send_signal};
use super::create::numbers;
use super::protocol::{Answer, Empty, Exec, ExecSnapshot, Failure, FailureKind, Process, Role, SignalExec};
use super::server::Monitor;
use crate::oci::line::Refusal;
use crate::oci::{self, Joining, Namespaces, Stdio, line};
use crate::sys::pidfd;
use crate::sys::process::{self, Forked, SingleThread};

/// A process in a container, beside its first one.
pub struct Running {
    pub key: u32,
    pub exec_id: u64,
    container_id: String,
    /// Present until its program executes.
    pub birth: Option<Birth>,
    pub process: Option<Process>,
    pub pidfd: Option<OwnedFd>,
}

impl Running {
    /// As the daemon is told.
    pub fn snapshot(&self) -> ExecSnapshot {
        ExecSnapshot {
            exec_id: self.exec_id,
            container_id: self.container_id.clone(),
            process: self.process,
        }
    }
}

impl Monitor {
    /// Starts a process. It is answered when its program executes.
    pub fn exec(&mut self, mut call: Exec, mut sent: Sent, reply: ReplyTo) -> Outcome {
        let failed = |e: io::Error| failure(FailureKind::Failed, format!("start a process: {e}"));
        if self.execs.iter().any(|exec| exec.exec_id == call.exec_id) {
            return Err(failure(
                FailureKind::Exists,
                format!("there is an exec {}", call.exec_id),
            ));
        }
        let container = self.container(&call.container_id)?;
        let (State::Running, Some(target)) = (&container.state, container.process) else {
            return Err(failure(
                FailureKind::State,
                format!("container {} is not running", call.container_id),
            ));
        };
        if let Some(external) = call.external.take() {
            return self.exec_external(call, external, sent, reply);
        }
        let call_policy = call.policy.ok_or_else(|| failure(FailureKind::Invalid, "no policy"))?;
        // The container's process is not reaped yet, so its pid is its own.
        // What it has is asked of the kernel: nothing that might be forgotten here may make a command root of the node.
        let user_namespace = !shares_user_namespace(target.pid).map_err(failed)?;
        let target = pidfd::open(target.pid).map_err(failed)?;
        let stdio = Stdio {
            stdin: sent.one(Role::Stdin),
            stdout: sent.one(Role::Stdout),
            stderr: sent.one(Role::Stderr),
            terminal: call.tty,
        };
        if let Some(uid) = self.sandbox.outer_uid(call_policy.uid) {
            birth::give_pipes(&stdio, uid).map_err(failed)?;
        }
        let (ours, theirs) = process::message_pair().map_err(failed)?;
        // It need not wait for anything.
        line::start(&ours).map_err(failed)?;
        let outfit = Outfit {
            line: theirs,
            cgroup_procs: sent.all(Role::CgroupProcs),
            cgroup_dir: sent.one(Role::CgroupDirectory),
            oom_score_adj: call_policy.oom_score_adj,
            limits: birth::limits(&call_policy.limits),
        };
        let joining = Joining {
            target,
            user_namespace,
            stdio,
            policy: policy(call_policy),
        };
        let maker = match self.single.fork_into(outfit.cgroup_dir.as_ref()).map_err(failed)? {
            Forked::Child => join(outfit, joining, &self.single),
            Forked::Parent(maker) => maker,
        };
        drop((outfit, joining));

        self.expect_exec(call.exec_id, call.container_id, Birth::new(ours, maker, reply))
            .map_err(failed)
    }

    /// Listens to the birth of an exec.
    pub fn expect_exec(&mut self, exec_id: u64, container_id: String, birth: Birth) -> io::Result<()> {
        let key = self.new_key();
        self.wire.listen_to_birth(&birth.line, key)?;
        self.execs.push(Running {
            key,
            exec_id,
            container_id,
            birth: Some(birth),
            process: None,
            pidfd: None,
        });
        Ok(())
    }

    /// Signals a process that `exec` started.
    pub fn signal_exec(&mut self, call: &SignalExec) -> Result<Answer, Failure> {
        let exec = self.execs.iter().find(|exec| exec.exec_id == call.exec_id);
        let exec = exec.ok_or_else(|| failure(FailureKind::NotFound, format!("no exec {}", call.exec_id)))?;
        send_signal(exec.pidfd.as_ref(), call.signo, "the exec")?;
        Ok(Answer::Done(Empty {}))
    }

    /// The birth of exec number `at` has news.
    pub fn exec_born(&mut self, at: usize) {
        let exec = &mut self.execs[at];
        let Some(birth) = &mut exec.birth else { return };
        match birth.hear() {
            Progress::Nothing => {}
            Progress::Made => {
                let Some(process) = birth.process else { return };
                exec.process = Some(process);
                exec.pidfd = pidfd::open(process.pid).ok();
                // It may be executing already, or gone.
                self.exec_born(at);
                self.adopt_stray(process.pid);
            }
            done => self.exec_done(at, done),
        }
    }

    /// The birth of exec number `at` is over.
    pub fn exec_done(&mut self, at: usize, progress: Progress) {
        let exec = &mut self.execs[at];
        let Some(mut birth) = exec.birth.take() else { return };
        self.wire.ignore(&birth.line);
        let terminal = birth.terminal.take();
        match (progress, birth.reply, birth.process) {
            (Progress::Failed(failure), reply, _) => {
                // Its end, if it has a process, is of no interest: it was never started for the daemon.
                self.execs.swap_remove(at);
                if let Some(reply) = reply {
                    self.wire.answer(reply, Answer::Failure(failure), Vec::new());
                }
            }
            (_, Some(reply), Some(process)) => {
                self.wire
                    .answer(reply, Answer::Process(process), terminal.into_iter().collect());
            }
            _ => {}
        }
    }
}

fn shares_user_namespace(pid: i32) -> io::Result<bool> {
    let ours = std::fs::metadata("/proc/self/ns/user")?;
    let theirs = std::fs::metadata(format!("/proc/{pid}/ns/user"))?;
    use std::os::unix::fs::MetadataExt;
    Ok((ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino()))
}

fn join(outfit: Outfit, joining: Joining, single: &SingleThread) -> ! {
    let mut keep = numbers(&joining.stdio, &Namespaces::new());
    keep.push(joining.target.as_raw_fd());
    let line = outfit.put_on(&keep);
    if let Err(error) = oci::join::run(joining, &line, single) {
        line::say_refused(&line, Refusal::Failed, &oci::chain(&error));
    }
    process::exit_now(0)
}
