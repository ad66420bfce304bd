//! How much a container has written: a walk over its overlay's upper directory.
//!
//! The container changes these files while they are walked, and may do so to harm: nothing is followed, nothing
//! outside is entered, one directory is open at a time, and memory stays bounded however deep or wide the tree is.

use std::collections::HashSet;
use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, SeekFrom, Stat, fstat, openat, seek, statat};

/// A walk is not repeated sooner than this ...
const FRESH_FOR: Duration = Duration::from_secs(10);
/// ... nor sooner than this many times what the last one took ...
const REST_FACTOR: u32 = 20;
/// ... but sooner than this.
const LONGEST_REST: Duration = Duration::from_secs(300);
/// A walk ends here with what it has found so far: who makes files faster than they are counted must not keep it, and
/// those who wait for their own, for ever.
const LONGEST_WALK: Duration = Duration::from_secs(60);
/// Hard links remembered, so that each file counts once; beyond it they count each time.
const LINKS: usize = 100_000;

/// What a tree occupies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) bytes: u64,
    pub(super) inodes: u64,
}

/// A writable layer and what the last walk over it found.
#[derive(Debug)]
pub(super) struct Layer {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    walking: bool,
    found: Option<Found>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    pub(super) usage: Usage,
    pub(super) timestamp_ns: i64,
    at: Instant,
    took: Duration,
}

impl Layer {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            state: Mutex::default(),
        }
    }

    /// What the last walk found, and whether the caller must see to a new one (by [`Layer::walk`]).
    pub(super) fn get(&self) -> (Option<Found>, bool) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let rest = |found: Found| FRESH_FOR.max((found.took * REST_FACTOR).min(LONGEST_REST));
        let stale = state.found.is_none_or(|found| found.at.elapsed() > rest(found));
        let due = stale && !state.walking;
        state.walking |= due;
        (state.found, due)
    }

    /// Walks and remembers. With a `deadline` that comes before the end it returns false, and the walk must be made
    /// again.
    pub(super) fn walk(&self, deadline: Option<Instant>) -> bool {
        let (at, timestamp_ns) = (Instant::now(), super::collector::now_ns());
        let outcome = Walk::over(&self.path).and_then(|mut walk| match deadline {
            Some(deadline) => Ok(walk.run(deadline)?.then_some(walk.usage)),
            None => walk.run(at + LONGEST_WALK).map(|_| Some(walk.usage)),
        });
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Ok(None) => return false,
            Ok(Some(usage)) => {
                state.found = Some(Found {
                    usage,
                    timestamp_ns,
                    at,
                    took: at.elapsed(),
                })
            }
            Err(error) => tracing::debug!(path = %self.path.display(), %error, "writable layer not measured"),
        }
        state.walking = false;
        true
    }
}

/// One walk.
struct Walk {
    /// From the top down to the directory that is open.
    frames: Vec<Frame>,
    open: OwnedFd,
    top: OwnedFd,
    device: u64,
    usage: Usage,
    links: HashSet<u64>,
}

/// A directory on the way: read in portions, so that a huge one is never held in memory.
struct Frame {
    name: CString,
    inode: u64,
    /// Where its reading goes on; none when all was read.
    cookie: Option<u64>,
    /// Directories of the portion read last that are still to be entered.
    pending: Vec<CString>,
}

fn enter(dir: &OwnedFd, name: &std::ffi::CStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NOATIME;
    openat(dir, name, flags, Mode::empty())
}

impl Walk {
    fn over(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let top = rustix::fs::open(path, flags, Mode::empty())?;
        let open = enter(&top, c".")?;
        let stat = fstat(&top)?;
        let mut walk = Self {
            frames: Vec::new(),
            open,
            top,
            device: stat.st_dev,
            usage: Usage::default(),
            links: HashSet::new(),
        };
        walk.count(&stat);
        walk.frames.push(Frame {
            name: c".".to_owned(),
            inode: stat.st_ino,
            cookie: Some(0),
            pending: Vec::new(),
        });
        Ok(walk)
    }

