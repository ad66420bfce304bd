//! The whole daemon through its socket: real pods, looked at from inside and from the host.
//!
//! Needs root and `hack/build`. One daemon serves all tests, in a network namespace of its own; every test has pods of
//! its own names. A test that restarts its daemon makes a world of its own. `hack/test --endpoint` runs what is black-box
//! of it on another runtime.

mod accounts;
mod cdi;
mod cgroups;
#[path = "../support/endpoint.rs"]
mod endpoint;
mod errors;
mod events;
mod files;
mod fixture;
mod foreign_client;
#[path = "../support/handlers.rs"]
mod handlers;
mod image_volumes;
mod images;
mod life;
mod limits;
mod lists;
mod logs;
mod metrics;
mod mounts;
mod namespaces;
mod oom;
mod pod_cidrs;
mod pod_resources;
mod ports;
mod process;
mod registry;
mod runtimes;
mod scale;
mod secrets_kept;
mod security;
mod start;
mod stats;
mod subscribers;
mod userns;
mod verbose;
