//! The daemon's side of a monitor: one connection, many requests at a time.
//!
//! Every call has a deadline. When the connection ends, every call that waits and every later one fails with
//! [`MonitorError::Lost`]; [`Client::connect`] makes a new one and learns by the snapshot what happened meanwhile.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use prost::Message;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

use super::frame::{Incoming, MAX_DESCRIPTORS, MAX_MESSAGE, Outgoing};
use super::protocol::{
    Answer, Call, ContainerRef, Empty, Exec, Exit, Failure, FailureKind, FromMonitor, Hello, Process, Request, Resize,
    Role, SOCKET, Saying, Signal, SignalExec, Snapshot, VERSION,
};
use crate::model::ContainerId;

pub use super::protocol::{
    ContainerSnapshot, ContainerState, CreateContainer as ContainerSpec, CreateSandbox as SandboxSpec, ExecSnapshot,
    IdMapping, Limit, Policy,
};

/// How long the monitor may take for what it does at once.
const QUICK: Duration = Duration::from_secs(30);

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
    pub cgroup_procs: Vec<OwnedFd>,
}

/// Descriptors of a container.
#[derive(Debug)]
pub struct ContainerFds {
    /// A detached mount.
    pub rootfs: OwnedFd,
    /// Detached mounts: the n-th is `fd:<n>` in the OCI spec's mount sources.
    pub mounts: Vec<OwnedFd>,
    pub cgroup_procs: Vec<OwnedFd>,
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
    pub policy: Policy,
    pub tty: bool,
}

/// Descriptors of an exec; /dev/null for what is absent. With a terminal there are none: it comes back.
#[derive(Debug, Default)]
pub struct ExecFds {
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
    pub cgroup_procs: Vec<OwnedFd>,
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

type Replies = HashMap<u64, oneshot::Sender<(Answer, Vec<OwnedFd>)>>;

/// What waits for the monitor. `None` once the connection has ended.
struct Waiting {
    replies: Replies,
    execs: HashMap<u64, oneshot::Sender<Exit>>,
}

struct Shared {
    send: mpsc::UnboundedSender<(Request, Vec<OwnedFd>)>,
    waiting: Mutex<Option<Waiting>>,
    last_id: AtomicU64,
    monitor_pid: i32,
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Option<Waiting>> {
        self.waiting.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// A monitor. Clones share the connection, which ends with the last of them.
#[derive(Clone)]
pub struct Client(Arc<Shared>);

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "monitor {}", self.0.monitor_pid)
    }
}

/// Talks to the monitor at the other end of `socket` for the first time.
pub(super) async fn greet(socket: StdUnixStream) -> Result<(Client, Snapshot, Events), MonitorError> {
    let lost = |_| MonitorError::Lost;
    socket.set_nonblocking(true).map_err(lost)?;
    let socket = Arc::new(UnixStream::from_std(socket).map_err(lost)?);
    let mut incoming = Incoming::default();
    let mut outgoing = Outgoing::default();
    let hello = Request {
        id: 0,
        roles: Vec::new(),
        call: Some(Call::Hello(Hello { version: VERSION })),
    };
    outgoing.push(&hello, Vec::new()).map_err(lost)?;
    let exchange = async {
        write(&socket, &mut outgoing).await.map_err(lost)?;
        let (message, _) = read(&socket, &mut incoming).await.map_err(lost)?;
        match FromMonitor::decode(&*message).ok().and_then(|message| message.saying) {
            Some(Saying::Reply(reply)) => match reply.answer {
                Some(Answer::Snapshot(snapshot)) => Ok(snapshot),
                Some(Answer::Failure(failure)) => Err(refused("greet", failure)),
                _ => Err(MonitorError::Nonsense { op: "greet" }),
            },
            _ => Err(MonitorError::Nonsense { op: "greet" }),
        }
    };
    let snapshot = tokio::time::timeout(QUICK, exchange)
        .await
        .map_err(|_| MonitorError::Timeout {
            op: "greet",
            deadline: QUICK,
        })??;

    let (send, requests) = mpsc::unbounded_channel();
    let (tell, events) = mpsc::unbounded_channel();
    let waiting = Waiting {
        replies: HashMap::new(),
        execs: HashMap::new(),
    };
    let last_exec = snapshot.execs.iter().map(|exec| exec.exec_id).max().unwrap_or(0);
    let first_id = last_exec.max(nanos_since_epoch());
    let shared = Arc::new(Shared {
        send,
        waiting: Mutex::new(Some(waiting)),
        last_id: AtomicU64::new(first_id),
        monitor_pid: snapshot.monitor_pid,
    });
    let writer = tokio::spawn(write_requests(socket.clone(), requests));
    tokio::spawn(read_sayings(
        socket,
        incoming,
        Arc::downgrade(&shared),
        tell,
        writer.abort_handle(),
    ));
    Ok((Client(shared), snapshot, events))
}

