//! Killing everything in a cgroup.

use std::collections::HashSet;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{Cgroup, file, parse, processes};

/// How long [`Cgroup::kill`] waits for the killed to be gone.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a v1 freezer may take to stop everybody before the signals go out all the same.
const FREEZE_PATIENCE: Duration = Duration::from_millis(200);
/// How long the killed may take before somebody is suspected to have frozen them.
const THAW_AFTER: Duration = Duration::from_millis(20);
const PAUSE: Duration = Duration::from_millis(1);

impl Cgroup {
    /// As [`Cgroup::kill_within`], 10 seconds.
    pub fn kill(&self) -> io::Result<Vec<i32>> {
        self.kill_within(PATIENCE)
    }

    /// Sends SIGKILL to every process in the cgroup and below it and waits until they are gone, at most `patience`.
    /// Blocks. Returns the pids that are left: in an uninterruptible sleep, or joining again and again. A cgroup that
    /// is gone is fine.
    pub fn kill_within(&self, patience: Duration) -> io::Result<Vec<i32>> {
        let deadline = Instant::now() + patience;
        if let Some(dir) = self.cgroup2_dir() {
            if processes::is_populated(&dir)? {
                signal_all(&dir)?;
                // On v1 a frozen process dies only when it is thawed, whoever froze it.
                if !wait_empty(&dir, deadline.min(Instant::now() + THAW_AFTER))? {
                    self.thaw();
                    wait_empty(&dir, deadline)?;
                }
            }
            if self.hierarchy.is_v2() {
                return self.left();
            }
        }
        self.kill_v1(deadline)?;
        self.left()
    }

    /// Sends SIGKILL to all, without waiting.
    pub fn kill_now(&self) -> io::Result<()> {
        match self.cgroup2_dir() {
            Some(dir) if processes::is_populated(&dir)? => signal_all(&dir),
            _ if self.hierarchy.is_v2() => Ok(()),
            _ => self.kill_v1(Instant::now()),
        }
    }

    fn left(&self) -> io::Result<Vec<i32>> {
        if self.populated()? { self.pids() } else { Ok(Vec::new()) }
    }

    /// v1 has no kill of its own: stop all, so that none can fork away, signal all, let go; again until none is left.
    fn kill_v1(&self, deadline: Instant) -> io::Result<()> {
        let Some(dir) = self.v1_process_dir() else {
            return Ok(());
        };
        let mut rounds = 0;
        loop {
            let mut pids = Vec::new();
            processes::pids_below(&dir, &mut pids)?;
            if pids.is_empty() {
                return Ok(());
            }
            if rounds > 0 && Instant::now() >= deadline {
                return Ok(());
            }
            // The dying take a moment; freezing again and again would only hold them up.
            if rounds % 20 == 0 {
                let frozen = freeze(&dir, deadline);
                let killed = kill_listed(&dir);
                if frozen {
                    self.thaw();
                }
                killed?;
            }
            rounds += 1;
            std::thread::sleep(PAUSE);
        }
    }

    /// Thaws the v1 freezer's cgroup and all below it.
    fn thaw(&self) {
        let Some(top) = self.v1_process_dir() else { return };
        let mut pending = vec![top];
        while let Some(dir) = pending.pop() {
            let path = dir.join("freezer.state");
            if path.exists()
                && let Err(error) = file::write(&path, "THAWED")
            {
                tracing::debug!(%error, "could not thaw");
            }
            pending.extend(file::children(&dir).unwrap_or_default());
        }
    }
}

/// `cgroup.kill` (Linux 5.14): atomic against fork, the whole subtree.
pub(super) fn signal_all(dir: &Path) -> io::Result<()> {
    let path = dir.join("cgroup.kill");
    match file::write_raw(&path, "1") {
        // Of a cgroup that another removes the files go one by one, this one after the first; then the directory.
        Err(e) if e.raw_os_error() == Some(libc::ENODEV) || !dir.join("cgroup.procs").exists() => Ok(()),
        Err(e) => Err(file::name_write(&path, "1", e)),
        Ok(()) => Ok(()),
    }
}

/// Waits until nobody is in the cgroup at `dir`: the kernel makes `cgroup.events` readable (POLLPRI) on each change.
/// False if the deadline came first.
pub(super) fn wait_empty(dir: &Path, deadline: Instant) -> io::Result<bool> {
    let path = dir.join("cgroup.events");
    let events = match std::fs::File::open(&path) {
        Ok(events) => events,
        Err(e) if file::is_gone(&e) => return Ok(true),
        Err(e) => return Err(file::failed("open", &path, e)),
    };
    loop {
        let mut text = [0; 256];
        let got = match rustix::io::pread(&events, &mut text, 0) {
            Ok(got) => got,
            Err(rustix::io::Errno::NODEV) => return Ok(true),
            Err(e) => return Err(file::failed("read", &path, e.into())),
        };
        if parse::field(&text[..got], b"populated") != Some(1) {
            return Ok(true);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let timeout = Timespec::try_from(left).ok();
        let mut fds = [PollFd::from_borrowed_fd(events.as_fd(), PollFlags::PRI)];
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(file::failed("poll", &path, e.into())),
        }
    }
}

/// Asks the freezer to stop everybody; true if it was asked (and so must thaw), in full or not.
fn freeze(dir: &Path, deadline: Instant) -> bool {
    let path = dir.join("freezer.state");
    if file::write_raw(&path, "FROZEN").is_err() {
        return false;
    }
    let deadline = deadline.min(Instant::now() + FREEZE_PATIENCE);
    while Instant::now() < deadline {
        match file::read(&path) {
            Ok(state) if state.trim() == "FREEZING" => std::thread::sleep(PAUSE),
            _ => break,
        }
    }
    true
}

/// SIGKILL to each process listed in `dir` and below. A pid is signalled through a pidfd that was opened while the
/// pid was in the cgroup (listed before and after), so that a reused pid is never hit.
fn kill_listed(dir: &Path) -> io::Result<()> {
    let mut before = Vec::new();
    processes::pids_below(dir, &mut before)?;
    let open = |pid: &i32| Some((*pid, pidfd_open(Pid::from_raw(*pid)?, PidfdFlags::empty()).ok()?));
    let opened: Vec<_> = before.iter().filter_map(open).collect();
    let mut after = Vec::new();
    processes::pids_below(dir, &mut after)?;
    let after: HashSet<i32> = after.into_iter().collect();
    for (pid, pidfd) in &opened {
        if after.contains(pid)
            && let Err(error) = pidfd_send_signal(pidfd, Signal::KILL)
        {
            tracing::debug!(pid, %error, "could not kill");
        }
    }
    Ok(())
}
