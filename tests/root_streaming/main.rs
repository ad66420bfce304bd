//! Exec, attach and port-forward: the real daemon, driven by the real crictl, as root.

mod attach;
#[path = "../support/endpoint.rs"]
mod endpoint;
mod exec;
#[path = "../support/handlers.rs"]
mod handlers;
mod limits;
mod node;
mod port_forward;
mod registry;
mod spdy;
mod stalled;
mod tls;
mod userns;
mod websocket;
mod wire;
