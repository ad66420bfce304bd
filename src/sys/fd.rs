//! File descriptors of this process: which stay open, which do not.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// Closes every descriptor from 3 on but those in `keep`.
///
/// For a forked child that is about to become something else: whatever it inherited must not live on in it.
/// Owners of the closed descriptors in this process must never drop: the child ends in `execve` or `_exit`.
pub fn close_all_but(keep: &[RawFd]) -> io::Result<()> {
    let mut keep: Vec<libc::c_uint> = keep.iter().filter_map(|&fd| libc::c_uint::try_from(fd).ok()).collect();
    keep.sort_unstable();
    let mut from: libc::c_uint = 3;
    for fd in keep.into_iter().filter(|&fd| fd >= 3) {
        if fd > from {
            close_range(from, fd - 1)?;
        }
        from = from.max(fd + 1);
    }
    close_range(from, libc::c_uint::MAX)
}

fn close_range(first: libc::c_uint, last: libc::c_uint) -> io::Result<()> {
    // SAFETY: closing descriptors touches no memory; the caller gives up everything in the range.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if done == 0 {
        Ok(())
    } else {
        Err(super::failed("close_range", io::Error::last_os_error()))
    }
}

/// Makes `fd` take the number `number` (0, 1 or 2 as a rule), replacing what was there; not close-on-exec.
pub fn place(fd: impl AsFd, number: RawFd) -> io::Result<()> {
    // SAFETY: `fd` is open; whatever had the number `number` is given up by the caller.
    let done = unsafe { libc::dup2(fd.as_fd().as_raw_fd(), number) };
    if done == number {
        Ok(())
    } else {
        Err(super::failed("dup2", io::Error::last_os_error()))
    }
}

/// A duplicate of the standard descriptor `number`, close-on-exec, numbered 3 or higher.
pub fn duplicate_standard(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: a standard descriptor is open for as long as the process lives; if it is not, the call says EBADF.
    let standard = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_dupfd_cloexec(standard, 3).map_err(|e| super::failed("duplicate a standard descriptor", e))
}

/// The standard descriptor `number`, borrowed.
pub fn standard(number: RawFd) -> BorrowedFd<'static> {
    // SAFETY: crisp's programs never close 0, 1 and 2.
    unsafe { BorrowedFd::borrow_raw(number) }
}

/// Gives up ownership of `fd` and returns its number, for an interface that wants numbers.
pub fn into_number(fd: OwnedFd) -> RawFd {
    use std::os::fd::IntoRawFd;
    fd.into_raw_fd()
}