/// Ids of execs must differ from those that an earlier daemon gave out: later is larger.
fn nanos_since_epoch() -> u64 {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX / 2)
}

async fn write(socket: &UnixStream, outgoing: &mut Outgoing) -> io::Result<()> {
    socket.async_io(Interest::WRITABLE, || outgoing.flush(socket)).await
}

async fn read(socket: &UnixStream, incoming: &mut Incoming) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    socket.async_io(Interest::READABLE, || incoming.advance(socket)).await
}

/// Ends, and with it the connection, when the last client is dropped.
async fn write_requests(socket: Arc<UnixStream>, mut requests: mpsc::UnboundedReceiver<(Request, Vec<OwnedFd>)>) {
    let mut outgoing = Outgoing::default();
    while let Some((request, fds)) = requests.recv().await {
        if outgoing.push(&request, fds).is_err() || write(&socket, &mut outgoing).await.is_err() {
            break;
        }
    }
    let _ = rustix::net::shutdown(&*socket, rustix::net::Shutdown::Both);
}

async fn read_sayings(
    socket: Arc<UnixStream>,
    mut incoming: Incoming,
    shared: std::sync::Weak<Shared>,
    tell: mpsc::UnboundedSender<Event>,
    writer: tokio::task::AbortHandle,
) {
    while let Ok((message, fds)) = read(&socket, &mut incoming).await {
        let Ok(message) = FromMonitor::decode(&*message) else {
            break;
        };
        let Some(shared) = shared.upgrade() else { break };
        let mut waiting = shared.waiting();
        let Some(waiting) = waiting.as_mut() else { break };
        // Whoever does not wait any more does not want to know; an unknown saying is a later monitor's.
        match message.saying {
            Some(Saying::Reply(reply)) => {
                if let (Some(to), Some(answer)) = (waiting.replies.remove(&reply.id), reply.answer) {
                    let _ = to.send((answer, fds));
                }
            }
            Some(Saying::Exited(exited)) => {
                let container_id = ContainerId::new(exited.container_id);
                let _ = tell.send(Event::Exited {
                    container_id,
                    exit: exited.exit,
                });
            }
            Some(Saying::ExecExited(exited)) => {
                if let Some(to) = waiting.execs.remove(&exited.exec_id) {
                    let _ = to.send(exited.exit);
                }
            }
            Some(Saying::PauseExited(exit)) => drop(tell.send(Event::PauseExited { exit })),
            None => {}
        }
    }
    writer.abort();
    if let Some(shared) = shared.upgrade() {
        shared.waiting().take();
    }
    let _ = tell.send(Event::Lost);
}

fn refused(op: &'static str, failure: Failure) -> MonitorError {
    MonitorError::Refused {
        op,
        kind: failure.kind(),
        message: failure.message,
    }
}

impl Client {
    /// Connects to the monitor that listens in `run_dir`, and learns what it knows.
    pub async fn connect(run_dir: &Path) -> Result<(Client, Snapshot, Events), MonitorError> {
        let path = run_dir.join(SOCKET);
        let failed = |source| MonitorError::Io {
            op: "connect to",
            path: path.clone(),
            source,
        };
        // The path may be longer than a socket's address; through the directory's descriptor it never is.
        let directory = std::fs::File::open(run_dir).map_err(failed)?;
        let short = format!("/proc/self/fd/{}/{SOCKET}", std::os::fd::AsRawFd::as_raw_fd(&directory));
        let socket = StdUnixStream::connect(short).map_err(failed)?;
        greet(socket).await
    }

    /// The monitor's pid.
    pub fn monitor_pid(&self) -> i32 {
        self.0.monitor_pid
    }

    /// Makes pause and its namespaces.
    pub async fn create_sandbox(&self, spec: SandboxSpec, fds: SandboxFds) -> Result<Process, MonitorError> {
        let mut load = Load::default();
        load.add(Role::Network, fds.netns);
        load.add(Role::CgroupProcs, fds.cgroup_procs);
        self.process("make the sandbox", Call::CreateSandbox(spec), load)
            .await
            .map(|(process, _)| process)
    }

