//! Exec, attach and port-forward over HTTP.
//!
//! The CRI answers these requests with a URL; the kubelet connects to it and upgrades the connection to SPDY/3.1 or
//! WebSocket ([`server`]). Either becomes the same [`channel`]s, on which [`command`] moves a process's streams and
//! [`port_forward`] TCP connections. What a URL stands for comes from above as an [`offer`].
//!
//! Memory is bounded where a reader is slow: what waits for the client is at most [`channel::WAITING`] pieces a
//! connection; what waits for a process or a pod at most that much a stream and [`channel::ROOM`] pieces a connection.
//! SPDY's windows are not used, because the clients there are (moby/spdystream) neither send nor obey WINDOW_UPDATE:
//! beyond those limits the connection is not read, and TCP holds the client back. A client that takes nothing for the idle
//! timeout, whatever it says meanwhile, is let go of.

mod channel;
mod command;
mod offer;
mod port_forward;
mod protocol;
mod serve;
mod server;
pub mod spdy;
mod status;
mod tls;
mod token;
mod upgrade;
mod websocket;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

pub use offer::{Cause, Command, Dial, Next, Process, Running, Wants};
pub use server::Server;
pub use tls::TlsError;

/// How long clients may do nothing.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// A connection on which nothing moves, either way, ends after this long; so does one that takes nothing of what
    /// is to be sent.
    pub idle: Duration,
    /// How long a client may take for its request, and then to open its streams.
    pub creation: Duration,
}

/// What can go wrong before a client is there; what happens later is told to the client.
#[derive(Debug, thiserror::Error)]
pub enum StreamingError {
    #[error("listen on {address}")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("set up TLS for streaming")]
    Tls(#[from] TlsError),
    #[error("{limit} streaming sessions are open already")]
    TooManySessions { limit: usize },
    #[error("{limit} streaming URLs wait for their clients already")]
    TooManyTokens { limit: usize },
}
