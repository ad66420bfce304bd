//! Processes by descriptor: a signal never reaches a stranger that got the pid meanwhile.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Opens the process `pid`.
pub fn open(pid: i32) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
    pidfd_open(pid, PidfdFlags::empty()).map_err(|e| super::failed("pidfd_open", e))
}

/// Sends signal `signo` (real-time signals too). `NotFound` once the process is gone.
pub fn signal(pidfd: impl AsFd, signo: i32) -> io::Result<()> {
    // SAFETY: the siginfo pointer is null, which the kernel takes as "as kill(2)"; nothing else is memory.
    let done = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_fd().as_raw_fd(),
            signo,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if done == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ESRCH) => Err(io::Error::new(io::ErrorKind::NotFound, "the process is gone")),
        _ => Err(super::failed("pidfd_send_signal", error)),
    }
}

/// The start time of the process `pid`, in clock ticks since boot (proc_pid_stat(5), field 22). With the pid it
/// names a process for good.
pub fn start_time(pid: i32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in parentheses may hold anything; what follows the last parenthesis starts with field 3.
    let after = stat
        .rfind(')')
        .map(|at| &stat[at + 1..])
        .ok_or(io::ErrorKind::InvalidData)?;
    let field = after
        .split_ascii_whitespace()
        .nth(22 - 3)
        .ok_or(io::ErrorKind::InvalidData)?;
    field.parse().map_err(|_| io::ErrorKind::InvalidData.into())
}