    /// Runs to the end; false if `deadline` came first.
    fn run(&mut self, deadline: Instant) -> io::Result<bool> {
        while let Some(frame) = self.frames.last_mut() {
            if Instant::now() >= deadline {
                return Ok(false);
            }
            if let Some(name) = frame.pending.pop() {
                self.descend(name);
            } else if let Some(cookie) = frame.cookie {
                self.read_portion(cookie)?;
            } else {
                self.ascend();
            }
        }
        Ok(true)
    }

    fn count(&mut self, stat: &Stat) {
        if stat.st_nlink > 1 && FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            if self.links.contains(&stat.st_ino) {
                return;
            }
            if self.links.len() < LINKS {
                self.links.insert(stat.st_ino);
            }
        }
        self.usage.inodes += 1;
        self.usage.bytes = self
            .usage
            .bytes
            .saturating_add((stat.st_blocks as u64).saturating_mul(512));
    }

    /// Counts the next buffer full of entries of the open directory.
    fn read_portion(&mut self, cookie: u64) -> io::Result<()> {
        let mut buffer = [MaybeUninit::uninit(); 8192];
        let (mut directories, mut next) = (Vec::new(), None);
        seek(&self.open, SeekFrom::Start(cookie))?;
        let open = self.open.try_clone()?;
        let mut entries = RawDir::new(&open, &mut buffer);
        while let Some(entry) = entries.next() {
            // An error ends the directory: what could not be read does not count.
            let Ok(entry) = entry else { break };
            let name = entry.file_name();
            let after = entry.next_entry_cookie();
            if name != c"." && name != c".." {
                // What vanished since the directory was read does not count.
                if let Ok(stat) = statat(&open, name, AtFlags::SYMLINK_NOFOLLOW)
                    && stat.st_dev == self.device
                {
                    self.count(&stat);
                    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                        directories.push(name.to_owned());
                    }
                }
            }
            if entries.is_buffer_empty() {
                next = Some(after);
                break;
            }
        }
        if let Some(frame) = self.frames.last_mut() {
            // A file system whose cookies do not move would be read for ever.
            frame.cookie = next.filter(|next| *next != cookie);
            frame.pending = directories;
        }
        Ok(())
    }

    fn descend(&mut self, name: CString) {
        let Ok(dir) = enter(&self.open, &name) else { return };
        let Ok(stat) = fstat(&dir) else { return };
        if stat.st_dev == self.device {
            self.open = dir;
            self.frames.push(Frame {
                name,
                inode: stat.st_ino,
                cookie: Some(0),
                pending: Vec::new(),
            });
        }
    }

    /// Back to the directory above. If the one left was moved elsewhere meanwhile, `..` is not where the walk came
    /// from; then the way is gone again from the top by name, as far as it still exists.
    fn ascend(&mut self) {
        self.frames.pop();
        let Some(frame) = self.frames.last() else { return };
        if let Some(dir) = self.reached(enter(&self.open, c".."), frame.inode) {
            self.open = dir;
            return;
        }
        let Ok(mut dir) = enter(&self.top, c".") else {
            self.frames.clear();
            return;
        };
        for depth in 1..self.frames.len() {
            let frame = &self.frames[depth];
            match self.reached(enter(&dir, &frame.name), frame.inode) {
                Some(next) => dir = next,
                None => {
                    self.frames.truncate(depth);
                    break;
                }
            }
        }
        self.open = dir;
    }

    fn reached(&self, dir: rustix::io::Result<OwnedFd>, inode: u64) -> Option<OwnedFd> {
        let dir = dir.ok()?;
        let stat = fstat(&dir).ok()?;
        ((stat.st_dev, stat.st_ino) == (self.device, inode)).then_some(dir)
    }
}

#[cfg(test)]
mod tests {
    use super::{Layer, Usage, Walk};
    use std::os::unix::fs::symlink;
    use std::path::Path;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::{Duration, Instant};

    fn measure(path: &Path) -> Usage {
        let mut walk = Walk::over(path).unwrap();
        assert!(walk.run(Instant::now() + Duration::from_secs(60)).unwrap());
        walk.usage
    }

