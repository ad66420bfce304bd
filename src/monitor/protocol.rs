//! What daemon and monitor say to each other: prost messages in [`super::frame`]s.
//!
//! A monitor outlives upgrades of the daemon, so these messages only ever grow: fields are added under new tags,
//! never changed or reused; what is not known is skipped. [`VERSION`] rises when a daemon must know what an older
//! monitor cannot do.

mod from_daemon;
mod from_monitor;

pub use from_daemon::*;
pub use from_monitor::*;

/// The version of the protocol that this build speaks.
pub const VERSION: u32 = 1;

/// The socket in a sandbox's run directory on which its monitor listens.
pub const SOCKET: &str = "monitor.sock";

/// The directory of exit records in a sandbox's run directory.
pub const EXITS: &str = "exits";

#[derive(Clone, PartialEq, prost::Message)]
pub struct Empty {}
