//! Seccomp profiles, compiled to what seccomp(2) takes: an array of `struct sock_filter`.
//!
//! A profile, crisp's own or a file's, is compiled once ([`SeccompCache`]); the process that becomes the container
//! only loads the bytes.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use oci_spec::runtime::{LinuxSeccompAction, LinuxSeccompOperator};

mod cache;
mod compile;
mod newer;
mod profile;
mod runtime_default;

pub use cache::SeccompCache;

/// A compiled profile.
#[derive(Clone, Debug)]
pub struct Filter {
    /// An array of `struct sock_filter`.
    pub program: Arc<[u8]>,
    /// Flags of seccomp(2).
    pub flags: u32,
}

/// Why a profile makes no filter.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    #[error("{op} the seccomp profile {}", path.display())]
    Read {
        op: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("the seccomp profile {} has more than {limit} bytes", path.display())]
    TooLarge { path: PathBuf, limit: u64 },
    #[error("parse the seccomp profile {}", path.display())]
    Parse { path: PathBuf, source: serde_json::Error },
    #[error("seccomp profiles that notify a user-space agent are not supported")]
    Notify,
    #[error("the seccomp profile has the flag {flag:?}, which is not supported")]
    Flag { flag: String },
    #[error("the seccomp profile has architectures and an archMap, of which only one can be followed")]
    TwoArchitectures,
    #[error("the seccomp profile has a rule from kernel {version:?} on, which is no version")]
    KernelVersion { version: String },
    #[error("the seccomp profile denies {syscall:?}, which is not known here and so cannot be denied")]
    UnknownSyscall { syscall: String },
    #[error("the seccomp profile looks at the arguments of {syscall:?}, which is too new for libseccomp")]
    ArgumentsOfNewSyscall { syscall: String },
    #[error("the seccomp profile looks at argument {index} of {syscall:?}; there are 0 to 5")]
    ArgumentIndex { syscall: String, index: usize },
    #[error("the seccomp profile compares argument {index} of {syscall:?} by {operator} with two values")]
    SecondValue {
        syscall: String,
        index: usize,
        operator: LinuxSeccompOperator,
    },
    #[error("the seccomp profile has {value} for an error number")]
    Errno { value: u32 },
    #[error("the seccomp profile has {name:?} for an error, which is not known here or not the number beside it")]
    ErrnoName { name: String },
    #[error("the seccomp profile has an error number for {action}, which answers none")]
    ErrnoOfAction { action: LinuxSeccompAction },
    #[error("the compiled seccomp filter has {size} instructions, more than the {limit} that the kernel takes")]
    FilterTooLong { size: usize, limit: usize },
    #[error("{op} a seccomp filter")]
    Compile {
        op: &'static str,
        source: libseccomp::error::SeccompError,
    },
    #[error("{op} a compiled seccomp filter")]
    Export { op: &'static str, source: io::Error },
}
