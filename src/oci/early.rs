//! Mounts that libcontainer need not make: it resolves and checks each by some thirty system calls, here it takes five.
//!
//! - Binds in the root, far from the kernel's file systems: they are attached to it before libcontainer binds the whole.
//! - The hierarchies of cgroup v1: put together on the stage, and bound as one.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Mount, Spec};
use rustix::fs::{CWD, Mode, OFlags, openat};

use super::stage;
use super::{OciError, late};
use crate::sys::mount::{self, Attributes};
use crate::sys::process;

const CGROUPS: &str = "/sys/fs/cgroup";
/// Directories only: as much as the tmpfs that it stands for.
const CGROUPS_BYTES: u64 = 64 << 10;

/// Attaches the hierarchies of cgroup v1 on the stage, each a directory that `spec` names, below one tmpfs, which takes their place
/// in `spec`. Controllers that share a hierarchy are found under each one's name, as programs expect.
pub fn gather_cgroups(spec: &mut Spec, sent: &[OwnedFd], root_id: u32) -> Result<(), OciError> {
    let mounts = spec.mounts().clone().unwrap_or_default();
    let is_top = |mount: &Mount| mount.destination() == Path::new(CGROUPS) && mount.typ().as_deref() == Some("tmpfs");
    if !mounts.iter().any(is_top) {
        return Ok(());
    }
    let top = PathBuf::from("cgroups");
    let begin = || {
        let tmpfs = mount::tmpfs_of(root_id, CGROUPS_BYTES, 0o755)?;
        let attributes = Attributes {
            nosuid: true,
            nodev: true,
            noexec: true,
            ..Attributes::default()
        };
        mount::set_attributes(tmpfs.as_fd(), attributes)?;
        stage::attach(&tmpfs, &top)
    };
    let place = begin().map_err(|source| OciError::Io {
        op: "make a place for the cgroups",
        source,
    })?;
    let mut left = Vec::with_capacity(mounts.len());
    for mount in mounts {
        if is_top(&mount) {
            left.push(stage::bind(place.clone(), mount.destination().clone())?);
            continue;
        }
        let below = mount.destination().parent() == Some(Path::new(CGROUPS));
        match (stage::index_of(&mount)?, mount.destination().file_name()) {
            (Some(index), Some(name)) if below => {
                let attached = stage::attach(stage::sent(sent, index)?, top.join(name));
                let named = attached.and_then(|_| name_each(&place, &name.to_string_lossy()));
                named.map_err(|source| OciError::Stage { index, source })?;
            }
            _ => left.push(mount),
        }
    }
    spec.set_mounts(Some(left));
    Ok(())
}

fn name_each(place: &Path, name: &str) -> io::Result<()> {
    let shared = name.split(',').filter(|_| name.contains(','));
    for controller in shared {
        symlink(name, place.join(controller))?;
    }
    Ok(())
}

/// Attaches the binds of `spec` that lie in the root alone to the root on the stage, and leaves the others in `spec`. Places that are
/// missing are made, by the node's user `root_id`.
pub fn attach_binds(spec: &mut Spec, root: &Path, sent: &[OwnedFd], root_id: u32) -> Result<(), OciError> {
    let passes_on = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.rootfs_propagation().as_ref())
        .is_some();
    // What is mounted below a bind is to be seen elsewhere: libcontainer arranges that with its own.
    if passes_on {
        return Ok(());
    }
    let failed = |source| OciError::Io {
        op: "open the container's root",
        source,
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = openat(CWD, root, flags, Mode::empty()).map_err(|e| failed(e.into()))?;
    let mounts = spec.mounts().clone().unwrap_or_default();
    let others = others(&mounts)?;
    let (mut left, mut all_left) = (Vec::with_capacity(mounts.len()), false);
    for mount in mounts {
        let destination = mount.destination();
        let index = stage::index_of(&mount)?.filter(|_| !all_left && !touches(destination, &others));
        let Some(index) = index else {
            left.push(mount);
            continue;
        };
        let bind = stage::sent(sent, index)?;
        let attach = || {
            process::set_files_id(root_id);
            let place = late::place(root, &opened, bind, destination);
            process::set_files_id(0);
            let place = match place {
                // By number it is the pod's root, but what that may do to others' files it may only inside.
                Err(_) if root_id != 0 => return Ok(false),
                place => place?,
            };
            // A symlink of the image's may lead to where another mount will be: from there on all is as it is written.
            if touches(&seen_inside(root, &place)?, &others) {
                return Ok(false);
            }
            mount::attach_at(bind, &place).map(|()| true)
        };
        match attach() {
            Ok(true) => {}
            Ok(false) => {
                all_left = true;
                left.push(mount);
            }
            Err(source) => {
                return Err(OciError::Mount {
                    destination: destination.clone(),
                    source,
                });
            }
        }
    }
    spec.set_mounts(Some(left));
    Ok(())
}

/// Where the mounts are that libcontainer makes: the kernel's file systems, and the binds above or below one of them.
fn others(mounts: &[Mount]) -> Result<Vec<PathBuf>, OciError> {
    let (mut others, mut binds) = (Vec::new(), Vec::new());
    for mount in mounts {
        let list = match stage::index_of(mount)? {
            None => &mut others,
            Some(_) => &mut binds,
        };
        list.push(mount.destination().clone());
    }
    // A bind that joins them may take others along.
    loop {
        let (joining, rest): (Vec<_>, Vec<_>) = binds.into_iter().partition(|bind| touches(bind, &others));
        if joining.is_empty() {
            return Ok(others);
        }
        others.extend(joining);
        binds = rest;
    }
}

/// Whether `path` is one of `others`, or above or below one.
fn touches(path: &Path, others: &[PathBuf]) -> bool {
    others
        .iter()
        .any(|other| path.starts_with(other) || other.starts_with(path))
}

/// The path of `place`, which is below `root`, as if `root` were `/`.
fn seen_inside(root: &Path, place: &OwnedFd) -> io::Result<PathBuf> {
    let path = std::fs::read_link(format!("/proc/self/fd/{}", place.as_raw_fd()))?;
    let inside = path.strip_prefix(root).map_err(io::Error::other)?;
    Ok(Path::new("/").join(inside))
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::MountBuilder;

    use super::*;

    fn mount(destination: &str, source: &str) -> Mount {
        MountBuilder::default()
            .destination(destination)
            .source(source)
            .build()
            .unwrap()
    }

    #[test]
    fn what_is_near_the_kernels_file_systems_is_left_to_libcontainer() {
        let mounts = [
            mount("/proc", "proc"),
            mount("/dev", "tmpfs"),
            mount("/dev/shm", "fd:0"),
            mount("/etc/hosts", "fd:1"),
            mount("/data", "fd:2"),
            mount("/data/more", "fd:3"),
            mount("/developers", "fd:4"),
        ];
        let left = others(&mounts).unwrap();
        assert_eq!(left, ["/proc", "/dev", "/dev/shm"].map(PathBuf::from));
        for (path, expected) in [
            ("/data", false),
            ("/developers", false),
            ("/", true),
            ("/proc/sys", true),
        ] {
            assert_eq!(touches(Path::new(path), &left), expected, "{path}");
        }
        // One above all of them takes all of them along.
        let mounts = [mounts.as_slice(), &[mount("/", "fd:5")]].concat();
        assert_eq!(others(&mounts).unwrap().len(), mounts.len());
    }
}
