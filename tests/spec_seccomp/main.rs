//! Compiled seccomp filters.

#[cfg(target_arch = "x86_64")]
mod filter;
mod kernel;
mod profiles;
/// The table is of x86-64 and what else its processors run; elsewhere the numbers are others.
#[cfg(target_arch = "x86_64")]
mod table;

const SYS_CHROOT: u64 = 1 << 18;
const SYS_ADMIN: u64 = 1 << 21;
const ALL: u64 = (1 << 41) - 1;
