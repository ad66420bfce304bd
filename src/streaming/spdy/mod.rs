//! SPDY/3.1, the server's side, as far as Kubernetes uses it: streams that clients open, data both ways, half close,
//! reset, ping. Written after the public draft; nothing else serves it in Rust.

pub mod frame;
pub mod headers;
mod session;

use std::io;

pub use session::{Session, Stream, start};

/// Why a connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum SpdyError {
    #[error("a frame makes no sense: {why}")]
    Frame { why: &'static str },
    #[error("headers make no sense: {why}")]
    Headers { why: &'static str },
    #[error("{op} the connection")]
    Io { op: &'static str, source: io::Error },
}
