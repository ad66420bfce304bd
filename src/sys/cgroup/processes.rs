//! Who is in a cgroup, how to get into it, and whether the kernel killed somebody in it for want of memory.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::hierarchy::Place;
use super::{Cgroup, Joining, file, parse};

/// What a forked, single-threaded child needs to join a cgroup without waiting for the kernel's grace periods.
#[derive(Debug)]
pub struct JoinFds {
    /// The v1 hierarchies' `tasks` files, open for writing: the child writes `0` to each.
    pub tasks: Vec<OwnedFd>,
    /// The cgroup2 directory, for clone3(2) with `CLONE_INTO_CGROUP`.
    pub directory: Option<OwnedFd>,
}

impl Cgroup {
    /// Files to which a process writes `0` to join the cgroup: one per hierarchy, the cgroup2's `cgroup.procs` first.
    ///
    /// The v1 ones are `tasks` files, which move the writing thread: only a single-threaded process may use them. The
    /// write to the cgroup2 one takes 5 to 28 ms when nothing was moved lately; see [`Cgroup::join_fds`].
    pub fn procs_fds(&self) -> io::Result<Vec<OwnedFd>> {
        let mut fds = Vec::with_capacity(12);
        if let Some(dir) = self.cgroup2_dir() {
            fds.push(open_for_writing(&dir.join("cgroup.procs"))?);
        }
        fds.append(&mut self.tasks_fds(Joining::All)?);
        Ok(fds)
    }

    /// The quick way in: v1 `tasks` files and the cgroup2 directory.
    pub fn join_fds(&self) -> io::Result<JoinFds> {
        self.join_fds_for(Joining::All)
    }

    /// As [`Cgroup::join_fds`], of what [`Cgroup::create_bare`] made.
    pub fn bare_join_fds(&self) -> io::Result<JoinFds> {
        self.join_fds_for(Joining::Bare)
    }

    fn join_fds_for(&self, joining: Joining) -> io::Result<JoinFds> {
        let directory = self.cgroup2_dir().map(|dir| open_directory(&dir)).transpose()?;
        Ok(JoinFds {
            tasks: self.tasks_fds(joining)?,
            directory,
        })
    }

    fn tasks_fds(&self, joining: Joining) -> io::Result<Vec<OwnedFd>> {
        self.v1_dirs(joining)
            .map(|(_, dir)| open_for_writing(&dir.join("tasks")))
            .collect()
    }

    /// Moves the process `pid`, with all its threads, into the cgroup in every hierarchy. For processes that could
    /// not join by themselves.
    pub fn add(&self, pid: i32) -> io::Result<()> {
        self.dirs()
            .try_for_each(|dir| file::write(&dir.join("cgroup.procs"), &pid.to_string()))
    }

