//! The connection to a monitor: requests out, replies and events in, each to whom it is for.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use prost::Message;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

use super::client::{Event, Events, MonitorError};
use super::frame::{Incoming, MAX_DESCRIPTORS, MAX_MESSAGE, Outgoing};
use super::protocol::{Answer, Call, Exit, Failure, FromMonitor, Hello, Request, Role, Saying, Snapshot, VERSION};
use crate::model::ContainerId;

type Replies = HashMap<u64, oneshot::Sender<(Answer, Vec<OwnedFd>)>>;

/// What waits for the monitor. `None` once the connection has ended.
struct Waiting {
    replies: Replies,
    execs: HashMap<u64, oneshot::Sender<Exit>>,
}

/// A request and its descriptors. The queue of each pod has room for a block of them from the start: boxes are small.
type Outbound = (Request, Vec<OwnedFd>);

/// What the clients of one connection share.
pub struct Link {
    send: mpsc::UnboundedSender<Box<Outbound>>,
    waiting: Mutex<Option<Waiting>>,
    last_id: AtomicU64,
    pub monitor_pid: i32,
}

impl Link {
    fn waiting(&self) -> MutexGuard<'_, Option<Waiting>> {
        self.waiting.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Talks to the monitor at the other end of `socket` for the first time, however long it takes to answer.
pub async fn greet(socket: StdUnixStream) -> Result<(Arc<Link>, Snapshot, Events), MonitorError> {
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
    let snapshot = exchange.await?;

    let (send, requests) = mpsc::unbounded_channel();
    let (tell, events) = mpsc::unbounded_channel();
    let waiting = Waiting {
        replies: HashMap::new(),
        execs: HashMap::new(),
    };
    let last_exec = snapshot.execs.iter().map(|exec| exec.exec_id).max().unwrap_or(0);
    let first_id = last_exec.max(nanos_since_epoch());
    let shared = Arc::new(Link {
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
    Ok((shared, snapshot, events))
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
async fn write_requests(socket: Arc<UnixStream>, mut requests: mpsc::UnboundedReceiver<Box<Outbound>>) {
    let mut outgoing = Outgoing::default();
    while let Some(outbound) = requests.recv().await {
        let (request, fds) = *outbound;
        if outgoing.push(&request, fds).is_err() || write(&socket, &mut outgoing).await.is_err() {
            break;
        }
    }
    let _ = rustix::net::shutdown(&*socket, rustix::net::Shutdown::Both);
}

async fn read_sayings(
    socket: Arc<UnixStream>,
    mut incoming: Incoming,
    shared: Weak<Link>,
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

impl Link {
    /// An id for a request or an exec, never used before.
    pub fn new_id(&self) -> u64 {
        self.last_id.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Has the end of the exec `exec_id` told.
    pub fn expect_exec(&self, exec_id: u64) -> Result<oneshot::Receiver<Exit>, MonitorError> {
        let (tell, exit) = oneshot::channel();
        self.waiting()
            .as_mut()
            .ok_or(MonitorError::Lost)?
            .execs
            .insert(exec_id, tell);
        Ok(exit)
    }

    /// Nobody wants to know the end of the exec `exec_id`.
    pub fn forget_exec(&self, exec_id: u64) {
        if let Some(waiting) = self.waiting().as_mut() {
            waiting.execs.remove(&exec_id);
        }
    }

    /// Asks, and waits for the answer until `deadline`. `op` says what for.
    pub async fn call(
        &self,
        op: &'static str,
        deadline: Duration,
        call: Call,
        load: Load,
    ) -> Result<(Answer, Vec<OwnedFd>), MonitorError> {
        let id = self.new_id();
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
        self.waiting()
            .as_mut()
            .ok_or(MonitorError::Lost)?
            .replies
            .insert(id, tell);
        let forget = Forget { link: self, id };
        self.send
            .send(Box::new((request, load.fds)))
            .map_err(|_| MonitorError::Lost)?;
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
    link: &'a Link,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        if let Some(waiting) = self.link.waiting().as_mut() {
            waiting.replies.remove(&self.id);
        }
    }
}

/// Descriptors that go with a request.
#[derive(Default)]
pub struct Load {
    roles: Vec<i32>,
    fds: Vec<OwnedFd>,
}

impl Load {
    /// Adds `fds`, each in the role `role`.
    pub fn add(&mut self, role: Role, fds: impl IntoIterator<Item = OwnedFd>) {
        for fd in fds {
            self.roles.push(role as i32);
            self.fds.push(fd);
        }
    }
}
