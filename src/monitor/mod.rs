//! One small process per pod: parent of every process of the pod, writer of its logs and of its exit records.
//!
//! The daemon sees [`client`], [`launcher`] and [`protocol`]; the rest is the monitor itself: one thread, one epoll,
//! no tokio. It outlives the daemon and upgrades of it. libcontainer only ever runs in children that it forks.
//!
//! - [`protocol`], [`frame`]: what daemon and monitor say to each other, and how it travels. `record`: an exit on disk.
//! - [`client`], `external_client`, [`launcher`], `link`: the daemon's side.
//! - `server`: the loop; `connection`: the daemon as the monitor sees it.
//! - `sandbox`: makes pause and its namespaces. `room`: the monitor's own, nearly empty mount namespace.
//! - `container`, `create`, `exec`: containers and what is started in them. `birth`: a process until its program executes.
//! - `external`: containers of external OCI runtimes, in children that run those.
//! - `reaper`: the end of each process: record first, event then. `oom`: was it memory?
//! - `stdio`, `log`, `attach`: what the processes write.

pub mod frame;
pub mod protocol;
mod record;

#[cfg(feature = "daemon")]
mod access;
#[cfg(feature = "daemon")]
pub mod client;
#[cfg(feature = "daemon")]
mod external_client;
#[cfg(feature = "daemon")]
pub mod launcher;
#[cfg(feature = "daemon")]
mod link;

#[cfg(feature = "monitor")]
mod attach;
#[cfg(feature = "monitor")]
mod birth;
#[cfg(feature = "monitor")]
mod connection;
#[cfg(feature = "monitor")]
mod container;
#[cfg(feature = "monitor")]
mod create;
#[cfg(feature = "monitor")]
mod exec;
#[cfg(feature = "monitor")]
mod external;
#[cfg(feature = "monitor")]
mod log;
#[cfg(feature = "monitor")]
mod oom;
#[cfg(feature = "monitor")]
mod reaper;
#[cfg(feature = "monitor")]
mod room;
#[cfg(feature = "monitor")]
mod sandbox;
#[cfg(feature = "monitor")]
pub mod server;
#[cfg(feature = "monitor")]
mod stdio;

#[cfg(feature = "daemon")]
pub use access::Access;
#[cfg(feature = "daemon")]
pub use client::{Client, MonitorError};
#[cfg(feature = "daemon")]
pub use launcher::Launcher;
