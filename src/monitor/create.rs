//! Makes a container: forks a child that is dressed for it and lets libcontainer do the rest there.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

use rustix::pipe::{PipeFlags, pipe_with};

use super::birth::{self, Birth, Outfit, Progress, Sent, failure, namespaces_of, policy};
use super::connection::ReplyTo;
use super::container::{Container, Outcome, State};
use super::external;
use super::log::Log;
use super::oom;
use super::protocol::{Answer, CreateContainer, Empty, FailureKind, LateMount, Role};
use super::sandbox::Sandbox;
use super::server::Monitor;
use super::stdio::Output;
use crate::model;
use crate::oci::external::Runtime;
use crate::oci::{self, Creation, Namespace, Stdio, youki};
use crate::sys::process::{self, Forked};

/// Both ends of a container's standard streams.
struct Pipes {
    theirs: Stdio,
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

impl Pipes {
    fn new(tty: bool, stdin: bool) -> io::Result<Self> {
        if tty {
            let theirs = Stdio {
                terminal: true,
                ..Stdio::default()
            };
            return Ok(Self {
                theirs,
                stdin: None,
                stdout: None,
                stderr: None,
            });
        }
        let (stdout, their_stdout) = pipe_with(PipeFlags::CLOEXEC)?;
        let (stderr, their_stderr) = pipe_with(PipeFlags::CLOEXEC)?;
        let (their_stdin, stdin) = if stdin {
            Some(pipe_with(PipeFlags::CLOEXEC)?)
        } else {
            None
        }
        .unzip();
        let theirs = Stdio {
            stdin: their_stdin,
            stdout: Some(their_stdout),
            stderr: Some(their_stderr),
            terminal: false,
        };
        Ok(Self {
            theirs,
            stdin,
            stdout: Some(stdout),
            stderr: Some(stderr),
        })
    }
}

/// The numbers of the descriptors that a process is made with.
pub fn numbers(stdio: &Stdio, namespaces: &oci::Namespaces) -> Vec<RawFd> {
    let streams = [&stdio.stdin, &stdio.stdout, &stdio.stderr];
    let streams = streams.into_iter().flatten().map(AsRawFd::as_raw_fd);
    streams.chain(namespaces.iter().map(|(_, fd)| fd.as_raw_fd())).collect()
}

impl Monitor {
    /// Makes a container. It is answered when its process waits to be started.
    pub fn create_container(&mut self, call: CreateContainer, mut sent: Sent, reply: ReplyTo) -> Outcome {
        let id = call.container_id;
        let failed = |e: io::Error| failure(FailureKind::Failed, format!("make container {id}: {e}"));
        if !model::is_well_formed(&id) {
            return Err(failure(FailureKind::Invalid, format!("{id:?} is not a container id")));
        }
        if self.containers.iter().any(|container| container.id == id) {
            return Err(failure(FailureKind::Exists, format!("there is a container {id}")));
        }
        let call_policy = call.policy.ok_or_else(|| failure(FailureKind::Invalid, "no policy"))?;
        let rootfs = sent
            .one(Role::Rootfs)
            .ok_or_else(|| failure(FailureKind::Invalid, "no root came"))?;
        let namespaces = self.namespaces(&mut sent).map_err(failed)?;
        let pipes = Pipes::new(call.tty, call.stdin).map_err(failed)?;
        if let Some(uid) = self.sandbox.outer_uid(call_policy.uid) {
            birth::give_pipes(&pipes.theirs, uid).map_err(failed)?;
        }
        let (ours, theirs) = process::message_pair().map_err(failed)?;
        let outfit = Outfit {
            line: theirs,
            cgroup_procs: sent.all(Role::CgroupProcs),
            cgroup_dir: sent.one(Role::CgroupDirectory),
            oom_score_adj: call_policy.oom_score_adj,
            limits: birth::limits(&call_policy.limits),
        };
        let runtime = call.runtime.map(|asked| external::runtime(asked, &mut sent));
        let runtime = runtime.transpose()?;
        let external = runtime.is_some();
        let creation = Creation {
            spec: call.spec,
            rootfs,
            mounts: sent.all(Role::Mount),
            late_mounts: call.late_mounts.into_iter().map(late).collect(),
            namespaces,
            root_id: self.sandbox.outer_uid(0).unwrap_or(0),
            stdio: pipes.theirs,
            policy: policy(call_policy),
        };
        let maker = match self.single.fork_into(outfit.cgroup_dir.as_ref()).map_err(failed)? {
            Forked::Child => make(outfit, creation, runtime, &id),
            Forked::Parent(maker) => maker,
        };
        drop((outfit, creation, runtime));

        let key = self.new_key();
        let log = Log::new(sent.one(Role::Log), call.log_line_limit);
        let output = Output::new(key, log, pipes.stdout, pipes.stderr);
        output.listen(&self.wire.epoll()).map_err(failed)?;
        self.wire.listen_to_birth(&ours, key).map_err(failed)?;
        let birth = Birth::new(ours, maker, reply);
        self.containers.push(Container {
            key,
            id,
            state: State::Making(if external { birth } else { birth.until_it_rests() }),
            external,
            process: None,
            pidfd: None,
            output,
            stdin: pipes.stdin,
            terminal: None,
            oom: sent.one(Role::OomEvents).map(oom::Watch::new),
            killed_by_us: false,
        });
        Ok(())
    }

