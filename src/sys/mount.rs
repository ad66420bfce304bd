//! Mounts that are on no mount table until they are attached: built, cloned and changed by file descriptor
//! (fsopen(2), open_tree(2), mount_setattr(2), move_mount(2)), so that a container's mounts never show on the host.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::open::openat2;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

fn failed(op: &'static str, path: &Path, source: impl Into<io::Error>) -> io::Error {
    let source = source.into();
    io::Error::new(source.kind(), format!("{op} {}: {source}", path.display()))
}

/// A detached overlay of `lower` (top first) with `upper` and `work` on one writable file system.
///
/// Layers are given one by one (`lowerdir+`, Linux 6.5), which has no limit of a page for all names together.
/// `volatile` spares the syncfs at the end: a container's writable layer does not outlive a power cut usefully.
pub fn overlay(lower: &[PathBuf], upper: &Path, work: &Path) -> io::Result<OwnedFd> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(|e| failed("fsopen overlay for", upper, e))?;
    for layer in lower {
        fsconfig_set_string(&context, "lowerdir+", layer.as_path()).map_err(|e| failed("overlay layer", layer, e))?;
    }
    fsconfig_set_string(&context, "upperdir", upper).map_err(|e| failed("overlay upperdir", upper, e))?;
    fsconfig_set_string(&context, "workdir", work).map_err(|e| failed("overlay workdir", work, e))?;
    fsconfig_set_flag(&context, "volatile").map_err(|e| failed("overlay volatile", upper, e))?;
    fsconfig_create(&context).map_err(|e| failed("overlay at", upper, e))?;
    let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
        .map_err(|e| failed("fsmount overlay at", upper, e))?;
    let flags = rustix::fs::fstatvfs(&mount)
        .map_err(|e| failed("statvfs overlay at", upper, e))?
        .f_flag;
    if flags.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
        let why = io::Error::new(
            io::ErrorKind::ReadOnlyFilesystem,
            "the kernel can make no files in the work directory",
        );
        return Err(failed("overlay at", upper, why));
    }
    Ok(mount)
}

/// A detached read-only overlay of at least two `lower` directories (top first).
pub fn overlay_read_only(lower: &[PathBuf]) -> io::Result<OwnedFd> {
    let top = lower.first().map(PathBuf::as_path).unwrap_or(Path::new("nothing"));
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(|e| failed("fsopen overlay for", top, e))?;
    for layer in lower {
        fsconfig_set_string(&context, "lowerdir+", layer.as_path()).map_err(|e| failed("overlay layer", layer, e))?;
    }
    fsconfig_create(&context).map_err(|e| failed("overlay at", top, e))?;
    fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_RDONLY,
    )
    .map_err(|e| failed("fsmount overlay at", top, e))
}

/// A detached tmpfs of at most `size_bytes`, its root with `mode`.
pub fn tmpfs(size_bytes: u64, mode: u32) -> io::Result<OwnedFd> {
    tmpfs_of(0, size_bytes, mode)
}

/// As [`tmpfs`], its root owned by user and group `owner`.
pub fn tmpfs_of(owner: u32, size_bytes: u64, mode: u32) -> io::Result<OwnedFd> {
    let here = Path::new("tmpfs");
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(|e| failed("fsopen", here, e))?;
    fsconfig_set_string(&context, "size", size_bytes.to_string()).map_err(|e| failed("size of", here, e))?;
    fsconfig_set_string(&context, "mode", format!("{mode:o}")).map_err(|e| failed("mode of", here, e))?;
    for key in ["uid", "gid"] {
        if owner != 0 {
            fsconfig_set_string(&context, key, owner.to_string()).map_err(|e| failed("owner of", here, e))?;
        }
    }
    fsconfig_create(&context).map_err(|e| failed("create", here, e))?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).map_err(|e| failed("fsmount", here, e))
}

/// A detached copy of the mount at `path` (symlinks followed), with everything mounted below it if `recursive`.
pub fn clone_tree(path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(rustix::fs::CWD, path, flags).map_err(|e| failed("open_tree", path, e))
}

