//! The monitor's room: a mount namespace of its own with next to nothing in it.
//!
//! Whatever is parsed or copied per mount (libcontainer reads mountinfo; each container's mount namespace starts as a
//! copy) costs the same on a node with ten mounts and with a thousand, and no container's mount ever shows on the
//! host. There are /proc, /sys, /dev, a cgroup2 at /sys/fs/cgroup, and the two directories that `oci` works with.

use std::io;
use std::path::Path;

use rustix::fs::{CWD, Mode, mkdirat, statfs, symlinkat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, fsconfig_create, fsmount, fsopen, mount_change,
};
use std::os::fd::OwnedFd;

use crate::oci::youki::CGROUP_SINK;
use crate::sys::{failed, mount, process};

/// The root of a user namespace is nobody here, and has to get through.
const PASSABLE: Mode = Mode::from_raw_mode(0o755);

const CGROUP2_MAGIC: i64 = 0x6367_7270;

/// Leaves the host's mounts for the room. The directory this process is in is `/` afterwards.
pub fn enter() -> io::Result<()> {
    process::unshare(libc::CLONE_NEWNS)?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(|e| failed("make mounts private", e))?;
    let trees = ["proc", "dev", "sys"].map(|name| (name, mount::clone_tree(&Path::new("/").join(name), false)));
    let cgroup = cgroup2()?;

    let root = mount::tmpfs(1 << 20, 0o755)?;
    // Any directory will do to attach the new root to; /proc is there in any case.
    mount::attach(&root, CWD, Path::new("/proc"))?;
    for (name, tree) in trees {
        mkdirat(&root, name, PASSABLE)?;
        mount::attach(tree?, &root, Path::new(name))?;
    }
    mount::attach(cgroup, &root, Path::new("sys/fs/cgroup"))?;
    mkdirat(&root, "stage", PASSABLE)?;
    mkdirat(&root, CGROUP_SINK, PASSABLE)?;
    symlinkat("/dev/null", &root, Path::new(CGROUP_SINK).join("cgroup.procs"))?;
    mount::pivot(root)
}

/// A detached cgroup2 mount.
///
/// A copy where the host has one mounted: mounting it anew would set the options of the one hierarchy there is
/// (nsdelegate and others) back to their defaults for the whole node.
fn cgroup2() -> io::Result<OwnedFd> {
    for place in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
        if statfs(place).is_ok_and(|fs| fs.f_type == CGROUP2_MAGIC) {
            return mount::clone_tree(Path::new(place), false);
        }
    }
    let context = fsopen("cgroup2", FsOpenFlags::FSOPEN_CLOEXEC).map_err(|e| failed("fsopen cgroup2", e))?;
    fsconfig_create(&context).map_err(|e| failed("create cgroup2", e))?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).map_err(|e| failed("fsmount cgroup2", e))
}
