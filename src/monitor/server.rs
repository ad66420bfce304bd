//! The monitor's loop: one thread, one epoll.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;

use prost::Message;
use rustix::event::Timespec;
use rustix::event::epoll::{self, Event, EventData, EventFlags};
use rustix::fs::{AtFlags, Mode, mkdirat, unlinkat};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, acceptfrom_with};

use super::birth::{Sent, failure};
use super::connection::{Connection, ReplyTo};
use super::container::{Container, Outcome, State};
use super::exec::Running;
use super::protocol::{Answer, Call, EXITS, Empty, Failure, FailureKind, Request, SOCKET, Saying, Snapshot, VERSION};
use super::reaper::Stray;
use super::sandbox::Sandbox;
use super::stdio::Scratch;
use super::{birth, room};
use crate::sys::process::{self, SingleThread};
use crate::sys::{failed, fd};

/// The monitor would rather see any other process of the node killed for memory.
const OOM_SCORE_ADJ: i32 = -999;

/// After so long without an event, buffers give their memory back.
const REST: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// What an event of epoll is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    Signals,
    Listener,
    Connection {
        number: u32,
    },
    /// Of the container or exec `key`, or of pause (0).
    Birth {
        key: u32,
    },
    Stream {
        key: u32,
        stream: usize,
    },
    Watcher {
        key: u32,
        number: u32,
    },
}

impl Token {
    /// As epoll carries it: four bits of kind, 28 bits and 32 bits.
    pub fn encode(self) -> u64 {
        let (kind, high, low) = match self {
            Self::Signals => (0, 0, 0),
            Self::Listener => (1, 0, 0),
            Self::Connection { number } => (2, 0, number),
            Self::Birth { key } => (3, 0, key),
            Self::Stream { key, stream } => (4, stream as u64, key),
            Self::Watcher { key, number } => (5, u64::from(number), key),
        };
        kind << 60 | (high & 0x0fff_ffff) << 32 | u64::from(low)
    }

    fn decode(token: u64) -> Option<Self> {
        let (high, low) = ((token >> 32 & 0x0fff_ffff) as u32, token as u32);
        Some(match token >> 60 {
            0 => Self::Signals,
            1 => Self::Listener,
            2 => Self::Connection { number: low },
            3 => Self::Birth { key: low },
            4 => Self::Stream {
                key: low,
                stream: high as usize,
            },
            5 => Self::Watcher { key: low, number: high },
            _ => return None,
        })
    }
}

/// What leads out: epoll, and the daemon if there is one.
pub struct Wire {
    epoll: Rc<OwnedFd>,
    connection: Option<Connection>,
    connections: u32,
}

impl Wire {
    /// The epoll, to add to.
    pub fn epoll(&self) -> Rc<OwnedFd> {
        self.epoll.clone()
    }

    /// Has `line`, of the process `key`, reported.
    pub fn listen_to_birth(&self, line: &OwnedFd, key: u32) -> io::Result<()> {
        Ok(epoll::add(
            &*self.epoll,
            line,
            EventData::new_u64(Token::Birth { key }.encode()),
            EventFlags::IN,
        )?)
    }

    /// Has `fd` not reported any more.
    pub fn ignore(&self, fd: &OwnedFd) {
        // It may not be listened to any more, which is as well.
        let _ = epoll::delete(&*self.epoll, fd);
    }

    /// Answers, if who asked is still there.
    pub fn answer(&mut self, to: ReplyTo, answer: Answer, fds: Vec<OwnedFd>) {
        if let Some(saying) = self
            .connection
            .as_ref()
            .and_then(|connection| to.reply(connection, answer))
        {
            self.send(saying, fds);
        }
    }

    /// Tells the daemon, if there is one that has been given a snapshot.
    pub fn say(&mut self, saying: Saying) {
        if self.connection.as_ref().is_some_and(|connection| connection.greeted) {
            self.send(saying, Vec::new());
        }
    }

