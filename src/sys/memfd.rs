//! Programs in sealed memory: nobody can write to them, not even a container's root through `/proc/<pid>/exe`.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

/// What the processor maps as one, in bytes, where it can.
const HUGE_PAGE: u64 = 2 << 20;

/// Has the kernel put the file's pages together (madvise(2), MADV_COLLAPSE; Linux 6.1): a program is then mapped by neighbouring
/// pages at a time, as one, where otherwise each page of it costs something in every process that is forked and ends. It is
/// the same memory. A kernel that cannot, or has not enough in one piece, leaves it as it is.
fn gather(memfd: &std::fs::File) {
    let Ok(length) = memfd.metadata().map(|metadata| metadata.len() as usize) else {
        return;
    };
    let reserved = length + HUGE_PAGE as usize;
    let (none, shared) = (
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        libc::MAP_SHARED | libc::MAP_FIXED,
    );
    // SAFETY: a new mapping, at an address that the kernel chooses; what is mapped over it stays within it, and nobody else
    // knows of either. Nothing is read or written by it.
    unsafe {
        let from = libc::mmap(std::ptr::null_mut(), reserved, libc::PROT_NONE, none, -1, 0);
        if from == libc::MAP_FAILED {
            return;
        }
        let aligned = from.add(from.align_offset(HUGE_PAGE as usize));
        let mapped = libc::mmap(aligned, length, libc::PROT_READ, shared, memfd.as_raw_fd(), 0);
        if mapped != libc::MAP_FAILED {
            libc::madvise(mapped, length, libc::MADV_COLLAPSE);
        }
        libc::munmap(from, reserved);
    }
}

/// Copies the program at `path` into a sealed, executable memfd called `name`.
pub fn load_program(name: &CStr, path: &Path) -> io::Result<OwnedFd> {
    let says = |e: io::Error| super::failed(&format!("load {}", path.display()), e);
    let mut program = std::fs::File::open(path).map_err(says)?;
    // Since Linux 6.3 a memfd says whether it may be executed; older kernels do not know the flag.
    let base = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memfd = match memfd_create(name, base | MemfdFlags::EXEC) {
        Err(rustix::io::Errno::INVAL) => memfd_create(name, base),
        other => other,
    }
    .map_err(|e| says(e.into()))?;
    let mut memfd = std::fs::File::from(memfd);
    let length = io::copy(&mut program, &mut memfd).map_err(says)?;
    if length > HUGE_PAGE {
        memfd.set_len(length.next_multiple_of(HUGE_PAGE)).map_err(says)?;
        gather(&memfd);
    }
    fcntl_add_seals(
        &memfd,
        SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE,
    )
    .map_err(|e| says(e.into()))?;
    Ok(memfd.into())
}
