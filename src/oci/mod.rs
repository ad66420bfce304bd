//! Starts OCI processes: what turns a spec, a root and a policy into a process that waits to be executed.
//!
//! Everything here runs in a child that the monitor has forked for one purpose, and dies with it: libcontainer
//! changes its caller and, when it fails, leaves descriptors and children behind.
//!
//! - [`youki`]: the only file that names libcontainer.
//! - [`join`]: a process in a container that runs, without libcontainer.
//! - [`external`]: an OCI runtime's command line instead.
//! - `stage`: puts the detached mounts that the daemon sent where libcontainer can bind them from.
//! - `execute`: from a process inside its container to the program, without giving anything away.
//! - `early`: mounts that are made without libcontainer, before it.
//! - `late`: mounts on or below a /dev that is the user's own, when libcontainer is done with it.
//! - [`line`]: what such a child and the monitor say to each other.
//! - `diagnosis`: libcontainer's errors hide their causes; its log does not.

mod diagnosis;
mod early;
mod execute;
pub mod external;
pub mod join;
mod late;
pub mod line;
mod places;
mod stage;
pub mod youki;

pub use stage::STAGE;

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

/// What a program is executed as. Capability sets are masks: bit n is capability number n.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    pub args: Vec<Vec<u8>>,
    pub env: Vec<Vec<u8>>,
    /// Made if missing; empty is `/`.
    pub cwd: PathBuf,
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub umask: u32,
    pub bounding: u64,
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
    pub ambient: u64,
    pub no_new_privs: bool,
    /// An array of `struct sock_filter`; empty is none.
    pub seccomp: Vec<u8>,
    pub seccomp_flags: u32,
    /// (RLIMIT_*, soft, hard)
    pub limits: Vec<(u32, u64, u64)>,
    pub apparmor: Option<String>,
}

/// What a process reads and writes; /dev/null where there is nothing.
#[derive(Debug, Default)]
pub struct Stdio {
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
    /// A terminal of the container's own, made inside it, is all three; its master comes back.
    pub terminal: bool,
}

/// A kind of namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Namespace {
    Net,
    Ipc,
    Uts,
    Pid,
    User,
}

impl Namespace {
    /// As in `nsfd:<kind>` and in `/proc/<pid>/ns`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Net => "net",
            Self::Ipc => "ipc",
            Self::Uts => "uts",
            Self::Pid => "pid",
            Self::User => "user",
        }
    }
}

/// Namespaces to join, by descriptor.
pub type Namespaces = Vec<(Namespace, OwnedFd)>;

/// A container to make.
pub struct Creation {
    /// The OCI runtime spec as JSON.
    pub spec: Vec<u8>,
    pub rootfs: OwnedFd,
    pub mounts: Vec<OwnedFd>,
    /// Those of `mounts` that are attached last, in order, and where.
    pub late_mounts: Vec<(usize, PathBuf)>,
    pub namespaces: Namespaces,
    /// The node's number for root of the pod's user namespace; 0 without one.
    pub root_id: u32,
    pub stdio: Stdio,
    pub policy: Policy,
}

/// A process to start in a container that runs.
pub struct Joining {
    /// A pidfd of the container's first process.
    pub target: OwnedFd,
    /// Whether the container has a user namespace.
    pub user_namespace: bool,
    pub stdio: Stdio,
    pub policy: Policy,
}

/// A process that waits for the word to execute its program.
pub struct Waiting {
    pub pid: i32,
    /// The terminal's master, if one was asked for.
    pub terminal: Option<OwnedFd>,
}

#[derive(Debug, thiserror::Error)]
pub enum OciError {
    #[error("read the OCI spec")]
    Spec(#[source] serde_json::Error),
    #[error("the OCI spec: {what}")]
    Unfit { what: String },
    #[error("{op}")]
    Io {
        op: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("mount at {}", destination.display())]
    Mount {
        destination: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("mount {index} of the OCI spec")]
    Stage {
        index: usize,
        #[source]
        source: io::Error,
    },
    #[error("{program} {command}: {why}")]
    Runtime {
        program: String,
        command: &'static str,
        why: String,
    },
    #[error("libcontainer {op}")]
    Libcontainer {
        op: &'static str,
        #[source]
        source: Box<dyn std::error::Error>,
    },
}

/// An error and all its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let more = cause.to_string();
        // Some errors already end in what their source says.
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        next = cause.source();
    }
    text
}
