//! The daemon's side of a monitor: one connection, many requests at a time.
//!
//! Every call has a deadline. When the connection ends, every call that waits and every later one fails with
//! [`MonitorError::Lost`]; [`Client::connect`] makes a new one and learns by the snapshot what happened meanwhile.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::link::{self, Link, Load};
use super::protocol::{
    Answer, Call, ContainerRef, Empty, Exec, Exit, ExternalExec, FailureKind, Process, Resize, Role, SOCKET, Signal,
    SignalExec, Snapshot, StartContainer,
};
use crate::model::ContainerId;

pub use super::external_client::ExternalRun;
pub use super::protocol::{
    ContainerSnapshot, ContainerState, CreateContainer as ContainerSpec, CreateSandbox as SandboxSpec, ExecSnapshot,
    IdMapping, LateMount, Limit, Policy,
};

/// How long the monitor may take for what it does at once.
pub(super) const QUICK: Duration = Duration::from_secs(30);

/// How long until a monitor that too many wait for is tried again.
const FULL_QUEUE_PAUSE: Duration = Duration::from_millis(500);

/// How long making or starting a process may take.
const SLOW: Duration = Duration::from_secs(110);

#[derive(Debug, thiserror::Error)]
pub enum MonitorError {
    /// The monitor, or the connection to it, has ended. What was asked may or may not have been done.
    #[error("the monitor is gone")]
    Lost,
    #[error("the monitor did not {op} within {deadline:?}")]
    Timeout { op: &'static str, deadline: Duration },
    #[error("{op}: {message}")]
    Refused {
        op: &'static str,
        kind: FailureKind,
        message: String,
    },
    #[error("the monitor's answer to {op} makes no sense")]
    Nonsense { op: &'static str },
    #[error("{op}: the request is too large")]
    TooLarge { op: &'static str },
    #[error("{op} {path}")]
    Io {
        op: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl MonitorError {
    /// Why the monitor refused, if it did.
    pub fn kind(&self) -> Option<FailureKind> {
        match self {
            Self::Refused { kind, .. } => Some(*kind),
            _ => None,
        }
    }
}

/// Descriptors of a sandbox.
#[derive(Debug, Default)]
pub struct SandboxFds {
    /// The network namespace to join; none: the host's.
    pub netns: Option<OwnedFd>,
    /// The user namespace to join, which owns `netns`; none: the host's.
    pub user: Option<OwnedFd>,
    /// Files to which the process writes `0` to join its cgroups, best v1's `tasks`.
    pub cgroup_procs: Vec<OwnedFd>,
    /// The directory of the cgroup2 cgroup that the process is born in.
    pub cgroup_dir: Option<OwnedFd>,
}

/// Descriptors of a container.
#[derive(Debug)]
pub struct ContainerFds {
    /// A detached mount.
    pub rootfs: OwnedFd,
    /// Detached mounts: the n-th is `fd:<n>` in the OCI spec's mount sources.
    pub mounts: Vec<OwnedFd>,
    /// Files to which the process writes `0` to join its cgroups, best v1's `tasks`.
    pub cgroup_procs: Vec<OwnedFd>,
    /// The directory of the cgroup2 cgroup that the process is born in.
    pub cgroup_dir: Option<OwnedFd>,
    /// None: the output is thrown away.
    pub log: Option<OwnedFd>,
    /// `memory.events` (v2) or `memory.oom_control` (v1).
    pub oom_events: Option<OwnedFd>,
    /// What `nsfd:<kind>` in the spec means, where it is not pause's.
    pub namespaces: Vec<(NamespaceKind, OwnedFd)>,
}

/// A kind of namespace that can be handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NamespaceKind {
    Net,
    Ipc,
    Uts,
    Pid,
    User,
}

/// A process to start in a container.
#[derive(Clone, Debug, Default)]
pub struct ExecSpec {
    pub container_id: String,
    /// From [`Client::new_exec_id`]; absent where nobody needs to know it before.
    pub exec_id: Option<u64>,
    pub policy: Policy,
    pub tty: bool,
}

/// Descriptors of an exec; /dev/null for what is absent. With a terminal there are none: it comes back.
#[derive(Debug, Default)]
pub struct ExecFds {
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
    /// Files to which the process writes `0` to join its cgroups, best v1's `tasks`.
    pub cgroup_procs: Vec<OwnedFd>,
    /// The directory of the cgroup2 cgroup that the process is born in.
    pub cgroup_dir: Option<OwnedFd>,
}

/// A process that [`Client::exec`] started.
#[derive(Debug)]
pub struct RunningExec {
    pub exec_id: u64,
    pub process: Process,
    /// The terminal's master, with `tty`.
    pub terminal: Option<OwnedFd>,
    exit: oneshot::Receiver<Exit>,
}

impl RunningExec {
    /// Waits for its end, however long that takes. May be cancelled and called again.
    pub async fn exit(&mut self) -> Result<Exit, MonitorError> {
        (&mut self.exit).await.map_err(|_| MonitorError::Lost)
    }
}

/// What happens without being asked for. Never lost while the connection lasts.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Exited {
        container_id: ContainerId,
        exit: Exit,
    },
    PauseExited {
        exit: Exit,
    },
    /// The connection has ended; this is the last event.
    Lost,
}

/// The events of one connection, in order.
pub type Events = mpsc::UnboundedReceiver<Event>;

/// A monitor. Clones share the connection, which ends with the last of them.
#[derive(Clone)]
pub struct Client(Arc<Link>);

impl From<Arc<Link>> for Client {
    fn from(link: Arc<Link>) -> Self {
        Self(link)
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "monitor {}", self.0.monitor_pid)
    }
}

impl Client {
    /// Connects to the monitor that listens in `run_dir`, and learns what it knows.
    pub async fn connect(run_dir: &Path) -> Result<(Client, Snapshot, Events), MonitorError> {
        let greeting = Self::connect_patiently(run_dir);
        let greeted = tokio::time::timeout(QUICK, greeting).await;
        greeted.unwrap_or(Err(MonitorError::Timeout {
            op: "greet",
            deadline: QUICK,
        }))
    }