/// As [`clone_tree`], of what `fd` is open on.
pub fn clone_tree_at(fd: impl AsFd, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(fd, "", flags).map_err(|e| failed("open_tree", Path::new("of a descriptor"), e))
}

/// Attaches the detached mount `mount` at `path` below `dir`.
pub fn attach(mount: impl AsFd, dir: impl AsFd, path: &Path) -> io::Result<()> {
    move_mount(mount, "", dir, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|e| failed("move_mount to", path, e))
}

/// Attaches the detached mount `mount` on what `place` is open on.
pub fn attach_at(mount: impl AsFd, place: impl AsFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, "", place, "", flags).map_err(|e| failed("move_mount to", Path::new("a descriptor"), e))
}

/// How events of mounting travel between a mount and its peers (mount_namespaces(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    Private,
    Slave,
    Shared,
}

/// What mount_setattr(2) changes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Attributes {
    pub read_only: bool,
    pub nosuid: bool,
    pub nodev: bool,
    pub noexec: bool,
    pub propagation: Option<Propagation>,
    /// Change everything mounted below, too.
    pub recursive: bool,
}

/// Changes the attributes of the mount that `mount` is open on.
pub fn set_attributes(mount: BorrowedFd<'_>, attributes: Attributes) -> io::Result<()> {
    let mut set = 0;
    for (wanted, flag) in [
        (attributes.read_only, libc::MOUNT_ATTR_RDONLY),
        (attributes.nosuid, libc::MOUNT_ATTR_NOSUID),
        (attributes.nodev, libc::MOUNT_ATTR_NODEV),
        (attributes.noexec, libc::MOUNT_ATTR_NOEXEC),
    ] {
        if wanted {
            set |= flag;
        }
    }
    let propagation = match attributes.propagation {
        None => 0,
        Some(Propagation::Private) => libc::MS_PRIVATE,
        Some(Propagation::Slave) => libc::MS_SLAVE,
        Some(Propagation::Shared) => libc::MS_SHARED,
    };
    let attr = libc::mount_attr {
        attr_set: set,
        attr_clr: 0,
        propagation,
        userns_fd: 0,
    };
    let flags = libc::AT_EMPTY_PATH | if attributes.recursive { libc::AT_RECURSIVE } else { 0 };
    change(mount, flags, &attr)
}

fn change(mount: BorrowedFd<'_>, flags: libc::c_int, attr: &libc::mount_attr) -> io::Result<()> {
    // SAFETY: the path is a literal, `attr` lives across the call and its size is given.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attr),
            std::mem::size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(failed(
            "mount_setattr",
            Path::new("of a descriptor"),
            io::Error::last_os_error(),
        ))
    }
}

/// Maps the ids of the detached mount `mount`, which has none mapped yet: who is in the user namespace `user` finds the
/// owners on the file system by their own numbers. `InvalidInput` if the file system does not support it.
pub fn set_id_map(mount: impl AsFd, user: impl AsFd) -> io::Result<()> {
    let attr = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: user.as_fd().as_raw_fd() as u64,
    };
    change(mount.as_fd(), libc::AT_EMPTY_PATH, &attr)
}

/// Makes `root`, which is attached somewhere, the root of this mount namespace, and everything else vanish.
pub fn pivot(root: OwnedFd) -> io::Result<()> {
    let failed = super::failed;
    rustix::process::fchdir(&root).map_err(|e| failed("fchdir to the new root", e))?;
    rustix::process::pivot_root(".", ".").map_err(|e| failed("pivot_root", e))?;
    rustix::mount::unmount(".", rustix::mount::UnmountFlags::DETACH).map_err(|e| failed("unmount the old root", e))?;
    rustix::process::chdir("/").map_err(|e| failed("chdir to /", e))
}

/// Opens `path` as if `root` were `/`: no `..` and no symlink leads out of it (openat2(2), RESOLVE_IN_ROOT).
pub fn open_in_root(root: impl AsFd, path: &Path, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
    openat2(
        root,
        path,
        flags | OFlags::CLOEXEC,
        mode,
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )
    .map_err(|e| failed("open", path, e))
}
