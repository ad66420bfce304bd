//! Which cgroup hierarchies are mounted, and where.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::devices::Programs;
use super::file;

/// What crisp sets limits with or reads figures from. Only these are enabled on cgroup2.
pub(super) const CONTROLLERS: [&str; 6] = ["cpuset", "cpu", "io", "memory", "hugetlb", "pids"];

/// Where the cgroup hierarchies are mounted. Found once, at start.
#[derive(Debug, Default)]
pub struct Hierarchy {
    v1: Vec<V1>,
    cgroup2: Option<PathBuf>,
    cgroup2_controllers: Vec<String>,
    device_programs: Programs,
}

#[derive(Debug)]
struct V1 {
    root: PathBuf,
    /// `cpu`, `cpuacct` for a shared mount; `name=systemd` for one without controllers.
    controllers: Vec<String>,
}

/// Where one controller's files are.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place<'a> {
    V1(&'a Path),
    V2(&'a Path),
}

impl Hierarchy {
    /// Reads `/proc/self/mountinfo`. `NotFound` if no cgroup hierarchy is mounted.
    pub fn detect() -> io::Result<Arc<Self>> {
        let table = Path::new("/proc/self/mountinfo");
        let mut found = Self::parse(&file::read(table)?);
        if let Some(root) = &found.cgroup2 {
            let controllers = file::read(&root.join("cgroup.controllers"))?;
            found.cgroup2_controllers = controllers.split_whitespace().map(str::to_owned).collect();
        }
        if found.v1.is_empty() && found.cgroup2.is_none() {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "no cgroup hierarchy is mounted",
            ));
        }
        Ok(Arc::new(found))
    }

    /// Takes the first mount of each hierarchy; one that shows only a subtree (a bind mount of a cgroup) gives way to
    /// one that shows all, because paths count from the root.
    fn parse(mountinfo: &str) -> Self {
        let mut found = Self::default();
        let mut mounts: Vec<_> = mountinfo.lines().filter_map(Mount::parse).collect();
        mounts.sort_by_key(|mount| !mount.whole);
        for mount in mounts {
            if mount.fstype == "cgroup2" {
                found.cgroup2.get_or_insert(mount.point);
            } else if !found.v1.iter().any(|known| known.controllers == mount.controllers) {
                found.v1.push(V1 {
                    root: mount.point,
                    controllers: mount.controllers,
                });
            }
        }
        found
    }

    /// Whether cgroup2 alone serves this machine.
    pub fn is_v2(&self) -> bool {
        self.cgroup2.is_some() && !self.v1.iter().any(|v1| v1.controllers.iter().any(|c| !c.contains('=')))
    }

    /// The mount point of the cgroup2 hierarchy, also in a hybrid.
    pub fn cgroup2(&self) -> Option<&Path> {
        self.cgroup2.as_deref()
    }

    /// The mount points of the v1 hierarchies; none on a machine with cgroup2 alone.
    pub fn v1_roots(&self) -> impl Iterator<Item = &Path> {
        self.v1.iter().map(|v1| v1.root.as_path())
    }

    /// Whether some hierarchy has this controller.
    pub fn has(&self, controller: &str) -> bool {
        self.place(controller).is_some()
    }

    pub(super) fn roots(&self) -> impl Iterator<Item = &Path> {
        self.cgroup2().into_iter().chain(self.v1_roots())
    }

    pub(super) fn place(&self, controller: &str) -> Option<Place<'_>> {
        if let Some(v1) = self.v1.iter().find(|v1| v1.controllers.iter().any(|c| c == controller)) {
            return Some(Place::V1(&v1.root));
        }
        let offered = self.cgroup2_controllers.iter().any(|c| c == controller);
        self.cgroup2().filter(|_| offered).map(Place::V2)
    }

    /// Whether `root` is where this controller's files are.
    pub(super) fn is_place(&self, root: &Path, controller: &str) -> bool {
        matches!(self.place(controller), Some(Place::V1(at) | Place::V2(at)) if at == root)
    }

    pub(super) fn device_programs(&self) -> &Programs {
        &self.device_programs
    }

    /// This machine as it would be with its cgroup2 hierarchy alone; for tests of what only such machines do.
    pub fn cgroup2_alone(&self) -> Option<Arc<Self>> {
        self.cgroup2.as_ref().map(|root| {
            Arc::new(Self {
                cgroup2: Some(root.clone()),
                cgroup2_controllers: self.cgroup2_controllers.clone(),
                ..Self::default()
            })
        })
    }

    pub(super) fn cgroup2_offers(&self, controller: &str) -> bool {
        self.cgroup2_controllers.iter().any(|c| c == controller)
    }
}