    /// As [`Client::connect`], waiting as long as there is a monitor: one that is stopped answers when it goes on.
    pub async fn connect_patiently(run_dir: &Path) -> Result<(Client, Snapshot, Events), MonitorError> {
        let path = run_dir.join(SOCKET);
        let failed = |source| MonitorError::Io {
            op: "connect to",
            path: path.clone(),
            source,
        };
        // The path may be longer than a socket's address; through the directory's descriptor it never is.
        let directory = std::fs::File::open(run_dir).map_err(failed)?;
        let short = format!("/proc/self/fd/{}/{SOCKET}", std::os::fd::AsRawFd::as_raw_fd(&directory));
        let socket = loop {
            match connect_now(&short) {
                // So many wait for it already that the kernel takes no more.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    tokio::time::sleep(FULL_QUEUE_PAUSE).await;
                }
                connected => break connected.map_err(failed)?,
            }
        };
        // A daemon that comes back asks all at once.
        drop(directory);
        let (link, snapshot, events) = link::greet(socket).await?;
        Ok((Client(link), snapshot, events))
    }

    /// The monitor's pid.
    pub fn monitor_pid(&self) -> i32 {
        self.0.monitor_pid
    }

    /// Makes pause and its namespaces.
    pub async fn create_sandbox(&self, spec: SandboxSpec, fds: SandboxFds) -> Result<Process, MonitorError> {
        let mut load = Load::default();
        load.add(Role::Network, fds.netns);
        load.add(Role::NamespaceUser, fds.user);
        load.add(Role::CgroupProcs, fds.cgroup_procs);
        load.add(Role::CgroupDirectory, fds.cgroup_dir);
        self.process("make the sandbox", Call::CreateSandbox(spec), load)
            .await
            .map(|(process, _)| process)
    }

    /// Makes a container; its process waits for [`Client::start`].
    pub async fn create_container(&self, spec: ContainerSpec, fds: ContainerFds) -> Result<Process, MonitorError> {
        self.create(spec, fds, Load::default()).await
    }

