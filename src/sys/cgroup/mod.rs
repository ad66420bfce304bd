//! Control groups: one absolute path, in every hierarchy that the machine has mounted, by plain file writes.
//!
//! Three layouts, met per controller and never by one global switch: cgroup v1 (one mount per controller), cgroup2
//! alone, and the hybrid of both, in which a cgroup2 without most controllers sits beside v1. In a hybrid every
//! cgroup exists in the cgroup2 hierarchy too: it gives `cgroup.kill`, `cgroup.events` and pressure figures even when
//! it has no controllers.
//!
//! Paths always count from a hierarchy's root. The caller's own cgroup is never looked at nor used as a base.
//!
//! # Joining
//! A process joins when it writes `0` to `cgroup.procs` in every hierarchy. That takes a kernel-wide semaphore whose
//! first taker waits for an RCU grace period (5 to 28 ms measured). Two ways avoid it: a single thread that moves
//! itself through the v1 file `tasks` does not take it (cgroup_procs_write_start() in kernel/cgroup/cgroup.c, since
//! Linux 5.5), nor does clone3(2) with `CLONE_INTO_CGROUP`. [`Cgroup::join_fds`] gives what these two need; the joining
//! process must be single-threaded, as a freshly forked one is.

mod apply;
mod child;
mod create;
mod detail;
mod devices;
mod file;
mod hierarchy;
mod kill;
mod memory;
mod parse;
mod processes;
mod reader;
mod remove;
mod resources;
mod stats;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use child::Child;
pub use detail::page_sizes;
pub use hierarchy::Hierarchy;
pub use processes::{JoinFds, oom_kills};
pub use reader::CgroupReader;
pub use resources::{DeviceRule, Resources, Warning, weight_of_shares};
pub use stats::{
    CgroupStats, CpuStats, Detail, Hugepages, IoDevice, MemoryStats, PidsStats, Pressure, Psi, PsiLine, SwapStats,
};

/// The longest a cgroup path may be, in bytes. The kernel's own bound is that of a path, a page.
const PATH_BYTES: usize = 2048;

/// Which hierarchies of v1 a process has a cgroup of its own in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Joining {
    All,
    /// Those that count what it uses, and those by which it is found and killed. In the others it is in the cgroup above.
    Bare,
}

/// The controllers of v1 that even a process without limits has a cgroup of.
const BARE: [&str; 5] = ["cpu", "cpuacct", "memory", "pids", "freezer"];

/// One cgroup: an absolute path in all hierarchies. The value names it; it does not keep it alive.
#[derive(Clone)]
pub struct Cgroup {
    hierarchy: Arc<Hierarchy>,
    path: String,
}

impl Cgroup {
    /// Names the cgroup at `path` without touching anything; it need not exist.
    ///
    /// `path` counts from the root of each hierarchy: absolute, not the root itself, without `.` and `..`, without
    /// control characters. Repeated and trailing slashes are dropped. Anything else is `InvalidInput`.
    pub fn open(hierarchy: &Arc<Hierarchy>, path: &str) -> io::Result<Self> {
        Ok(Self {
            hierarchy: hierarchy.clone(),
            path: normal_path(path)?,
        })
    }

    /// The path, counted from the root of each hierarchy: `/a/b`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Whether any hierarchy still has this cgroup.
    pub fn exists(&self) -> bool {
        self.dirs().any(|dir| dir.is_dir())
    }

    /// The cgroup above, none if that is the root.
    pub fn parent(&self) -> Option<Self> {
        let (above, _) = self.path.rsplit_once('/')?;
        (!above.is_empty()).then(|| Self {
            hierarchy: self.hierarchy.clone(),
            path: above.to_owned(),
        })
    }

    fn dir_below(&self, root: &Path) -> PathBuf {
        root.join(&self.path[1..])
    }

    /// The directory in every hierarchy, each once.
    fn dirs(&self) -> impl Iterator<Item = PathBuf> + '_ {
        self.hierarchy.roots().map(|root| self.dir_below(root))
    }

    /// The directory that a process is in, in every hierarchy of v1, and that hierarchy's root.
    fn v1_dirs(&self, joining: Joining) -> impl Iterator<Item = (&Path, PathBuf)> {
        self.hierarchy.v1_roots().map(move |root| {
            let own =
                joining == Joining::All || BARE.iter().any(|controller| self.hierarchy.is_place(root, controller));
            let dir = self.dir_below(root);
            match dir.parent().filter(|_| !own) {
                Some(above) => (root, above.to_owned()),
                None => (root, dir),
            }
        })
    }

    /// The directory in the cgroup2 hierarchy, where one is mounted.
    fn cgroup2_dir(&self) -> Option<PathBuf> {
        self.hierarchy.cgroup2().map(|root| self.dir_below(root))
    }
}

impl fmt::Debug for Cgroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cgroup({})", self.path)
    }
}

impl PartialEq for Cgroup {
    fn eq(&self, other: &Self) -> bool {
        self.path == other.path
    }
}

impl Eq for Cgroup {}

fn normal_path(path: &str) -> io::Result<String> {
    let refuse = |why: &str| {
        Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("cgroup path {path:?}: {why}"),
        ))
    };
    if !path.starts_with('/') {
        return refuse("not absolute");
    }
    if path.len() > PATH_BYTES {
        return refuse("too long");
    }
    let mut normal = String::with_capacity(path.len());
    for part in path.split('/').filter(|part| !part.is_empty()) {
        if let Err(why) = check_name(part) {
            return refuse(why);
        }
        normal.push('/');
        normal.push_str(part);
    }
    if normal.is_empty() {
        refuse("the root itself")
    } else {
        Ok(normal)
    }
}

/// One component of a path. `cgroup.*` would meet the kernel's own file names.
fn check_name(name: &str) -> Result<(), &'static str> {
    match name {
        "" => Err("an empty name"),
        "." | ".." => Err("`.` or `..` in it"),
        _ if name.len() > 255 => Err("a name of more than 255 bytes"),
        _ if name.contains('/') => Err("a slash in a name"),
        _ if name.chars().any(char::is_control) => Err("a control character in it"),
        _ if name.starts_with("cgroup.") => Err("a name that the kernel keeps for itself"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::normal_path;

    #[test]
    fn a_path_is_absolute_and_stays_below_the_root() {
        assert_eq!(normal_path("/a/b").unwrap(), "/a/b");
        assert_eq!(normal_path("//a///b/").unwrap(), "/a/b");
        assert_eq!(
            normal_path("/kubepods/burstable/pod1-2.slice").unwrap(),
            "/kubepods/burstable/pod1-2.slice"
        );
        for bad in [
            "",
            "a/b",
            "/",
            "//",
            "/a/../b",
            "/..",
            "/a/.",
            "/a\n",
            "/a\0b",
            "/a/cgroup.procs",
            "/\u{85}",
        ] {
            assert!(normal_path(bad).is_err(), "{bad:?}");
        }
        assert!(normal_path(&format!("/{}", "a".repeat(256))).is_err());
        assert!(normal_path(&"/a".repeat(1025)).is_err());
    }
}
