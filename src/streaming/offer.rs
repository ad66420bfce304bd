//! What a URL stands for, as the rooms above give it.

use std::error::Error;
use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::net::TcpStream;

/// Why something failed, with its causes.
pub type Cause = Box<dyn Error + Send + Sync>;

/// The streams that the request asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wants {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

/// A command that starts when its client is there: a process of its own (exec), or the container's (attach).
#[tonic::async_trait]
pub trait Command: Send {
    async fn start(self: Box<Self>) -> Result<Running, Cause>;
}

/// A command under way. All descriptors are non-blocking; a terminal appears as both stdin and stdout.
pub struct Running {
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
    pub process: Box<dyn Process>,
    /// How long output may go on once the process has ended; none: until everyone who has the pipe open is gone.
    pub drain: Option<Duration>,
}

/// What to do after one side of a command has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The rest goes on; output without a client is read and dropped.
    Stay,
    /// The descriptors are let go of; the end of the process is waited for.
    HangUp,
    /// Nothing more is to be done.
    Detach,
}

/// The process behind a command.
#[tonic::async_trait]
pub trait Process: Send {
    /// Waits for its end: the exit code, 0 where there is none to tell. May be cancelled and called again.
    async fn ended(&mut self) -> Result<i32, Cause>;

    /// The client's terminal has a new size, in characters.
    async fn resize(&mut self, columns: u16, rows: u16);

    /// The client sends no more input. Called at most once, also if the client has left.
    async fn stdin_ended(&mut self) -> Next;

    /// The client has left. The process lets go of what it holds of the terminal.
    fn left(&mut self) -> Next;
}

/// Connects to ports of a pod.
#[tonic::async_trait]
pub trait Dial: Send + Sync {
    async fn dial(&self, port: u16) -> Result<TcpStream, Cause>;
}