    pub(super) async fn create(
        &self,
        spec: ContainerSpec,
        fds: ContainerFds,
        mut load: Load,
    ) -> Result<Process, MonitorError> {
        load.add(Role::Rootfs, [fds.rootfs]);
        load.add(Role::Mount, fds.mounts);
        load.add(Role::CgroupProcs, fds.cgroup_procs);
        load.add(Role::CgroupDirectory, fds.cgroup_dir);
        load.add(Role::Log, fds.log);
        load.add(Role::OomEvents, fds.oom_events);
        for (kind, fd) in fds.namespaces {
            let role = match kind {
                NamespaceKind::Net => Role::NamespaceNet,
                NamespaceKind::Ipc => Role::NamespaceIpc,
                NamespaceKind::Uts => Role::NamespaceUts,
                NamespaceKind::Pid => Role::NamespacePid,
                NamespaceKind::User => Role::NamespaceUser,
            };
            load.add(role, [fd]);
        }
        self.process("make the container", Call::CreateContainer(spec), load)
            .await
            .map(|(process, _)| process)
    }

    /// Executes the container's program. A program that cannot be executed is [`FailureKind::ProgramNotFound`] or
    /// [`FailureKind::ProgramDenied`], and the container exits with 127 or 126.
    pub async fn start(&self, container_id: &ContainerId) -> Result<(), MonitorError> {
        let call = StartContainer {
            container_id: container_id.to_string(),
            runtime: None,
        };
        self.start_with(call, Load::default()).await
    }

    pub(super) async fn start_with(&self, call: StartContainer, load: Load) -> Result<(), MonitorError> {
        self.done("start the container", SLOW, Call::Start(call), load).await
    }

    /// An id for [`ExecSpec::exec_id`]: no exec of this pod has had it, nor of an earlier daemon.
    pub fn new_exec_id(&self) -> u64 {
        self.0.new_id()
    }

    /// Starts a process in a running container.
    pub async fn exec(&self, spec: ExecSpec, fds: ExecFds) -> Result<RunningExec, MonitorError> {
        self.exec_with(spec, fds, None, Load::default()).await
    }

    pub(super) async fn exec_with(
        &self,
        spec: ExecSpec,
        fds: ExecFds,
        external: Option<ExternalExec>,
        mut load: Load,
    ) -> Result<RunningExec, MonitorError> {
        let exec_id = spec.exec_id.unwrap_or_else(|| self.new_exec_id());
        // Before it is asked for: it may be over before its start is known.
        let exit = self.0.expect_exec(exec_id)?;
        load.add(Role::Stdin, fds.stdin);
        load.add(Role::Stdout, fds.stdout);
        load.add(Role::Stderr, fds.stderr);
        load.add(Role::CgroupProcs, fds.cgroup_procs);
        load.add(Role::CgroupDirectory, fds.cgroup_dir);
        let call = Exec {
            container_id: spec.container_id,
            policy: Some(spec.policy),
            tty: spec.tty,
            exec_id,
            external,
        };
        match self.process("execute in the container", Call::Exec(call), load).await {
            Ok((process, terminal)) => Ok(RunningExec {
                exec_id,
                process,
                terminal,
                exit,
            }),
            Err(error) => {
                self.0.forget_exec(exec_id);
                Err(error)
            }
        }
    }

    /// Signals a process that [`Client::exec`] started, or that a snapshot told of with its process.
    pub async fn signal_exec(&self, exec_id: u64, signo: i32) -> Result<(), MonitorError> {
        let call = Call::SignalExec(SignalExec { exec_id, signo });
        self.done("signal the exec", QUICK, call, Load::default()).await
    }

    /// Signals a container's first process.
    pub async fn signal(&self, container_id: &ContainerId, signo: i32) -> Result<(), MonitorError> {
        let call = Signal {
            container_id: container_id.to_string(),
            signo,
            announce_only: false,
        };
        self.done("signal the container", QUICK, Call::Signal(call), Load::default())
            .await
    }