    fn send(&mut self, saying: Saying, fds: Vec<OwnedFd>) {
        let Some(connection) = &mut self.connection else { return };
        let token = Token::Connection {
            number: connection.number,
        }
        .encode();
        if connection.say(&self.epoll, token, saying, fds).is_err() {
            self.connection = None;
        }
    }

    fn connect(&mut self, socket: OwnedFd) -> io::Result<()> {
        self.connections += 1;
        let token = Token::Connection {
            number: self.connections,
        }
        .encode();
        epoll::add(&*self.epoll, &socket, EventData::new_u64(token), EventFlags::IN)?;
        // The latest daemon is the daemon.
        self.connection = Some(Connection::new(self.connections, socket));
        Ok(())
    }
}

/// What the launcher leaves a new monitor in 0, 1 and 2.
pub struct Inheritance {
    pub daemon: OwnedFd,
    pub run_dir: OwnedFd,
    pub pause_program: OwnedFd,
}

impl Inheritance {
    /// Takes it over, and closes whatever else is open: what the daemon itself inherited, from a shell perhaps, need not be
    /// close-on-exec, and nobody should wait for the end of a pipe that a pod holds.
    pub fn take() -> io::Result<Self> {
        let taken = Self {
            daemon: fd::duplicate_standard(0)?,
            run_dir: fd::duplicate_standard(1)?,
            pause_program: fd::duplicate_standard(2)?,
        };
        fd::close_all_but(&[&taken.daemon, &taken.run_dir, &taken.pause_program].map(AsRawFd::as_raw_fd))?;
        Ok(taken)
    }
}

pub struct Monitor {
    pub wire: Wire,
    pub single: SingleThread,
    pub run_dir: OwnedFd,
    pub pause_program: OwnedFd,
    pub sandbox: Sandbox,
    pub containers: Vec<Container>,
    pub execs: Vec<Running>,
    pub strays: Vec<Stray>,
    pub scratch: Scratch,
    sandbox_id: String,
    signals: OwnedFd,
    listener: OwnedFd,
    last_key: u32,
    rested: bool,
    done: bool,
}

/// Runs the monitor of `sandbox_id` until it is told to end, or until there is neither a pod nor a daemon.
pub fn run(sandbox_id: String, inheritance: Inheritance) -> io::Result<()> {
    let single = SingleThread::claim()?;
    // A monitor may be started by one that leads a session already.
    let _ = rustix::process::setsid();
    process::set_subreaper()?;
    process::set_dumpable(false)?;
    birth::adjust_oom_score(OOM_SCORE_ADJ)?;
    rustix::process::umask(Mode::from_raw_mode(0o077));
    let listener = listen(&inheritance.run_dir)?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    room::enter()?;
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    for number in 0..3 {
        fd::place(&null, number)?;
    }
    drop(null);

    // For what will be executed. Here, all stay blocked: a pipe without a reader is an error like any other.
    process::reset_signals();
    let signals = process::signal_fd()?;
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(
        &epoll,
        &signals,
        EventData::new_u64(Token::Signals.encode()),
        EventFlags::IN,
    )?;
    epoll::add(
        &epoll,
        &listener,
        EventData::new_u64(Token::Listener.encode()),
        EventFlags::IN,
    )?;
    let mut wire = Wire {
        epoll: Rc::new(epoll),
        connection: None,
        connections: 0,
    };
    wire.connect(inheritance.daemon)?;
    let mut monitor = Monitor {
        wire,
        single,
        run_dir: inheritance.run_dir,
        pause_program: inheritance.pause_program,
        sandbox: Sandbox::Empty,
        containers: Vec::new(),
        execs: Vec::new(),
        strays: Vec::new(),
        scratch: Scratch::default(),
        sandbox_id,
        signals,
        listener,
        last_key: 0,
        rested: false,
        done: false,
    };
    while !monitor.done {
        monitor.turn()?;
    }
    let _ = unlinkat(&monitor.run_dir, SOCKET, AtFlags::empty());
    Ok(())
}

