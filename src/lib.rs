//! crisp: a CRI container runtime for Kubernetes nodes.
//!
//! The rooms, top down; a room uses only rooms below it (`tests/architecture.rs` holds the table):
//!
//! - [`daemon`]: puts everything together, recovers after a restart, shuts down.
//! - [`api`]: the gRPC services: a table of contents, the error table, logging of each RPC.
//! - [`streaming`]: exec, attach and port-forward over HTTP.
//! - [`stats`]: cpu, memory, filesystem, network and process figures of containers and pods.
//! - [`sandbox`]: a pod's life: run, stop, remove.
//! - [`container`]: a container's life: create, start, exec, stop, remove; [`container::spec`] is pure.
//! - [`network`]: gives a pod its addresses: CNI plugins, or the embedded bridge.
//! - [`image`]: references, registries, the layer store.
//! - [`monitor`]: one small process per pod: parent of its processes, writer of its logs and exit records.
//! - [`oci`]: starts OCI processes through libcontainer.
//! - [`handler`]: runtime handlers: libcontainer, and the OCI runtimes that are configured.
//! - [`store`]: the records of pods and containers on disk.
//! - [`events`]: container events and their subscribers.
//! - [`systemd`]: asks systemd for the scopes of pods.
//! - [`config`]: raw file and flags to validated settings.
//! - [`cri`]: the generated CRI.
//! - [`sys`]: the kernel, fenced: the only room with `unsafe`.
//! - [`model`], [`undo`], [`operation`]: ids, the stack of undo steps, the joining of retried requests.
//! - [`fault`]: places where a test can make the daemon die or fail.
//!
//! A pod's path: born in `sandbox::run`, its containers in `container::create` and `container::start`; an exit is
//! recorded by `monitor::reaper` and becomes a state in `container::state`; it dies in `sandbox::stop` and
//! `sandbox::remove`.

#![deny(unsafe_code)]

pub mod model;
pub mod monitor;
pub mod sys;

#[cfg(feature = "monitor")]
pub mod oci;

#[cfg(feature = "daemon")]
pub mod api;
#[cfg(feature = "daemon")]
pub mod config;
#[cfg(feature = "daemon")]
pub mod container;
#[cfg(feature = "daemon")]
pub mod cri;
#[cfg(feature = "daemon")]
pub mod daemon;
#[cfg(feature = "daemon")]
pub mod events;
#[cfg(feature = "daemon")]
pub mod fault;
#[cfg(feature = "daemon")]
pub mod handler;
#[cfg(feature = "daemon")]
pub mod image;
#[cfg(feature = "daemon")]
pub mod network;
#[cfg(feature = "daemon")]
pub mod operation;
#[cfg(feature = "daemon")]
pub mod sandbox;
#[cfg(feature = "daemon")]
pub mod stats;
#[cfg(feature = "daemon")]
pub mod store;
#[cfg(feature = "daemon")]
pub mod streaming;
#[cfg(feature = "daemon")]
pub mod systemd;
#[cfg(feature = "daemon")]
pub mod undo;
