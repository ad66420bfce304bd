//! The kernel, fenced. The only room with `unsafe`; wrappers take and return owned file descriptors, and their
//! `io::Error`s say which operation failed on what.
#![allow(unsafe_code)]

pub mod cgroup;
pub mod fd;
pub mod mount;
#[cfg(feature = "daemon")]
pub mod netlink;