    /// Says that the daemon is about to kill the container through its cgroup, lest that be taken for the kernel's work.
    pub async fn announce_kill(&self, container_id: &ContainerId) -> Result<(), MonitorError> {
        let call = Signal {
            container_id: container_id.to_string(),
            signo: 0,
            announce_only: true,
        };
        self.done("announce a kill", QUICK, Call::Signal(call), Load::default())
            .await
    }

    /// Goes on logging in `log`; nothing more is written to the old file once this returns.
    pub async fn reopen_log(&self, container_id: &ContainerId, log: OwnedFd) -> Result<(), MonitorError> {
        let mut load = Load::default();
        load.add(Role::Log, [log]);
        self.done("reopen the log", QUICK, Call::ReopenLog(reference(container_id)), load)
            .await
    }

    /// Sets the size of a container's terminal, in characters.
    pub async fn resize_tty(&self, container_id: &ContainerId, columns: u32, rows: u32) -> Result<(), MonitorError> {
        let call = Resize {
            container_id: container_id.to_string(),
            columns,
            rows,
        };
        self.done("resize the terminal", QUICK, Call::Resize(call), Load::default())
            .await
    }

    /// Copies a container's output to `stdout` and `stderr` (pipes or sockets, given away) from here on; a reader that falls
    /// 1 MiB behind loses its end. Returns the container's standard input or terminal, non-blocking, if it has one.
    pub async fn attach(
        &self,
        container_id: &ContainerId,
        stdout: Option<OwnedFd>,
        stderr: Option<OwnedFd>,
    ) -> Result<Option<OwnedFd>, MonitorError> {
        let mut load = Load::default();
        load.add(Role::Stdout, stdout);
        load.add(Role::Stderr, stderr);
        let (answer, mut fds) = self
            .0
            .call(
                "attach to the container",
                QUICK,
                Call::Attach(reference(container_id)),
                load,
            )
            .await?;
        match answer {
            Answer::Done(_) => Ok(fds.pop()),
            _ => Err(MonitorError::Nonsense {
                op: "attach to the container",
            }),
        }
    }

    /// Closes the monitor's end of a container's standard input.
    pub async fn close_stdin(&self, container_id: &ContainerId) -> Result<(), MonitorError> {
        self.done(
            "close the standard input",
            QUICK,
            Call::CloseStdin(reference(container_id)),
            Load::default(),
        )
        .await
    }

    /// Has the monitor forget a container that has exited. Fine if it knows none of that id.
    pub async fn forget(&self, container_id: &ContainerId) -> Result<(), MonitorError> {
        self.done(
            "forget the container",
            QUICK,
            Call::Forget(reference(container_id)),
            Load::default(),
        )
        .await
    }

    /// Kills pause and waits until it is gone. Fine if there is none.
    pub async fn stop_sandbox(&self) -> Result<(), MonitorError> {
        self.done("stop the sandbox", QUICK, Call::StopSandbox(Empty {}), Load::default())
            .await
    }

    /// Ends the monitor. Refused while a process of the pod lives.
    pub async fn shutdown(&self) -> Result<(), MonitorError> {
        self.done("end the monitor", QUICK, Call::Shutdown(Empty {}), Load::default())
            .await
    }

    async fn process(
        &self,
        op: &'static str,
        call: Call,
        load: Load,
    ) -> Result<(Process, Option<OwnedFd>), MonitorError> {
        match self.0.call(op, SLOW, call, load).await? {
            (Answer::Process(process), mut fds) => Ok((process, fds.pop())),
            _ => Err(MonitorError::Nonsense { op }),
        }
    }

    async fn done(&self, op: &'static str, deadline: Duration, call: Call, load: Load) -> Result<(), MonitorError> {
        match self.0.call(op, deadline, call, load).await? {
            (Answer::Done(_), _) => Ok(()),
            _ => Err(MonitorError::Nonsense { op }),
        }
    }
}

/// Connects without waiting for anybody.
fn connect_now(path: &str) -> io::Result<StdUnixStream> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

fn reference(container_id: &ContainerId) -> ContainerRef {
    ContainerRef {
        container_id: container_id.to_string(),
    }
}
