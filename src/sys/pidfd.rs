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
    field(&stat(pid)?, 22)
}

/// What the kernel says of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    Lives,
    /// It has ended and its parent has not taken notice yet; how it ended, as wait(2) would tell.
    Ended(i32),
    /// There is no such process (any more).
    Gone,
}

/// Looks at the process `pid` that started at `start_time`.
pub fn look(pid: i32, start_time: u64) -> Sight {
    let seen = || -> io::Result<Sight> {
        let stat = stat(pid)?;
        if field::<u64>(&stat, 22)? != start_time {
            return Ok(Sight::Gone);
        }
        match field::<char>(&stat, 3)? {
            'Z' | 'X' => Ok(Sight::Ended(field(&stat, 52)?)),
            _ => Ok(Sight::Lives),
        }
    };
    seen().unwrap_or(Sight::Gone)
}

fn stat(pid: i32) -> io::Result<String> {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
}

/// The field of this number in proc_pid_stat(5), from 3 on.
fn field<T: std::str::FromStr>(stat: &str, number: usize) -> io::Result<T> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    // The name in parentheses may hold anything; what follows the last parenthesis starts with field 3.
    let after = stat.rfind(')').map(|at| &stat[at + 1..]).ok_or_else(invalid)?;
    let field = after.split_ascii_whitespace().nth(number - 3).ok_or_else(invalid)?;
    field.parse().map_err(|_| invalid())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_lives_ends_and_is_gone() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let started = start_time(pid).unwrap();
        assert_eq!(look(pid, started), Sight::Lives);
        assert_eq!(
            look(pid, started + 1),
            Sight::Gone,
            "another process of the same number"
        );
        let process = open(pid).unwrap();
        signal(&process, libc::SIGTERM).unwrap();
        let mut fds = [rustix::event::PollFd::new(&process, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut fds, None).unwrap();
        assert_eq!(look(pid, started), Sight::Ended(libc::SIGTERM));
        child.wait().unwrap();
        assert_eq!(look(pid, started), Sight::Gone);
    }
}