    /// Makes a container; its process waits for [`Client::start`].
    pub async fn create_container(&self, spec: ContainerSpec, fds: ContainerFds) -> Result<Process, MonitorError> {
        let mut load = Load::default();
        load.add(Role::Rootfs, [fds.rootfs]);
        load.add(Role::Mount, fds.mounts);
        load.add(Role::CgroupProcs, fds.cgroup_procs);
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
        self.done(
            "start the container",
            SLOW,
            Call::Start(reference(container_id)),
            Load::default(),
        )
        .await
    }

    /// Starts a process in a running container.
    pub async fn exec(&self, spec: ExecSpec, fds: ExecFds) -> Result<RunningExec, MonitorError> {
        let exec_id = self.0.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let (tell, exit) = oneshot::channel();
        // Before it is asked for: it may be over before its start is known.
        self.0
            .waiting()
            .as_mut()
            .ok_or(MonitorError::Lost)?
            .execs
            .insert(exec_id, tell);
        let mut load = Load::default();
        load.add(Role::Stdin, fds.stdin);
        load.add(Role::Stdout, fds.stdout);
        load.add(Role::Stderr, fds.stderr);
        load.add(Role::CgroupProcs, fds.cgroup_procs);
        let call = Exec {
            container_id: spec.container_id,
            policy: Some(spec.policy),
            tty: spec.tty,
            exec_id,
        };
        match self.process("execute in the container", Call::Exec(call), load).await {
            Ok((process, terminal)) => Ok(RunningExec {
                exec_id,
                process,
                terminal,
                exit,
            }),
            Err(error) => {
                if let Some(waiting) = self.0.waiting().as_mut() {
                    waiting.execs.remove(&exec_id);
                }
                Err(error)
            }
        }
    }

    /// Signals a process that [`Client::exec`] started, or that a snapshot told of.
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
        match self.call(op, SLOW, call, load).await? {
            (Answer::Process(process), mut fds) => Ok((process, fds.pop())),
            _ => Err(MonitorError::Nonsense { op }),
        }
    }

    async fn done(&self, op: &'static str, deadline: Duration, call: Call, load: Load) -> Result<(), MonitorError> {
        match self.call(op, deadline, call, load).await? {
            (Answer::Done(_), _) => Ok(()),
            _ => Err(MonitorError::Nonsense { op }),
        }
    }

    async fn call(
        &self,
        op: &'static str,
        deadline: Duration,
        call: Call,
        load: Load,
    ) -> Result<(Answer, Vec<OwnedFd>), MonitorError> {
        let id = self.0.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let request = Request {
            id,
            roles: load.roles,
            call: Some(call),
        };
        // Checked here: the writer, which has no one to tell, would end the connection.
        if request.encoded_len() > MAX_MESSAGE || load.fds.len() > MAX_DESCRIPTORS {
            return Err(MonitorError::TooLarge { op });
        }
        let (tell, answer) = oneshot::channel();
        self.0
            .waiting()
            .as_mut()
            .ok_or(MonitorError::Lost)?
            .replies
            .insert(id, tell);
        let forget = Forget { shared: &self.0, id };
        self.0.send.send((request, load.fds)).map_err(|_| MonitorError::Lost)?;
        let answered = tokio::time::timeout(deadline, answer).await;
        drop(forget);
        let (answer, fds) = answered
            .map_err(|_| MonitorError::Timeout { op, deadline })?
            .map_err(|_| MonitorError::Lost)?;
        match answer {
            Answer::Failure(failure) => Err(refused(op, failure)),
            answer => Ok((answer, fds)),
        }
    }
}

/// Nobody waits for this reply any more, however the call ended.
struct Forget<'a> {
    shared: &'a Shared,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        if let Some(waiting) = self.shared.waiting().as_mut() {
            waiting.replies.remove(&self.id);
        }
    }
}

/// Descriptors that go with a request.
#[derive(Default)]
struct Load {
    roles: Vec<i32>,
    fds: Vec<OwnedFd>,
}

impl Load {
    fn add(&mut self, role: Role, fds: impl IntoIterator<Item = OwnedFd>) {
        for fd in fds {
            self.roles.push(role as i32);
            self.fds.push(fd);
        }
    }
}

fn reference(container_id: &ContainerId) -> ContainerRef {
    ContainerRef {
        container_id: container_id.to_string(),
    }
}
