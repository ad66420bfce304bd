//! What is mounted where. First the kernel's file systems that every container has, then, shallow before deep, the
//! pod's own files, the image's volumes and the mounts of the request.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::fd::BorrowedFd;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{Mount, MountBuilder};
use rustix::fs::readlinkat;

use super::devices::Device;
use super::error::SpecError;
use super::namespaces::{self, Namespaces};
use super::{Input, built};
use crate::cri;
use crate::sys::mount::Propagation;

mod defaults;
mod requested;
mod volumes;

/// One of the files that a sandbox has for all its containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SandboxFile {
    Hosts,
    Hostname,
    ResolvConf,
    /// The tmpfs for /dev/shm.
    Shm,
}

impl SandboxFile {
    /// Its name in the sandbox's run directory.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hosts => "hosts",
            Self::Hostname => "hostname",
            Self::ResolvConf => "resolv.conf",
            Self::Shm => "shm",
        }
    }
}

/// What a bind mount shows.
#[derive(Clone, Debug, PartialEq)]
pub enum BindSource {
    /// A path on the host; symlinks are followed.
    Host(PathBuf),
    Sandbox(SandboxFile),
    /// The root of an image, or what is below it at a relative path without `..`.
    Image {
        image: cri::ImageSpec,
        sub_path: PathBuf,
    },
    /// Entry n of [`super::Built::volumes`].
    Volume(usize),
}

/// One bind mount, recursive.
#[derive(Clone, Debug, PartialEq)]
pub struct Bind {
    pub source: BindSource,
    /// Absolute, without `.` and `..`.
    pub destination: PathBuf,
    pub read_only: bool,
    /// Everything mounted below is read-only, too.
    pub recursive_read_only: bool,
    pub propagation: Propagation,
    pub nosuid: bool,
    pub nodev: bool,
    pub noexec: bool,
    /// In the pod's user namespace its files belong to whom they belong on the node, by number.
    pub id_mapped: bool,
    /// A source on the host that does not exist is made, as a directory.
    pub create_as_directory: bool,
    /// On /dev itself or, where something is mounted there, below it. libcontainer makes nodes and links in /dev
    /// after all mounts, which fails on (and would change) somebody's real /dev: such a bind is not in the OCI
    /// specification but is mounted after libcontainer is done, in order.
    pub late: bool,
}

impl Bind {
    fn new(source: BindSource, destination: impl Into<PathBuf>) -> Self {
        Self {
            source,
            destination: destination.into(),
            read_only: false,
            recursive_read_only: false,
            propagation: Propagation::Private,
            nosuid: false,
            nodev: false,
            noexec: false,
            id_mapped: false,
            create_as_directory: false,
            late: false,
        }
    }

    /// The mount in the OCI specification; `index` is the bind's own.
    pub(super) fn to_mount(&self, index: usize) -> Mount {
        let mut options = vec!["rbind".to_owned()];
        for (set, option) in [
            (self.read_only, "ro"),
            (self.nosuid, "nosuid"),
            (self.nodev, "nodev"),
            (self.noexec, "noexec"),
        ] {
            if set {
                options.push(option.to_owned());
            }
        }
        let mount = MountBuilder::default().destination(&self.destination).typ("bind");
        built(mount.source(format!("fd:{index}")).options(options).build())
    }
}

/// A volume that the image declares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Where it is mounted, and where in the image its first contents are.
    pub destination: PathBuf,
}

/// The container's cgroup in one hierarchy of cgroup v1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupMount {
    /// The directory's name below /sys/fs/cgroup: `memory`, `cpu,cpuacct`...
    pub name: String,
    /// The container's cgroup on the host.
    pub path: PathBuf,
}

/// All mounts of a container.
#[derive(Debug)]
pub struct Mounts {
    pub list: Vec<Mount>,
    pub binds: Vec<Bind>,
    pub volumes: Vec<Volume>,
    pub rootfs_propagation: Option<&'static str>,
    /// To be made read-only after all is mounted.
    pub readonly_paths: Vec<String>,
}

/// Refuses a root in which libcontainer would leave the root: it makes links below `/dev` by path, before the root is its
/// own, and a link there would lead it to the node's files.
pub fn check_root(rootfs: BorrowedFd<'_>) -> Result<(), SpecError> {
    match readlinkat(rootfs, "dev", Vec::new()) {
        Ok(_) => Err(SpecError::invalid("path of the image", "/dev", "is a symbolic link")),
        Err(_) => Ok(()),
    }
}

