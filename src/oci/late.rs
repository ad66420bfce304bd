//! Mounts that come after everything libcontainer does: those on or below a /dev that is the user's own.
//!
//! libcontainer makes nodes and links in /dev once all its mounts are there. On somebody's real /dev that would fail, or
//! change it; so it works on a tmpfs, and the user's /dev covers that at the end.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};

use super::stage;
use crate::sys::mount;

/// A detached mount, and where in the container it belongs.
#[derive(Debug)]
pub struct LateMount {
    pub mount: OwnedFd,
    /// Absolute.
    pub destination: PathBuf,
}

/// Attaches `mounts` in order. Inside the container, while its process may still do anything.
pub fn attach(mounts: Vec<LateMount>) -> io::Result<()> {
    let root = openat(
        CWD,
        "/",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    for LateMount { mount, destination } in mounts {
        let said = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", destination.display()));
        let place = place(Path::new("/"), &root, &mount, &destination).map_err(said)?;
        mount::attach_at(&mount, &place).map_err(said)?;
    }
    Ok(())
}

/// The place for `mount` below `root`, which `opened` is open on; made if it is missing: of the mount's own kind, empty.
pub fn place(root: &Path, opened: &OwnedFd, mount: &OwnedFd, destination: &Path) -> io::Result<OwnedFd> {
    match mount::open_in_root(opened, destination, OFlags::PATH, Mode::empty()) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => make(root, opened, mount, destination),
        found => found,
    }
}

fn make(root: &Path, opened: &OwnedFd, mount: &OwnedFd, destination: &Path) -> io::Result<OwnedFd> {
    if FileType::from_raw_mode(fstat(mount)?.st_mode) == FileType::Directory {
        stage::make_directory(root, destination)?;
        return mount::open_in_root(opened, destination, OFlags::PATH, Mode::empty());
    }
    stage::make_directory(root, destination.parent().unwrap_or(Path::new("/")))?;
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    mount::open_in_root(opened, destination, flags, Mode::from_raw_mode(0o644))?;
    mount::open_in_root(opened, destination, OFlags::PATH, Mode::empty())
}
