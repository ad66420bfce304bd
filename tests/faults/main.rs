//! What the daemon, its monitors, its network and its registries do when they die, fail, hang or lie. Each test has a
//! machine of its own, runs the real crispd (hack/build) there, and looks for what is left behind.

mod cancelled;
#[path = "../support/daemon.rs"]
mod daemon;
mod daemon_dead;
mod fuse;
#[path = "../support/handlers.rs"]
mod handlers;
mod hangs;
mod hostile;
mod images;
mod killed;
#[path = "../support/leak_check.rs"]
mod leak_check;
mod network;
mod pod_dead;
mod pods;
mod registry;