/// Resolves the mounts of a container.
///
/// `bound_devices` are those that cannot be made in the container.
pub fn resolve(
    input: &Input<'_>,
    namespaces: &Namespaces,
    privileged: bool,
    bound_devices: &[&Device],
) -> Result<Mounts, SpecError> {
    let ids = namespaces::user_ids(input.sandbox);
    let mut requested = requested::resolve(&input.container.mounts, ids)?;
    requested.extend(bound_devices.iter().map(device));
    let taken: BTreeSet<&Path> = requested.iter().map(|bind| bind.destination.as_path()).collect();
    let over_dev = taken.contains(Path::new("/dev"));
    let defaults = defaults::resolve(input, namespaces, privileged);
    let is_hidden = |destination: &Path| taken.contains(destination) || (over_dev && is_below_dev(destination));

    let mut list = Vec::new();
    let mut binds = Vec::new();
    let mut readonly_paths = defaults.readonly_paths;
    for step in defaults.steps {
        match step {
            // libcontainer makes its nodes and links there before somebody's /dev covers them.
            defaults::Step::Kernel(mount) if mount.destination() == Path::new("/dev") => list.push(mount),
            defaults::Step::Kernel(mount) if is_hidden(mount.destination()) => {}
            defaults::Step::Kernel(mount) => list.push(mount),
            defaults::Step::Bind(bind) if is_hidden(&bind.destination) => {}
            defaults::Step::Bind(bind) => push(bind, &mut list, &mut binds),
        }
    }
    if taken.iter().any(|path| Path::new("/sys/fs/cgroup").starts_with(path)) {
        readonly_paths.clear();
    }

    let volumes = volumes::resolve(input.image, &taken)?;
    let mut above: Vec<Bind> = defaults::pod_files(input, namespaces)
        .into_iter()
        .filter(|bind| !taken.contains(bind.destination.as_path()))
        .collect();
    let volume_binds = volumes.iter().enumerate();
    above.extend(volume_binds.map(|(n, volume)| Bind {
        id_mapped: ids.is_some(),
        ..Bind::new(BindSource::Volume(n), &volume.destination)
    }));
    above.extend(requested.iter().cloned());
    above.sort_by_key(|bind| bind.destination.components().count());
    for mut bind in above {
        bind.late = over_dev && (bind.destination == Path::new("/dev") || is_below_dev(&bind.destination));
        push(bind, &mut list, &mut binds);
    }

    let any = |wanted| binds.iter().any(|bind| bind.propagation == wanted);
    let rootfs_propagation = if any(Propagation::Shared) {
        Some("shared")
    } else if any(Propagation::Slave) {
        Some("slave")
    } else {
        None
    };
    Ok(Mounts {
        list,
        binds,
        volumes,
        rootfs_propagation,
        readonly_paths,
    })
}

fn push(bind: Bind, list: &mut Vec<Mount>, binds: &mut Vec<Bind>) {
    if !bind.late {
        list.push(bind.to_mount(binds.len()));
    }
    binds.push(bind);
}

/// A device of the node as it is, node and owner.
fn device(device: &&Device) -> Bind {
    Bind {
        nosuid: true,
        noexec: true,
        ..Bind::new(BindSource::Host(device.host.clone()), &device.path)
    }
}

fn is_below_dev(path: &Path) -> bool {
    path.starts_with("/dev") && path != Path::new("/dev")
}

/// `path` made absolute and free of `.` and `..` by its text alone; `..` of `/` is `/`.
pub(super) fn clean(path: &str) -> PathBuf {
    let mut parts: Vec<OsString> = Vec::new();
    for component in Path::new(path).components() {
        match component {
            Component::Normal(part) => parts.push(part.to_owned()),
            Component::ParentDir => {
                parts.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    let mut clean = PathBuf::from("/");
    clean.extend(parts);
    clean
}

#[cfg(test)]
mod tests {
    use super::clean;
    use std::path::Path;

    #[test]
    fn paths_are_cleaned_by_their_text() {
        for (path, expected) in [
            ("/a/b", "/a/b"),
            ("a//b/.", "/a/b"),
            ("/a/../../b/", "/b"),
            ("/..", "/"),
            ("", "/"),
            ("/a/b/..", "/a"),
        ] {
            assert_eq!(clean(path), Path::new(expected), "{path}");
        }
    }
}
