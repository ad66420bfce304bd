//! A process in a container that runs: all of the container's namespaces at once, then the program.
//!
//! libcontainer has a call for this, too. It forks three times where two are needed, each time with the monitor's memory to
//! copy, opens, sends and names each namespace for itself, and has its part of the work done with the host's mounts in
//! sight of the container's processes. A node does this many times a second: probes are commands.
//!
//! The forked child enters everything, and is in no container's sight: its pid namespace is still the monitor's. From there
//! it lends its memory to a sibling that is born in the container's pid namespace, with nothing of the host around it.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{CWD, Mode, OFlags, openat};

use super::line::{self, Refusal};
use super::{Joining, OciError, Policy, Stdio, chain, execute};
use crate::sys::process::{self, SingleThread};
use crate::sys::{fd, pty};

/// What a process has of its container: all but a time namespace, of which there is none.
const NAMESPACES: libc::c_int = libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP;

/// Makes the process and returns when its program executes, or when nothing came of it, which has been told on `line`. In a
/// forked child, in the monitor's room, in the container's cgroups.
pub fn run(joining: Joining, line: &OwnedFd, single: &SingleThread) -> Result<(), OciError> {
    let Joining {
        target,
        user_namespace,
        stdio,
        policy,
    } = joining;
    let io = |op| move |source| OciError::Io { op, source };
    // The container's own /proc may be anything.
    let proc = policy.apparmor.as_ref().map(|_| open_proc()).transpose();
    let proc = proc.map_err(io("open /proc"))?;
    let user = if user_namespace { libc::CLONE_NEWUSER } else { 0 };
    process::enter(&target, NAMESPACES | user).map_err(io("enter the container"))?;
    drop(target);
    if user_namespace {
        process::set_ids(0, 0, &[]).map_err(io("become root of the user namespace"))?;
    }
    let made = single.lend_to_sibling(|pid| {
        let failure = match dress(&stdio, &policy, proc.as_ref()) {
            Ok(terminal) => {
                line::say_process(line, pid, terminal.as_ref());
                execute::run(&policy, line, Vec::new())
            }
            Err(failure) => failure,
        };
        line::say_refused(line, Refusal::Failed, &chain(&failure));
        process::exit_now(1)
    });
    made.map_err(io("make the process"))
}

fn open_proc() -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(openat(CWD, "/proc", flags, Mode::empty())?)
}

/// In the new process: a session, standard streams, and the profile that the program is to have. Gives the master of its
/// terminal, if it has one.
fn dress(stdio: &Stdio, policy: &Policy, proc: Option<&OwnedFd>) -> Result<Option<OwnedFd>, OciError> {
    let io = |op| move |source| OciError::Io { op, source };
    let errno = |op| move |e: rustix::io::Errno| OciError::Io { op, source: e.into() };
    rustix::process::setsid().map_err(errno("begin a session"))?;
    let terminal = match stdio.terminal {
        true => Some(pty::open(CWD, "/dev/pts/ptmx").map_err(io("open a terminal in the container"))?),
        false => None,
    };
    if let Some(terminal) = &terminal {
        rustix::process::ioctl_tiocsctty(&terminal.slave).map_err(errno("control the terminal"))?;
    }
    let slave = terminal.as_ref().map(|terminal| &terminal.slave);
    for (number, stream) in [&stdio.stdin, &stdio.stdout, &stdio.stderr].into_iter().enumerate() {
        if let Some(stream) = slave.or(stream.as_ref()) {
            fd::place(stream, number as i32).map_err(io("place a standard stream"))?;
        }
    }
    if let (Some(proc), Some(profile)) = (proc, &policy.apparmor) {
        confine(proc, profile).map_err(io("set the AppArmor profile"))?;
    }
    Ok(terminal.map(|terminal| terminal.master))
}

/// Has the program executed under the profile (apparmor(7): attr/apparmor/exec, from Linux 5.8 on).
fn confine(proc: &OwnedFd, profile: &str) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = openat(proc, "thread-self/attr/apparmor/exec", flags, Mode::empty())?;
    rustix::io::write(&file, format!("exec {profile}").as_bytes())?;
    Ok(())
}
