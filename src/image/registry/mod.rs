//! The client of OCI registries (distribution-spec 1.1): hosts, credentials, manifests, blobs.
//!
//! [`Client`] lives as long as the daemon and keeps connections; a [`Session`] serves one pull: it knows the
//! [`hosts`] that may have the repository, in order, and the credentials and tokens for them. A request is tried at
//! each host in turn ([`session`]), a blob is streamed with resumption ([`blob`]) into a [`pipe`].

mod auth;
mod blob;
mod challenge;
mod error;
mod files;
mod hash;
pub mod hosts;
mod manifest;
mod pipe;
mod platform;
mod request;
mod resolve;
mod session;
mod token;
mod transport;

use std::path::PathBuf;
use std::time::Duration;

pub use self::auth::Auth;
pub use self::blob::Streamed;
pub use self::error::RegistryError;
pub use self::pipe::{Reader, Verdict, Writer, pipe};
pub use self::platform::Platform;
pub use self::resolve::{RemoteLayer, Resolved};
pub use self::session::{Client, Session};

/// Settings of the registry client.
#[derive(Clone, Debug)]
pub struct RegistryConfig {
    /// Directories with one directory per registry, as containerd's `config_path`; the first that has something for
    /// a registry is used. Read again at each pull.
    pub hosts_dirs: Vec<PathBuf>,
    /// How long a connection may take to be made, TLS included.
    pub connect_timeout: Duration,
    /// How long a connection may stay without a byte before it is given up and the transfer resumed.
    pub stall_timeout: Duration,
    /// How often all hosts are tried for one thing without progress.
    pub attempts: u32,
    /// The pause before the second attempt; it doubles with each further one, and is jittered.
    pub backoff: Duration,
    /// The longest pause, also when a registry asks for a longer one: then the pull fails instead.
    pub longest_pause: Duration,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self {
            hosts_dirs: vec![
                PathBuf::from("/etc/crisp/certs.d"),
                PathBuf::from("/etc/containerd/certs.d"),
                PathBuf::from("/etc/docker/certs.d"),
            ],
            connect_timeout: Duration::from_secs(15),
            stall_timeout: Duration::from_secs(30),
            attempts: 6,
            backoff: Duration::from_millis(500),
            longest_pause: Duration::from_secs(60),
        }
    }
}
