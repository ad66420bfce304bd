//! Loads a compiled seccomp filter and executes a program under it, with nothing in between.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Executes `program` with `args` and `env`; first loads `filter` (an array of `struct sock_filter`, empty for none) with the
/// flags of seccomp(2). Returns only on failure. From the load to the execve no other system call is made, so a profile
/// need not allow any.
pub fn load_and_execute(filter: &[u8], flags: u32, program: &CStr, args: &[CString], env: &[CString]) -> io::Error {
    let (args, env) = (pointers(args), pointers(env));
    if let Err(error) = load(filter, flags) {
        return error;
    }
    // SAFETY: both arrays end in a null pointer and their strings outlive the call.
    unsafe { libc::execve(program.as_ptr(), args.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// As [`load_and_execute`], what `program` is open on, with an empty environment.
pub fn load_and_execute_fd(filter: &[u8], program: BorrowedFd<'_>, args: &[CString]) -> io::Error {
    let (args, env) = (pointers(args), pointers(&[]));
    if let Err(error) = load(filter, 0) {
        return error;
    }
    // SAFETY: the path is a literal, both arrays end in a null pointer and their strings outlive the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_raw_fd(),
            c"".as_ptr(),
            args.as_ptr(),
            env.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}

fn pointers(list: &[CString]) -> Vec<*const libc::c_char> {
    list.iter()
        .map(|text| text.as_ptr())
        .chain(std::iter::once(std::ptr::null()))
        .collect()
}

fn load(filter: &[u8], flags: u32) -> io::Result<()> {
    if filter.is_empty() {
        return Ok(());
    }
    let mut instructions: Vec<libc::sock_filter> = filter
        .chunks_exact(8)
        .map(|i| libc::sock_filter {
            code: u16::from_ne_bytes([i[0], i[1]]),
            jt: i[2],
            jf: i[3],
            k: u32::from_ne_bytes([i[4], i[5], i[6], i[7]]),
        })
        .collect();
    let len = u16::try_from(instructions.len())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "the seccomp filter is too long"))?;
    let program = libc::sock_fprog {
        len,
        filter: instructions.as_mut_ptr(),
    };
    // SAFETY: `program` points to `len` instructions that live across the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const program,
        )
    };
    // After a success not even the memory is given back: that might take a system call.
    std::mem::forget(instructions);
    if done == 0 {
        Ok(())
    } else {
        Err(super::failed("load the seccomp filter", io::Error::last_os_error()))
    }
}
