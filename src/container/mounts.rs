//! The binds of a container, as detached mounts for the monitor to attach.
//!
//! Every path of the host is resolved here, once, and from then on held by descriptor: what a symlink points to
//! later, or what is mounted over it, changes nothing.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::fstatfs;

use super::layers::{Layers, Users};
use super::spec::{Bind, BindSource};
use super::{ContainerError, Containers, volume};
use crate::cri;
use crate::image::Lease;
use crate::sys::mount::{self, Attributes, Propagation};

/// Where a bind comes from, resolved as far as memory goes.
enum Source {
    Path { path: PathBuf, make: bool },
    Image { lower: Vec<PathBuf>, sub_path: PathBuf },
    Volume { dir: PathBuf, from: PathBuf },
}

impl Source {
    /// What is asked for on the node; an image's layers are crisp's own.
    fn path(&self) -> Option<&PathBuf> {
        match self {
            Self::Path { path, .. } | Self::Volume { dir: path, .. } => Some(path),
            Self::Image { .. } => None,
        }
    }
}

/// Where a container's binds come from, but for the host.
pub(super) struct Origins<'a> {
    /// The image's volumes: where in the image their first contents are.
    pub volumes: &'a [PathBuf],
    pub images: &'a VolumeImages,
    /// The pod's files.
    pub run_dir: &'a Path,
    /// The container's directory.
    pub dir: &'a Path,
    pub rootfs: &'a OwnedFd,
    /// The pod's, if it has a user namespace.
    pub users: Option<Users>,
}

/// Images that are mounted as volumes.
pub(super) type VolumeImages = BTreeMap<String, Lease>;

impl Containers {
    /// The binds as detached mounts, in order.
    pub(super) async fn open_binds(
        &self,
        binds: &[Bind],
        origins: Origins<'_>,
    ) -> Result<Vec<OwnedFd>, ContainerError> {
        let mut sources = Vec::with_capacity(binds.len());
        for bind in binds {
            sources.push((self.source(bind, &origins)?, bind.clone()));
        }
        let paths: Vec<PathBuf> = sources
            .iter()
            .filter_map(|(source, _)| source.path())
            .cloned()
            .collect();
        let from = From {
            layers: self.layers.clone(),
            rootfs: origins
                .rootfs
                .try_clone()
                .map_err(ContainerError::path("duplicate the root of", origins.dir))?,
            users: origins.users,
        };
        let opened = self.hung.ask(&paths, move |asking| {
            let mut budget = volume::Budget::default();
            let sources = sources.into_iter();
            let opened = sources.map(|(source, bind)| {
                if let Some(path) = source.path() {
                    asking.at(path)?;
                }
                open(source, &bind, &from, &mut budget)
            });
            opened.collect()
        });
        opened.await
    }

    /// Holds the images that are mounted as volumes, by the names that the request has for them.
    pub(super) fn volume_images(&self, config: &cri::ContainerConfig) -> Result<VolumeImages, ContainerError> {
        let mut held = VolumeImages::new();
        for image in config.mounts.iter().filter_map(|mount| mount.image.as_ref()) {
            let reference = image.image.clone();
            if reference.is_empty() || held.contains_key(&reference) {
                continue;
            }
            let lease = self.hold(&reference)?;
            held.insert(reference, lease);
        }
        Ok(held)
    }

    fn source(&self, bind: &Bind, origins: &Origins<'_>) -> Result<Source, ContainerError> {
        Ok(match &bind.source {
            BindSource::Host(path) => Source::Path {
                path: path.clone(),
                make: bind.create_as_directory,
            },
            BindSource::Sandbox(file) => Source::Path {
                path: origins.run_dir.join(file.name()),
                make: false,
            },
            BindSource::Image { image, sub_path } => {
                let held = origins
                    .images
                    .get(&image.image)
                    .ok_or_else(|| ContainerError::ImageNotFound {
                        reference: image.image.clone(),
                    })?;
                Source::Image {
                    lower: self.parts.images.layers(held.image()),
                    sub_path: sub_path.clone(),
                }
            }
            BindSource::Volume(index) => Source::Volume {
                dir: origins.dir.join("volumes").join(index.to_string()),
                from: origins.volumes.get(*index).cloned().unwrap_or_default(),
            },
        })
    }
}

/// What binds are made from beside their own source.
struct From {
    layers: Arc<Layers>,
    rootfs: OwnedFd,
    users: Option<Users>,
}