/// Listens in the run directory, whose path may be longer than a socket's address: hence from within.
fn listen(run_dir: &OwnedFd) -> io::Result<OwnedFd> {
    match mkdirat(run_dir, EXITS, Mode::RWXU) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(e) => return Err(failed("make the directory of exit records", e)),
    }
    match unlinkat(run_dir, SOCKET, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(e) => return Err(failed("remove an old socket", e)),
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let listener = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::process::fchdir(run_dir)?;
    rustix::net::bind(&listener, &SocketAddrUnix::new(SOCKET)?).map_err(|e| failed("bind the socket", e))?;
    rustix::net::listen(&listener, 4)?;
    Ok(listener)
}

impl Monitor {
    /// A number for a container, an exec or a watcher, never used before.
    pub fn new_key(&mut self) -> u32 {
        self.last_key += 1;
        self.last_key
    }

    /// Something is over: its memory goes back when nothing else comes up.
    pub fn rest(&mut self) {
        self.rested = false;
    }

    /// There is nobody to complain to but the node's log.
    pub fn complain(&self, what: &str) {
        if let Ok(mut kmsg) = std::fs::OpenOptions::new().write(true).open("/dev/kmsg") {
            use std::io::Write;
            let _ = kmsg.write_all(format!("crisp-monitor {}: {what}\n", self.sandbox_id).as_bytes());
        }
    }

    fn turn(&mut self) -> io::Result<()> {
        let mut events = [Event {
            flags: EventFlags::empty(),
            data: EventData::new_u64(0),
        }; 16];
        let timeout = if self.rested { None } else { Some(&REST) };
        let epoll = self.wire.epoll();
        let count = match epoll::wait(&*epoll, &mut events[..], timeout) {
            Err(rustix::io::Errno::INTR) => return Ok(()),
            other => other?,
        };
        if count == 0 {
            self.scratch.release();
            self.containers.shrink_to_fit();
            self.execs.shrink_to_fit();
            process::trim_memory();
            process::release_code();
            self.rested = true;
        }
        for event in &events[..count] {
            if let Some(token) = Token::decode(event.data.u64()) {
                self.handle(token);
            }
        }
        // Neither a daemon nor a pod: nobody will ever come.
        if self.wire.connection.is_none() && matches!(self.sandbox, Sandbox::Empty) && self.containers.is_empty() {
            self.done = true;
        }
        Ok(())
    }

    fn handle(&mut self, token: Token) {
        match token {
            Token::Signals => {
                let mut information = [0; 128 * 8];
                while rustix::io::read(&self.signals, &mut information[..]).is_ok() {}
                self.reap();
            }
            Token::Listener => self.accept(),
            Token::Connection { number } => self.converse(number),
            Token::Birth { key: 0 } => self.sandbox_born(),
            Token::Birth { key } => {
                if let Some(at) = self.containers.iter().position(|container| container.key == key) {
                    self.container_born(at);
                } else if let Some(at) = self.execs.iter().position(|exec| exec.key == key) {
                    self.exec_born(at);
                }
            }
            Token::Stream { key, stream } => {
                self.rested = false;
                let epoll = self.wire.epoll();
                if let Some(container) = self.containers.iter_mut().find(|container| container.key == key) {
                    container.output.pump(stream, &epoll, &mut self.scratch);
                }
            }
            Token::Watcher { key, number } => {
                let epoll = self.wire.epoll();
                if let Some(container) = self.containers.iter_mut().find(|container| container.key == key) {
                    container.output.watcher_ready(number, &epoll);
                }
            }
        }
    }

    fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let Ok((socket, _)) = acceptfrom_with(&self.listener, flags) else {
            return;
        };
        let me = rustix::process::geteuid();
        if rustix::net::sockopt::socket_peercred(&socket).is_ok_and(|peer| peer.uid == me) {
            // One that cannot be listened to is dropped, and the daemon tries again.
            let _ = self.wire.connect(socket);
        }
    }

    /// The daemon has something to say, can be told more, or is gone.
    fn converse(&mut self, number: u32) {
        self.rested = false;
        let epoll = self.wire.epoll();
        let token = Token::Connection { number }.encode();
        while let Some(connection) = self.wire.connection.as_mut().filter(|c| c.number == number) {
            if connection.flush(&epoll, token).is_err() {
                self.wire.connection = None;
                break;
            }
            match connection.incoming.advance(&connection.socket) {
                Ok((message, fds)) => self.receive(&message, fds),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.wire.connection = None,
            }
        }
    }

    fn receive(&mut self, message: &[u8], fds: Vec<OwnedFd>) {
        let Some(connection) = &mut self.wire.connection else {
            return;
        };
        let Ok(request) = Request::decode(message) else {
            self.wire.connection = None;
            return;
        };
        let reply = connection.reply_to(request.id);
        let outcome = Sent::sort(&request.roles, fds).and_then(|sent| self.call(request.call, sent, reply));
        if let Err(failure) = outcome {
            self.wire.answer(reply, Answer::Failure(failure), Vec::new());
        }
    }

    fn call(&mut self, call: Option<Call>, mut sent: Sent, reply: ReplyTo) -> Outcome {
        let Some(call) = call else {
            return Err(failure(FailureKind::Unknown, "the monitor does not know this request"));
        };
        let answer = match call {
            Call::Hello(_) => {
                if let Some(connection) = &mut self.wire.connection {
                    connection.greeted = true;
                }
                Answer::Snapshot(self.snapshot())
            }
            Call::CreateSandbox(call) => return self.create_sandbox(call, sent, reply),
            Call::CreateContainer(call) => return self.create_container(call, sent, reply),
            Call::Start(call) => return self.start(call, sent, reply),
            Call::Exec(call) => return self.exec(call, sent, reply),
            Call::Signal(call) => self.signal(&call)?,
            Call::SignalExec(call) => self.signal_exec(&call)?,
            Call::ReopenLog(call) => self.reopen_log(&call.container_id, &mut sent)?,
            Call::Resize(call) => self.resize(&call)?,
            Call::Attach(call) => return self.attach(&call.container_id, &mut sent, reply),
            Call::CloseStdin(call) => self.close_stdin(&call.container_id)?,
            Call::Forget(call) => self.forget(&call.container_id)?,
            Call::StopSandbox(_) => return self.stop_sandbox(reply),
            Call::Shutdown(_) => self.shut_down()?,
        };
        self.wire.answer(reply, answer, Vec::new());
        Ok(())
    }

    fn snapshot(&self) -> Snapshot {
        let (pause, pause_exit) = match &self.sandbox {
            Sandbox::Empty | Sandbox::Making(..) => (None, None),
            Sandbox::Alive(pause) => (Some(pause.process), None),
            Sandbox::Dead { process, exit } => (Some(*process), Some(*exit)),
        };
        Snapshot {
            version: VERSION,
            sandbox_id: self.sandbox_id.clone(),
            monitor_pid: std::process::id() as i32,
            pause,
            pause_exit,
            containers: self.containers.iter().filter_map(Container::snapshot).collect(),
            execs: self.execs.iter().map(Running::snapshot).collect(),
        }
    }

    fn shut_down(&mut self) -> Result<Answer, Failure> {
        let alive = matches!(self.sandbox, Sandbox::Making(..) | Sandbox::Alive(_))
            || self
                .containers
                .iter()
                .any(|container| !matches!(container.state, State::Exited(_)));
        if alive {
            return Err(failure(FailureKind::State, "a process of the pod is alive"));
        }
        self.done = true;
        Ok(Answer::Done(Empty {}))
    }
}

#[cfg(test)]
mod tests {
    use super::Token;

    #[test]
    fn tokens_survive_epoll() {
        for token in [
            Token::Signals,
            Token::Listener,
            Token::Connection { number: 7 },
            Token::Birth { key: u32::MAX },
            Token::Stream { key: 9, stream: 1 },
            Token::Watcher { key: 9, number: 12345 },
        ] {
            assert_eq!(Token::decode(token.encode()), Some(token));
        }
    }
}
