//! Pause and its namespaces: what a pod is before it has a container.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat};
use rustix::io::write;

use super::birth::{Birth, Outfit, Progress, Sent, failure};
use super::connection::ReplyTo;
use super::container::Outcome;
use super::protocol::{Answer, CreateSandbox, Empty, Exit, FailureKind, IdMapping, Process, Role};
use super::server::Monitor;
use crate::oci::STAGE;
use crate::oci::line::{self, Refusal};
use crate::sys::open::openat2;
use crate::sys::process::{self, Forked, SingleThread};
use crate::sys::{capability, failed, mount, pidfd, seccomp};

/// Pause's memory is worth more than any container's, less than the monitor's.
const OOM_SCORE_ADJ: i32 = -998;

/// The pod itself.
pub enum Sandbox {
    Empty,
    Making(Birth, Vec<IdMapping>),
    Alive(Pause),
    Dead { process: Process, exit: Exit },
}

pub struct Pause {
    pub process: Process,
    pub pidfd: Option<OwnedFd>,
    /// Who waits for its end.
    pub stopping: Vec<ReplyTo>,
    /// Of the pod's user namespace, if it has one.
    uid_mappings: Vec<IdMapping>,
}

impl Sandbox {
    /// The node's name for the pod's user `uid`, in a pod with a user namespace.
    pub fn outer_uid(&self, uid: u32) -> Option<u32> {
        let Sandbox::Alive(pause) = self else { return None };
        pause.uid_mappings.iter().find_map(|mapping| {
            let offset = uid.checked_sub(mapping.container_id)?;
            (offset < mapping.size).then(|| mapping.host_id.checked_add(offset))?
        })
    }
}

impl Monitor {
    /// Makes pause and its namespaces. It is answered when pause executes.
    pub fn create_sandbox(&mut self, call: CreateSandbox, mut sent: Sent, reply: ReplyTo) -> Outcome {
        let failed = |e: io::Error| failure(FailureKind::Failed, format!("make the sandbox: {e}"));
        if !matches!(self.sandbox, Sandbox::Empty) {
            return Err(failure(FailureKind::Exists, "there is a sandbox"));
        }
        let (ours, theirs) = process::message_pair().map_err(failed)?;
        let plan = Plan {
            call,
            network: sent.one(Role::Network),
            user: sent.one(Role::NamespaceUser),
            pause: &self.pause_program,
            single: &self.single,
        };
        let outfit = Outfit {
            line: theirs,
            cgroup_procs: sent.all(Role::CgroupProcs),
            cgroup_dir: sent.one(Role::CgroupDirectory),
            oom_score_adj: Some(plan.call.oom_score_adj.unwrap_or(OOM_SCORE_ADJ)),
            limits: Vec::new(),
        };
        let maker = match self.single.fork_into(outfit.cgroup_dir.as_ref()).map_err(failed)? {
            Forked::Child => plan.carry_out(outfit),
            Forked::Parent(maker) => maker,
        };
        let uid_mappings = plan.call.uid_mappings.clone();
        drop((outfit, plan));
        self.wire.listen_to_birth(&ours, 0).map_err(failed)?;
        self.sandbox = Sandbox::Making(Birth::new(ours, maker, reply), uid_mappings);
        Ok(())
    }

    /// The birth of pause has news.
    pub fn sandbox_born(&mut self) {
        let Sandbox::Making(birth, uid_mappings) = &mut self.sandbox else {
            return;
        };
        match birth.hear() {
            Progress::Nothing => {}
            Progress::Made => self.sandbox_born(),
            Progress::Executing => {
                self.wire.ignore(&birth.line);
                let (Some(process), reply) = (birth.process, birth.reply.take()) else {
                    return;
                };
                let pidfd = pidfd::open(process.pid).ok();
                let uid_mappings = std::mem::take(uid_mappings);
                let pause = Pause {
                    process,
                    pidfd,
                    stopping: Vec::new(),
                    uid_mappings,
                };
                self.sandbox = Sandbox::Alive(pause);
                if let Some(reply) = reply {
                    self.wire.answer(reply, Answer::Process(process), Vec::new());
                }
                self.adopt_stray(process.pid);
                self.rest();
            }
            Progress::Failed(failure) => {
                self.wire.ignore(&birth.line);
                let reply = birth.reply.take();
                self.sandbox = Sandbox::Empty;
                if let Some(reply) = reply {
                    self.wire.answer(reply, Answer::Failure(failure), Vec::new());
                }
            }
        }
    }

