//! Removing cgroups.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use super::{Cgroup, file, normal_path};

/// How long a cgroup may stay busy, in all hierarchies together: its last processes are still on their way out. Who has begun to exit
/// is in no list any more, but in the cgroup until its memory is freed and its files are closed, which may take a while.
const PATIENCE: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_micros(200);
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

impl Cgroup {
    /// Removes the cgroup and all below it, in every hierarchy. Blocks at most about 10 seconds while it is
    /// busy, then fails with `ResourceBusy`; where it is not busy it is removed all the same. One that is gone
    /// is fine. Kills nobody.
    pub fn remove(&self) -> io::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let mut outcome = Ok(());
        for dir in self.dirs() {
            let removed = remove_tree(&dir, deadline);
            if outcome.is_ok() {
                outcome = removed;
            }
        }
        outcome
    }

    /// Removes the cgroups above this one that nobody uses any more, upwards to `until`, which stays. Only empty
    /// ones go; the first that has children or processes ends it, which is no error.
    pub fn remove_empty_parents(&self, until: &str) -> io::Result<()> {
        let stop = if until == "/" {
            String::new()
        } else {
            normal_path(until)?
        };
        let is_above = self.path.strip_prefix(&stop).is_some_and(|rest| rest.starts_with('/'));
        if !is_above {
            return Err(file::invalid(format!("cgroup {stop:?} is not above {:?}", self.path)));
        }
        for root in self.hierarchy.roots() {
            let mut path = self.path.as_str();
            while let Some((above, _)) = path.rsplit_once('/') {
                if above.len() <= stop.len() {
                    break;
                }
                let dir = root.join(&above[1..]);
                match std::fs::remove_dir(&dir) {
                    Ok(()) => {}
                    Err(e) if file::is_gone(&e) => {}
                    Err(e) if is_busy(&e) => break,
                    Err(e) => return Err(file::failed("rmdir", &dir, e)),
                }
                path = above;
            }
        }
        Ok(())
    }
}

fn is_busy(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EBUSY | libc::ENOTEMPTY))
}

/// Removes `dir` and the cgroups below it, deepest first, trying again until `deadline` while something is busy.
pub(super) fn remove_tree(dir: &Path, deadline: Instant) -> io::Result<()> {
    let mut pause = FIRST_PAUSE;
    loop {
        match remove_once(dir) {
            Err(e) if e.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            outcome => return outcome,
        }
    }
}

/// Without recursion: a container may nest cgroups as deep as it likes.
fn remove_once(top: &Path) -> io::Result<()> {
    let mut pending = vec![(top.to_owned(), false)];
    while let Some((dir, children_done)) = pending.pop() {
        match std::fs::remove_dir(&dir) {
            Ok(()) => {}
            Err(e) if file::is_gone(&e) => {}
            Err(e) if is_busy(&e) && !children_done => {
                let children = file::children(&dir)?;
                if children.is_empty() {
                    return Err(file::failed("rmdir", &dir, io::ErrorKind::ResourceBusy.into()));
                }
                pending.push((dir, true));
                pending.extend(children.into_iter().map(|child| (child, false)));
            }
            Err(e) if is_busy(&e) => return Err(file::failed("rmdir", &dir, io::ErrorKind::ResourceBusy.into())),
            Err(e) => return Err(file::failed("rmdir", &dir, e)),
        }
    }
    Ok(())
}
