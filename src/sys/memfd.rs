//! Programs in sealed memory: nobody can write to them, not even a container's root through `/proc/<pid>/exe`.

use std::ffi::CStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

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
    io::copy(&mut program, &mut memfd).map_err(says)?;
    fcntl_add_seals(
        &memfd,
        SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE,
    )
    .map_err(|e| says(e.into()))?;
    Ok(memfd.into())
}