    /// Kills pause. It is answered when it is gone; at once if there is none.
    pub fn stop_sandbox(&mut self, reply: ReplyTo) -> Outcome {
        match &mut self.sandbox {
            Sandbox::Alive(pause) => {
                pause.stopping.push(reply);
                if let Some(pidfd) = &pause.pidfd {
                    // One that is gone already is reaped, and answered, next.
                    let _ = pidfd::signal(pidfd, libc::SIGKILL);
                }
            }
            Sandbox::Making(..) => return Err(failure(FailureKind::State, "the sandbox is still being made")),
            Sandbox::Empty | Sandbox::Dead { .. } => self.wire.answer(reply, Answer::Done(Empty {}), Vec::new()),
        }
        Ok(())
    }
}

struct Plan<'a> {
    call: CreateSandbox,
    network: Option<OwnedFd>,
    user: Option<OwnedFd>,
    pause: &'a OwnedFd,
    single: &'a SingleThread,
}

impl Plan<'_> {
    /// Child: becomes pause, or makes it and ends.
    fn carry_out(self, outfit: Outfit) -> ! {
        let mut keep = vec![self.pause.as_raw_fd()];
        keep.extend(self.network.iter().chain(&self.user).map(AsRawFd::as_raw_fd));
        let line = outfit.put_on(&keep);
        let error = match self.become_pause(&line) {
            Ok(never) => match never {},
            Err(error) => error,
        };
        line::say_refused(&line, Refusal::Failed, &error.to_string());
        process::exit_now(1)
    }

    fn become_pause(&self, line: &OwnedFd) -> io::Result<Never> {
        if let Some(network) = &self.network {
            process::enter(network, libc::CLONE_NEWNET)?;
        }
        // What is unshared from here on belongs to it, as the network does already.
        if let Some(user) = &self.user {
            process::enter(user, libc::CLONE_NEWUSER)?;
            process::set_ids(0, 0, &[])?;
        }
        let mut flags = libc::CLONE_NEWNS;
        for (wanted, flag) in [
            (self.call.hostname.is_some(), libc::CLONE_NEWUTS),
            (self.call.new_ipc, libc::CLONE_NEWIPC),
            (self.call.new_pid, libc::CLONE_NEWPID),
        ] {
            if wanted {
                flags |= flag;
            }
        }
        process::unshare(flags)?;
        if let Some(hostname) = &self.call.hostname {
            rustix::system::sethostname(hostname.as_bytes()).map_err(|e| failed("set the host name", e))?;
        }
        self.write_sysctls()?;
        if self.call.new_pid {
            // A new pid namespace begins with the next child.
            if let Forked::Parent(pid) = self.single.fork_sibling()? {
                line::say_process(line, pid, None);
                process::exit_now(0);
            }
        } else {
            line::say_process(line, std::process::id() as i32, None);
        }
        enter_nothing()?;
        process::set_parent_death_signal(0)?;
        capability::bound(0)?;
        process::set_ids(self.call.uid, self.call.gid, &[])?;
        capability::set(capability::Sets::default())?;
        process::set_no_new_privileges()?;
        let name = CString::from(c"/pause");
        Err(failed(
            "execute pause",
            seccomp::load_and_execute_fd(&self.call.seccomp, self.pause.as_fd(), &[name]),
        ))
    }

    fn write_sysctls(&self) -> io::Result<()> {
        if self.call.sysctls.is_empty() {
            return Ok(());
        }
        let proc_sys = openat(
            CWD,
            "/proc/sys",
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        for (name, value) in &self.call.sysctls {
            let says = |e: rustix::io::Errno| failed(&format!("write sysctl {name}"), e);
            // As sysctl(8): with a slash in it the name is a path, else its dots are the slashes.
            let path = if name.contains('/') {
                name.clone()
            } else {
                name.replace('.', "/")
            };
            let flags = OFlags::WRONLY | OFlags::CLOEXEC;
            let file = openat2(&proc_sys, path, flags, Mode::empty(), ResolveFlags::BENEATH).map_err(says)?;
            write(&file, value.as_bytes()).map_err(says)?;
        }
        Ok(())
    }
}

enum Never {}

/// Makes an empty, read-only directory the root: pause needs nothing, and whoever gets at its root finds nothing.
fn enter_nothing() -> io::Result<()> {
    let nothing = mount::tmpfs(4096, 0o555)?;
    let read_only = mount::Attributes {
        read_only: true,
        nosuid: true,
        nodev: true,
        noexec: true,
        ..mount::Attributes::default()
    };
    mount::set_attributes(nothing.as_fd(), read_only)?;
    mount::attach(&nothing, CWD, Path::new(STAGE))?;
    mount::pivot(nothing)
}
