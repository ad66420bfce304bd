//! Exec, attach and port-forward over HTTP.
//!
//! The CRI answers these requests with a URL; the kubelet connects to it and upgrades the connection to SPDY/3.1 or
//! WebSocket ([`server`]). Either becomes the same [`channel`]s, on which [`command`] moves a process's streams and
//! [`port_forward`] TCP connections. What a URL stands for comes from above as an [`offer`].
//!
//! Memory is bounded where a reader is slow: what waits for the client is at most [`channel::WAITING`] pieces a
//! connection; what waits for a process or a pod at most that much a stream and [`channel::ROOM`] pieces a connection.
//! SPDY's windows are not used, because the clients there are (moby/spdystream) neither send nor obey WINDOW_UPDATE:
//! beyond those limits the connection is not read, and TCP holds the client back.

mod channel;
mod command;
mod offer;
mod port_forward;
mod protocol;
mod server;
mod spdy;
mod status;
mod token;
mod websocket;

use std::io;
use std::net::SocketAddr;

pub use offer::{Cause, Command, Dial, Next, Process, Running, Wants};
pub use server::Server;

/// What can go wrong before a client is there; what happens later is told to the client.
#[derive(Debug, thiserror::Error)]
pub enum StreamingError {
    #[error("listen on {address}")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("{limit} streaming URLs wait for their clients already")]
    TooManyTokens { limit: usize },
}