    fn du(path: &Path) -> Usage {
        let run = |args: &[&str]| {
            let out = std::process::Command::new("du").args(args).arg(path).output().unwrap();
            String::from_utf8(out.stdout)
                .unwrap()
                .split_whitespace()
                .next()
                .unwrap()
                .parse::<u64>()
                .unwrap()
        };
        Usage {
            bytes: run(&["-s", "-B1"]),
            inodes: run(&["-s", "--inodes"]),
        }
    }

    #[test]
    fn a_tree_is_measured_as_du_does() {
        let top = tempfile::tempdir().unwrap();
        assert_eq!(measure(top.path()), du(top.path()));
        let deep = top.path().join("a/b/c");
        std::fs::create_dir_all(&deep).unwrap();
        std::fs::write(deep.join("file"), vec![7; 100_000]).unwrap();
        std::fs::hard_link(deep.join("file"), top.path().join("again")).unwrap();
        symlink("/", top.path().join("out")).unwrap();
        symlink("a", top.path().join("in")).unwrap();
        // More entries and more directories than one portion holds.
        for i in 0..600 {
            std::fs::create_dir(top.path().join(format!("directory-{i}"))).unwrap();
            std::fs::write(top.path().join(format!("directory-{i}/file-with-a-name-{i}")), "x").unwrap();
            std::fs::write(deep.join(format!("file-{i}")), "x").unwrap();
        }
        assert_eq!(measure(top.path()), du(top.path()));
    }

    #[test]
    fn a_tree_deeper_than_a_path_may_be_long_is_measured_to_its_bottom() {
        let top = tempfile::tempdir().unwrap();
        let mut dir = rustix::fs::open(top.path(), rustix::fs::OFlags::DIRECTORY, 0.into()).unwrap();
        for _ in 0..3000 {
            rustix::fs::mkdirat(&dir, "d-e-e-p", 0o755.into()).unwrap();
            dir = rustix::fs::openat(&dir, "d-e-e-p", rustix::fs::OFlags::DIRECTORY, 0.into()).unwrap();
        }
        assert_eq!(measure(top.path()).inodes, 3001);
        // The standard library's removal opens a directory per level.
        assert!(
            std::process::Command::new("rm")
                .arg("-rf")
                .arg(top.path())
                .status()
                .unwrap()
                .success()
        );
    }

    #[test]
    fn a_walk_that_takes_too_long_is_left_to_the_background() {
        let top = tempfile::tempdir().unwrap();
        std::fs::create_dir(top.path().join("d")).unwrap();
        let layer = Layer::new(top.path().to_owned());
        assert!(matches!(layer.get(), (None, true)));
        assert!(!layer.walk(Some(Instant::now())));
        // Still owed, by the one who was told so.
        assert!(matches!(layer.get(), (None, false)));
        assert!(layer.walk(None));
        let (found, due) = layer.get();
        assert_eq!((found.unwrap().usage.inodes, due), (2, false));
    }

    /// Story: a container renames directories while they are walked, so that `..` leads elsewhere. The walk must end,
    /// and must not wander off and count what it was not sent to count.
    #[test]
    fn a_tree_that_is_moved_about_meanwhile_is_walked_to_an_end() {
        let top = tempfile::tempdir().unwrap();
        let (tree, elsewhere) = (top.path().join("tree"), top.path().join("elsewhere"));
        for i in 0..300 {
            std::fs::create_dir_all(elsewhere.join(format!("sub/{i}"))).unwrap();
        }
        for i in 0..20 {
            std::fs::create_dir_all(tree.join(format!("a{i}/b/c/d/e"))).unwrap();
        }
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    for i in 0..20 {
                        let (inside, outside) = (tree.join(format!("a{i}/b/c")), elsewhere.join(format!("c{i}")));
                        std::fs::rename(&inside, &outside).unwrap();
                        std::fs::rename(&outside, &inside).unwrap();
                    }
                }
            });
            let until = Instant::now() + Duration::from_millis(500);
            while Instant::now() < until {
                let inodes = measure(&tree).inodes;
                assert!((1..=101).contains(&inodes), "{inodes}");
            }
            stop.store(true, Ordering::Relaxed);
        });
    }
}
