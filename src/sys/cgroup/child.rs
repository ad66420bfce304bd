//! A cgroup of its own for one exec, so that all it started can be killed at once.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{Cgroup, check_name, file, kill, processes, remove};

/// How long [`Child::remove`] tries: the killed need a moment, the reaped next to none.
const REMOVE_PATIENCE: Duration = Duration::from_millis(50);

/// How long [`Child::dissolve`] tries, and how often it looks.
const DISSOLVE_PATIENCE: Duration = Duration::from_secs(2);
const DISSOLVE_PAUSE: Duration = Duration::from_millis(10);

/// A cgroup below a container's, in the cgroup2 hierarchy only, without controllers of its own.
///
/// The container's limits hold for it: its processes are in the container's cgroup on v1, and on cgroup2 a cgroup's
/// limits hold for all below it. Because the container's `cgroup.subtree_control` stays empty, the container may have
/// processes and such children at once (kernel Documentation/admin-guide/cgroup-v2.rst, "No Internal Process
/// Constraint").
///
/// Dropping it leaves the cgroup, which goes with the container.
#[derive(Debug)]
pub struct Child {
    dir: PathBuf,
}

impl Cgroup {
    /// Makes the child `name`. `Unsupported` where no cgroup2 hierarchy is mounted, `NotFound` if this cgroup is
    /// gone, `AlreadyExists` if the child exists.
    pub fn child(&self, name: &str) -> io::Result<Child> {
        check_name(name).map_err(|why| file::invalid(format!("cgroup name {name:?}: {why}")))?;
        let Some(parent) = self.cgroup2_dir() else {
            return Err(file::unsupported(format!(
                "child of cgroup {}: no cgroup2 is mounted",
                self.path
            )));
        };
        let dir = parent.join(name);
        std::fs::create_dir(&dir).map_err(|e| file::failed_below("mkdir", &dir, e))?;
        Ok(Child { dir })
    }

    /// The children that there are, whoever made them; none where no cgroup2 hierarchy is mounted.
    pub fn children(&self) -> io::Result<Vec<Child>> {
        let dirs = self
            .cgroup2_dir()
            .map_or(Ok(Vec::new()), |parent| file::children(&parent))?;
        Ok(dirs.into_iter().map(|dir| Child { dir }).collect())
    }
}

impl Child {
    /// The directory.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// The last part of its path; none if that is not UTF-8.
    pub fn name(&self) -> Option<&str> {
        self.dir.file_name()?.to_str()
    }

    /// The directory, for clone3(2) with `CLONE_INTO_CGROUP`: the way in that waits for nothing.
    pub fn directory_fd(&self) -> io::Result<OwnedFd> {
        processes::open_directory(&self.dir)
    }

    /// Moves the process `pid`, with all its threads, into it.
    pub fn add(&self, pid: i32) -> io::Result<()> {
        file::write(&self.dir.join("cgroup.procs"), &pid.to_string())
    }

    /// Sends SIGKILL to all in it and below it. Does not wait.
    pub fn kill(&self) -> io::Result<()> {
        kill::signal_all(&self.dir)
    }

    /// Waits until nobody is in it, at most `patience`; false if somebody still is. Blocks.
    pub fn wait_empty(&self, patience: Duration) -> io::Result<bool> {
        kill::wait_empty(&self.dir, Instant::now() + patience)
    }

    /// Whether any process is in it or below it.
    pub fn populated(&self) -> io::Result<bool> {
        processes::is_populated(&self.dir)
    }

    /// The processes in it and below it.
    pub fn pids(&self) -> io::Result<Vec<i32>> {
        let mut pids = Vec::new();
        processes::pids_below(&self.dir, &mut pids)?;
        Ok(pids)
    }

    /// Moves whoever is in it up into the container's cgroup, and removes it. Whoever forks faster than that keeps it.
    /// Blocks: moving a process may wait for the kernel's grace period.
    pub fn dissolve(&self) -> io::Result<()> {
        let parent = self.dir.parent().unwrap_or(&self.dir);
        let deadline = Instant::now() + DISSOLVE_PATIENCE;
        loop {
            for pid in self.pids()? {
                let procs = parent.join("cgroup.procs");
                match std::fs::write(&procs, pid.to_string()) {
                    Ok(()) => {}
                    // It has ended meanwhile.
                    Err(e) if e.raw_os_error() == Some(libc::ESRCH) => {}
                    Err(e) => return Err(file::failed("write", &procs, e)),
                }
            }
            match self.remove() {
                // Who is dying is in no list any more, and busy still.
                Err(e) if e.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                    std::thread::sleep(DISSOLVE_PAUSE);
                }
                removed => return removed,
            }
        }
    }

    /// Removes it. `ResourceBusy`, at once, if somebody is in it; the container's removal takes it then. One that is
    /// gone is fine.
    pub fn remove(&self) -> io::Result<()> {
        let patience = if self.populated()? {
            Duration::ZERO
        } else {
            REMOVE_PATIENCE
        };
        remove::remove_tree(&self.dir, Instant::now() + patience)
    }
}