    /// The namespaces that came; for kinds that did not, pause's.
    fn namespaces(&self, sent: &mut Sent) -> io::Result<oci::Namespaces> {
        let mut namespaces = oci::Namespaces::new();
        let mut missing = Vec::new();
        for (role, kind) in [
            (Role::NamespaceNet, Namespace::Net),
            (Role::NamespaceIpc, Namespace::Ipc),
            (Role::NamespaceUts, Namespace::Uts),
            (Role::NamespacePid, Namespace::Pid),
            (Role::NamespaceUser, Namespace::User),
        ] {
            match sent.one(role) {
                Some(fd) => namespaces.push((kind, fd)),
                None => missing.push(kind),
            }
        }
        if let Sandbox::Alive(pause) = &self.sandbox {
            namespaces.extend(namespaces_of(pause.process.pid, &missing)?);
        }
        Ok(namespaces)
    }
}

fn late(mount: LateMount) -> (usize, PathBuf) {
    use std::os::unix::ffi::OsStringExt;
    (
        mount.index as usize,
        std::ffi::OsString::from_vec(mount.destination).into(),
    )
}

fn make(outfit: Outfit, creation: Creation, runtime: Option<Runtime>, id: &str) -> ! {
    let mut keep = numbers(&creation.stdio, &creation.namespaces);
    keep.push(creation.rootfs.as_raw_fd());
    keep.extend(creation.mounts.iter().map(AsRawFd::as_raw_fd));
    keep.extend(runtime.iter().map(Runtime::descriptor));
    let line = outfit.put_on(&keep);
    let made = match runtime {
        Some(runtime) => runtime.create(id, creation),
        None => youki::create(creation, line.clone()),
    };
    youki::report(made, &line)
}

impl Monitor {
    /// The birth of container number `at` has news.
    pub fn container_born(&mut self, at: usize) {
        let container = &mut self.containers[at];
        let is_made = !matches!(container.state, State::Making(_));
        let external = container.external;
        let Some(birth) = container.birth() else { return };
        match birth.hear() {
            Progress::Nothing => {}
            // An external runtime says so of what it has started; what comes of that is said next.
            Progress::Made if is_made => self.container_born(at),
            Progress::Made => {
                if external {
                    // Who ran the runtime has done its part. The end of its line is no news.
                    self.wire.ignore(&birth.line);
                }
                let Some(process) = birth.process else { return };
                let (reply, terminal) = (birth.reply.take(), birth.terminal.take());
                let pidfd = crate::sys::pidfd::open(process.pid);
                container.process = Some(process);
                container.pidfd = pidfd.ok();
                if let Some(terminal) = terminal {
                    let outcome = container.use_terminal(terminal, &self.wire.epoll());
                    if let (Err(e), Some(reply)) = (outcome, reply) {
                        self.wire
                            .answer(reply, fail(format!("use the terminal: {e}")), Vec::new());
                        self.containers.swap_remove(at);
                        return;
                    }
                }
                let making = std::mem::replace(&mut container.state, State::Running);
                if let State::Making(birth) = making {
                    container.state = State::Created(birth);
                }
                if let Some(reply) = reply {
                    self.wire.answer(reply, Answer::Process(process), Vec::new());
                }
                self.adopt_stray(process.pid);
            }
            done => self.container_done(at, done),
        }
    }

    /// The birth of container number `at` is over.
    pub fn container_done(&mut self, at: usize, progress: Progress) {
        let container = &mut self.containers[at];
        let Some(birth) = container.birth() else { return };
        self.wire.ignore(&birth.line);
        let reply = birth.reply.take();
        let answer = match progress {
            Progress::Failed(failure) => {
                if container.external && matches!(container.state, State::Starting(_)) {
                    container.give_up();
                }
                Answer::Failure(failure)
            }
            _ => {
                container.state = State::Running;
                Answer::Done(Empty {})
            }
        };
        // One that was made has a process, whose end is the reaper's to tell.
        if matches!(container.state, State::Making(_)) {
            self.containers.swap_remove(at);
        }
        if let Some(reply) = reply {
            self.wire.answer(reply, answer, Vec::new());
        }
        self.rest();
    }
}

fn fail(message: String) -> Answer {
    Answer::Failure(failure(FailureKind::Failed, message))
}

impl Container {
    /// The terminal is both what the container writes and what it reads.
    fn use_terminal(&mut self, terminal: OwnedFd, epoll: &OwnedFd) -> io::Result<()> {
        let log = std::mem::replace(&mut self.output.log, Log::new(None, 0));
        self.output = Output::new(self.key, log, Some(terminal.try_clone()?), None);
        self.output.listen(epoll)?;
        self.terminal = Some(terminal);
        Ok(())
    }
}
