//! Containers of external OCI runtimes: each run of one is in a forked child, as libcontainer's are.
//!
//! The monitor is the parent of what a runtime leaves behind: a runtime ends once it has made a process, and that falls to
//! the nearest subreaper above.

use std::ffi::OsString;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;

use super::birth::{Birth, Outfit, Sent, failure};
use super::connection::ReplyTo;
use super::container::{Container, Outcome, State};
use super::create::numbers;
use super::protocol::{self, ExternalExec, Failure, FailureKind, Role};
use super::server::Monitor;
use crate::oci::external::Runtime;
use crate::oci::{Namespaces, OciError, Stdio, Waiting, youki};
use crate::sys::pidfd;
use crate::sys::process::{self, Forked};

/// The runtime that is asked for; the mount namespace for it comes as a descriptor.
pub fn runtime(asked: protocol::Runtime, sent: &mut Sent) -> Result<Runtime, Failure> {
    let host_mounts = sent.one(Role::HostMounts);
    let host_mounts = host_mounts.ok_or_else(|| failure(FailureKind::Invalid, "no mount namespace came"))?;
    Ok(Runtime {
        program: OsString::from_vec(asked.program).into(),
        options: asked.options.into_iter().map(OsString::from_vec).collect(),
        bundle: OsString::from_vec(asked.bundle).into(),
        hidden: asked
            .hidden
            .into_iter()
            .map(|path| OsString::from_vec(path).into())
            .collect(),
        host_mounts,
    })
}

impl Monitor {
    /// Has the runtime start a container that it made. It is answered when the runtime says so.
    pub fn start_external(&mut self, id: &str, asked: protocol::Runtime, mut sent: Sent, reply: ReplyTo) -> Outcome {
        let failed = |e: io::Error| failure(FailureKind::Failed, format!("start container {id}: {e}"));
        let container = self.container(id)?;
        let (State::Created(_), Some(process), key) = (&container.state, container.process, container.key) else {
            let what = format!("container {id} is not waiting to be started");
            return Err(failure(FailureKind::State, what));
        };
        let runtime = runtime(asked, &mut sent)?;
        let (ours, theirs) = process::message_pair().map_err(failed)?;
        let outfit = outfit(theirs, None);
        let maker = match self.single.fork().map_err(failed)? {
            Forked::Child => run(outfit, runtime, Vec::new(), |runtime| {
                runtime.start(id, process.pid)?;
                Ok(Waiting {
                    pid: process.pid,
                    terminal: None,
                })
            }),
            Forked::Parent(maker) => maker,
        };
        drop(outfit);
        self.wire.listen_to_birth(&ours, key).map_err(failed)?;
        self.container(id)?.state = State::Starting(Birth::new(ours, maker, reply));
        Ok(())
    }

    /// Has the runtime start a process in a container that it made and that runs.
    pub fn exec_external(
        &mut self,
        call: protocol::Exec,
        asked: ExternalExec,
        mut sent: Sent,
        reply: ReplyTo,
    ) -> Outcome {
        let failed = |e: io::Error| failure(FailureKind::Failed, format!("start a process: {e}"));
        let runtime = runtime(asked.runtime, &mut sent)?;
        let stdio = Stdio {
            stdin: sent.one(Role::Stdin),
            stdout: sent.one(Role::Stdout),
            stderr: sent.one(Role::Stderr),
            terminal: call.tty,
        };
        let (ours, theirs) = process::message_pair().map_err(failed)?;
        let mut outfit = outfit(theirs, sent.one(Role::CgroupDirectory));
        // crun leaves its own to an exec.
        outfit.oom_score_adj = call.policy.and_then(|policy| policy.oom_score_adj);
        let maker = match self.single.fork_into(outfit.cgroup_dir.as_ref()).map_err(failed)? {
            Forked::Child => {
                let keep = numbers(&stdio, &Namespaces::new());
                run(outfit, runtime, keep, |runtime| {
                    runtime.exec(&call.container_id, &asked.process, asked.cgroup.as_deref(), stdio)
                })
            }
            Forked::Parent(maker) => maker,
        };
        drop((outfit, stdio));
        self.expect_exec(call.exec_id, call.container_id, Birth::new(ours, maker, reply))
            .map_err(failed)
    }
}

fn outfit(line: OwnedFd, cgroup_dir: Option<OwnedFd>) -> Outfit {
    Outfit {
        line,
        // A runtime moves what it makes into its cgroups itself.
        cgroup_procs: Vec::new(),
        cgroup_dir,
        oom_score_adj: None,
        limits: Vec::new(),
    }
}

fn run(
    outfit: Outfit,
    runtime: Runtime,
    mut keep: Vec<RawFd>,
    work: impl FnOnce(Runtime) -> Result<Waiting, OciError>,
) -> ! {
    keep.push(runtime.descriptor());
    let line = outfit.put_on(&keep);
    youki::report(work(runtime), &line)
}

impl Container {
    /// Its runtime could not start it: what it made waits for nothing any more.
    pub fn give_up(&mut self) {
        self.killed_by_us = true;
        if let Some(pidfd) = &self.pidfd {
            // One that is gone already is reaped next.
            let _ = pidfd::signal(pidfd, libc::SIGKILL);
        }
    }
}