    /// The processes in the cgroup and in all below it, each once, in no order. Empty if the cgroup is gone.
    pub fn pids(&self) -> io::Result<Vec<i32>> {
        let mut pids = Vec::new();
        for dir in self.process_dirs() {
            pids_below(&dir, &mut pids)?;
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// How many processes are in the cgroup and below it, by one hierarchy. Zero if the cgroup is gone.
    pub fn process_count(&self) -> io::Result<usize> {
        let Some(dir) = self.cgroup2_dir().or_else(|| self.v1_process_dir()) else {
            return Ok(0);
        };
        let mut pids = Vec::new();
        pids_below(&dir, &mut pids)?;
        Ok(pids.len())
    }

    /// Whether any process is in the cgroup or below it. A zombie does not count.
    pub fn populated(&self) -> io::Result<bool> {
        if let Some(dir) = self.cgroup2_dir()
            && is_populated(&dir)?
        {
            return Ok(true);
        }
        match self.v1_process_dir() {
            Some(dir) => {
                let mut pids = Vec::new();
                pids_below(&dir, &mut pids)?;
                Ok(!pids.is_empty())
            }
            None => Ok(false),
        }
    }

    /// One directory per kind of hierarchy: a process that was moved (or moved itself) in one only is still found.
    fn process_dirs(&self) -> impl Iterator<Item = PathBuf> {
        self.cgroup2_dir().into_iter().chain(self.v1_process_dir())
    }

    /// The v1 hierarchy that is asked for processes: the freezer's, which can stop them while they are killed.
    pub(super) fn v1_process_dir(&self) -> Option<PathBuf> {
        let known = ["freezer", "pids", "memory", "cpu"]
            .into_iter()
            .find_map(|c| match self.hierarchy.place(c) {
                Some(Place::V1(root)) => Some(root),
                _ => None,
            });
        known
            .or_else(|| self.hierarchy.v1_roots().next())
            .map(|root| self.dir_below(root))
    }

    /// The file in which the kernel counts its OOM kills, open for reading: `memory.events` on cgroup2,
    /// `memory.oom_control` on v1. The fd stays readable as long as the cgroup exists; read it by [`oom_kills`].
    pub fn oom_events_fd(&self) -> io::Result<OwnedFd> {
        let path = match self.hierarchy.place("memory") {
            Some(Place::V1(root)) => self.dir_below(root).join("memory.oom_control"),
            Some(Place::V2(root)) => self.dir_below(root).join("memory.events"),
            None => {
                return Err(file::unsupported(format!(
                    "oom events of {}: no memory controller",
                    self.path
                )));
            }
        };
        let open = OpenOptions::new().read(true).open(&path);
        open.map(OwnedFd::from).map_err(|e| file::failed("open", &path, e))
    }
}

/// How many processes of the cgroup the kernel's OOM killer has killed so far: the `oom_kill` line of the file that
/// [`Cgroup::oom_events_fd`] opened. On v1 those of the cgroup itself, on cgroup2 those below it as well.
pub fn oom_kills(events: impl AsFd) -> io::Result<u64> {
    let mut buffer = [0; 512];
    let got = rustix::io::pread(events, &mut buffer, 0)
        .map_err(|e| io::Error::new(io::Error::from(e).kind(), format!("read oom events: {e}")))?;
    parse::field(&buffer[..got], b"oom_kill")
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "read oom events: no oom_kill line"))
}

pub(super) fn open_directory(dir: &Path) -> io::Result<OwnedFd> {
    let open = OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(dir);
    open.map(OwnedFd::from).map_err(|e| file::failed("open", dir, e))
}

pub(super) fn open_for_writing(path: &Path) -> io::Result<OwnedFd> {
    OpenOptions::new()
        .write(true)
        .open(path)
        .map(OwnedFd::from)
        .map_err(|e| file::failed("open", path, e))
}

/// `populated` of `cgroup.events`; a cgroup that is gone has nobody in it.
pub(super) fn is_populated(dir: &Path) -> io::Result<bool> {
    match file::read(&dir.join("cgroup.events")) {
        Ok(events) => Ok(parse::field(events.as_bytes(), b"populated") == Some(1)),
        Err(e) if e.kind() == io::ErrorKind::NotFound || !dir.is_dir() => {
            tracing::trace!(error = %e, "cgroup is gone");
            Ok(false)
        }
        Err(e) => Err(e),
    }
}

/// Adds the processes of `dir` and of all cgroups below it; one that vanishes meanwhile is skipped.
pub(super) fn pids_below(dir: &Path, pids: &mut Vec<i32>) -> io::Result<()> {
    let mut pending = vec![dir.to_owned()];
    while let Some(dir) = pending.pop() {
        match file::read(&dir.join("cgroup.procs")) {
            // A pid of a process outside our pid namespace reads as 0.
            Ok(text) => pids.extend(
                text.lines()
                    .filter_map(|line| line.parse::<i32>().ok())
                    .filter(|pid| *pid > 0),
            ),
            // Gone, or a threaded cgroup (EOPNOTSUPP), whose processes are listed by its domain above.
            Err(e) if e.kind() == io::ErrorKind::NotFound || !dir.is_dir() => continue,
            Err(e) if e.kind() == io::ErrorKind::Unsupported => {}
            Err(e) => return Err(e),
        }
        pending.append(&mut file::children(&dir)?);
    }
    Ok(())
}