/// Opens one bind; what an image's volume is filled with comes off the container's `budget`.
fn open(source: Source, bind: &Bind, from: &From, budget: &mut volume::Budget) -> Result<OwnedFd, ContainerError> {
    let at = &bind.destination;
    let users = from.users.as_ref().filter(|_| bind.id_mapped);
    let map = |tree: OwnedFd, path: &Path| match users {
        None => Ok(tree),
        Some(users) => users
            .map(tree, path)
            .map_err(ContainerError::path("map the ids of", path)),
    };
    let mount = match &source {
        Source::Path { path, make } => {
            if *make && !path.exists() {
                fs::create_dir_all(path).map_err(ContainerError::path("make", path))?;
            }
            if bind.propagation != Propagation::Private {
                require_propagation(path, bind.propagation == Propagation::Shared)?;
            }
            let tree = mount::clone_tree(path, true).map_err(ContainerError::path("mount", path))?;
            map(tree, path)?
        }
        Source::Image { lower, sub_path } => from
            .layers
            .volume(lower, sub_path, users)
            .map_err(ContainerError::path("mount an image at", at))?,
        Source::Volume { dir, from: inside } => {
            let ids = users.map(|users| users.ids);
            volume::fill(&from.rootfs, inside, dir, ids, budget)
                .map_err(ContainerError::path("fill the volume", inside))?;
            let tree = mount::clone_tree(dir, false).map_err(ContainerError::path("mount", dir))?;
            map(tree, dir)?
        }
    };
    if at == Path::new("/proc") {
        require_proc(mount.as_fd())?;
    }
    // Read-only is the top mount's own, unless asked for otherwise. The rest is everything's below: what is not to be
    // executed here is not to be executed there either.
    let all_below = Attributes {
        propagation: Some(bind.propagation),
        read_only: bind.recursive_read_only,
        nosuid: bind.nosuid,
        nodev: bind.nodev,
        noexec: bind.noexec,
        recursive: true,
    };
    let top = Attributes {
        read_only: bind.read_only,
        ..Attributes::default()
    };
    mount::set_attributes(mount.as_fd(), all_below)
        .and_then(|()| mount::set_attributes(mount.as_fd(), top))
        .map_err(ContainerError::path("set the attributes of the mount for", at))?;
    Ok(mount)
}

/// Refuses anything but the kernel's own at /proc: what libcontainer and the container's programs read and write there,
/// the profile of a process among it, would be whatever the volume says.
fn require_proc(mount: BorrowedFd<'_>) -> Result<(), ContainerError> {
    let kind = fstatfs(mount).map_err(|error| ContainerError::path("look at the mount for", "/proc")(error.into()))?;
    if kind.f_type == rustix::fs::PROC_SUPER_MAGIC {
        return Ok(());
    }
    let what = "mount at /proc: it is not a proc file system".to_owned();
    Err(ContainerError::Invalid { what })
}

/// Refuses a bind whose mount on the host does not pass on what is mounted: the container would wait in vain.
fn require_propagation(path: &Path, both_ways: bool) -> Result<(), ContainerError> {
    let resolved = fs::canonicalize(path).map_err(ContainerError::path("resolve", path))?;
    let table =
        fs::read_to_string("/proc/self/mountinfo").map_err(ContainerError::path("read", "/proc/self/mountinfo"))?;
    let (point, shared, slave) = mount_of(&table, &resolved);
    if shared || (slave && !both_ways) {
        return Ok(());
    }
    let needed = if both_ways { "a shared" } else { "a shared or slave" };
    let what = format!(
        "path {} is on mount {}, which is not {needed} mount",
        path.display(),
        point.display()
    );
    Err(ContainerError::Invalid { what })
}

/// The mount that `path` is on (proc_pid_mountinfo(5)), and whether it is shared, and a slave.
fn mount_of(table: &str, path: &Path) -> (PathBuf, bool, bool) {
    let mut found = (PathBuf::from("/"), false, false);
    for line in table.lines() {
        let mut fields = line.split(' ').skip(4);
        let Some(point) = fields.next().map(unescape) else {
            continue;
        };
        // Of several mounts on one point the last one listed is on top.
        if path.starts_with(&point) && point.components().count() >= found.0.components().count() {
            let optional: Vec<&str> = fields.skip(1).take_while(|field| *field != "-").collect();
            let has = |tag| optional.iter().any(|field| field.starts_with(tag));
            found = (point, has("shared:"), has("master:"));
        }
    }
    found
}

/// A path of the table, its octal escapes resolved.
fn unescape(field: &str) -> PathBuf {
    let plain = field
        .replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\");
    PathBuf::from(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "1 0 8:1 / / rw - ext4 /dev/a rw\n\
        2 1 0:5 / /mnt/a\\040b rw shared:3 - tmpfs t rw\n\
        3 1 0:6 / /var/lib/kubelet rw master:4 - tmpfs t rw\n";

    #[test]
    fn the_mount_of_a_path_is_the_deepest_above_it() {
        assert_eq!(
            mount_of(TABLE, Path::new("/mnt/a b/c")),
            (PathBuf::from("/mnt/a b"), true, false)
        );
        assert_eq!(
            mount_of(TABLE, Path::new("/var/lib/kubelet")),
            (PathBuf::from("/var/lib/kubelet"), false, true)
        );
        assert_eq!(
            mount_of(TABLE, Path::new("/mnt/other")),
            (PathBuf::from("/"), false, false)
        );
    }
}
