//! The kernel, fenced. The only room with `unsafe`; wrappers take and return owned file descriptors, and their
//! `io::Error`s say which operation failed on what.
#![allow(unsafe_code, reason = "the fence: nowhere else")]

pub mod bpf;
pub mod capability;
pub mod cgroup;
pub mod fd;
pub mod memfd;
#[cfg(feature = "daemon")]
pub mod memory;
pub mod mount;
#[cfg(feature = "daemon")]
pub mod mount_namespace;
#[cfg(feature = "daemon")]
pub mod netlink;
pub mod open;
pub mod pidfd;
pub mod process;
#[cfg(feature = "monitor")]
pub mod pty;
pub mod scm;
pub mod seccomp;
#[cfg(feature = "daemon")]
pub mod userns;

/// An `io::Error` that says what was being done.
pub(crate) fn failed(op: &str, source: impl Into<std::io::Error>) -> std::io::Error {
    let source = source.into();
    std::io::Error::new(source.kind(), format!("{op}: {source}"))
}