struct Mount {
    point: PathBuf,
    fstype: String,
    controllers: Vec<String>,
    whole: bool,
}

impl Mount {
    /// One line of proc_pid_mountinfo(5), if it is of a cgroup hierarchy.
    fn parse(line: &str) -> Option<Self> {
        let (mount, source) = line.split_once(" - ")?;
        let mut source = source.split(' ');
        let fstype = source.next().filter(|t| matches!(*t, "cgroup" | "cgroup2"))?.to_owned();
        let mut mount = mount.split(' ').skip(3);
        let (root, point) = (mount.next()?, mount.next()?);
        let controllers = source
            .nth(1)?
            .split(',')
            .filter(|option| is_controller(option))
            .map(str::to_owned)
            .collect::<Vec<_>>();
        if fstype == "cgroup" && controllers.is_empty() {
            return None;
        }
        Some(Self {
            point: PathBuf::from(unescape(point)),
            fstype,
            controllers,
            whole: root == "/",
        })
    }
}

/// A v1 superblock's options are its controllers, its name, and flags.
fn is_controller(option: &str) -> bool {
    const KNOWN: [&str; 15] = [
        "blkio",
        "cpu",
        "cpuacct",
        "cpuset",
        "debug",
        "devices",
        "dmem",
        "freezer",
        "hugetlb",
        "memory",
        "misc",
        "net_cls",
        "net_prio",
        "perf_event",
        "pids",
    ];
    KNOWN.contains(&option) || option == "rdma" || option.starts_with("name=")
}

/// Undoes the octal escapes of space, tab, newline and backslash.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::{Hierarchy, Place};
    use std::path::Path;

    const HYBRID: &str = "\
30 24 0:25 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
31 30 0:26 / /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
32 30 0:27 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
33 30 0:28 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
34 30 0:29 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
35 30 0:27 /some/where /mnt/a\\040b rw,relatime - cgroup cgroup rw,memory
";

    #[test]
    fn a_hybrid_keeps_each_controller_at_its_own_place() {
        let found = Hierarchy::parse(HYBRID);
        assert!(!found.is_v2());
        assert_eq!(found.roots().count(), 4);
        let v1 = |name: &str| match found.place(name) {
            Some(Place::V1(root)) => root.to_owned(),
            other => panic!("{name}: {other:?}"),
        };
        assert_eq!(v1("cpuacct"), Path::new("/sys/fs/cgroup/cpu"));
        assert_eq!(v1("memory"), Path::new("/sys/fs/cgroup/memory"));
        assert!(found.place("pids").is_none());
    }

    #[test]
    fn a_mount_of_a_subtree_gives_way_to_the_whole() {
        let mut lines: Vec<&str> = HYBRID.lines().collect();
        lines.rotate_right(1);
        let found = Hierarchy::parse(&lines.join("\n"));
        assert!(found.v1_roots().all(|root| root.starts_with("/sys/fs/cgroup")));
    }

    #[test]
    fn cgroup2_alone_is_pure_even_beside_a_named_hierarchy() {
        let pure = Hierarchy::parse("1 0 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n");
        assert!(pure.is_v2());
        let named = "1 0 0:1 / /c rw - cgroup2 cgroup2 rw\n2 0 0:2 / /s rw - cgroup cgroup rw,name=systemd\n";
        assert!(Hierarchy::parse(named).is_v2());
        assert!(!Hierarchy::parse("").is_v2());
    }
}
