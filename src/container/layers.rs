//! An image's layers as one mount: the root of a container, or a volume; for a pod with a user namespace, with the
//! layers' owners mapped to the pod's.
//!
//! An overlay cannot be id-mapped, its layers can: one mapped copy of the directory that holds all layers and one of
//! the container's own directory do for any number of them, and nothing on the disk is changed.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};

use crate::store::{UPPER, WORK};
use crate::sys::mount_namespace::MountNamespace;
use crate::sys::userns::{self, IdRange};
use crate::sys::{capability, mount, process};

/// The users of a pod with a user namespace.
pub struct Users {
    pub namespace: OwnedFd,
    pub ids: IdRange,
}

impl Users {
    /// Maps the owners of `mount`, a detached copy of the mount at `path`.
    pub fn map(&self, mount: OwnedFd, path: &Path) -> io::Result<OwnedFd> {
        match mount::set_id_map(&mount, &self.namespace) {
            Ok(()) => Ok(mount),
            // The kernel says no more than that.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                let told = format!(
                    "the file system of {} does not support id-mapped mounts",
                    path.display()
                );
                Err(io::Error::new(io::ErrorKind::Unsupported, told))
            }
            Err(error) => Err(error),
        }
    }
}

/// What crisp mounts in every container, below `/`: see [`Layers::mount_points`].
const MOUNT_POINT_DIRS: [&str; 4] = ["dev", "etc", "proc", "sys"];
const MOUNT_POINT_FILES: [&str; 3] = ["etc/hostname", "etc/hosts", "etc/resolv.conf"];

/// Puts layers together.
pub struct Layers {
    namespace: MountNamespace,
    /// The lowest layer of every container, below its image: whatever is mounted in all of them has its place there. Most
    /// images lack some, and a place that is made in the writable layer is a file or directory more that is made, copied up
    /// and removed with every container. What the image has, or hides, counts as ever.
    mount_points: PathBuf,
    /// Why no pod can have a user namespace here.
    no_user_namespaces: Option<String>,
}

impl Layers {
    /// Finds out whether pods can have user namespaces whose containers lie below `root`, by making what one needs.
    ///
    /// # Errors
    /// When a mount namespace or the places of mounts cannot be made. That the kernel or the file system has no id-mapped mounts
    /// is none.
    pub fn open(root: &Path) -> io::Result<Self> {
        let mount_points = root.join("mount-points");
        make_mount_points(&mount_points)?;
        let mut layers = Self {
            namespace: MountNamespace::create()?,
            mount_points,
            no_user_namespaces: None,
        };
        let probe = root.join("id-map-probe");
        layers.no_user_namespaces = layers.try_id_map(&probe).err().map(|error| error.to_string());
        match fs::remove_dir_all(&probe) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %probe.display(), %error, "cannot remove what was made to try id-mapped mounts");
            }
            _ => {}
        }
        Ok(layers)
    }

    /// Why no pod can have a user namespace on this node, if so.
    pub fn no_user_namespaces(&self) -> Option<&str> {
        self.no_user_namespaces.as_deref()
    }

    fn try_id_map(&self, probe: &Path) -> io::Result<()> {
        for dir in [UPPER, WORK, "layers/one/diff"] {
            fs::create_dir_all(probe.join(dir))?;
        }
        let ids = IdRange { first: 1, count: 1 };
        let users = Users {
            namespace: userns::create(ids, false)?.user,
            ids,
        };
        self.root(&[probe.join("layers/one/diff")], probe, Some(&users))
            .map(drop)
    }

    /// The writable root of the container whose directory is `dir`, on top of `lower` (top first), attached nowhere.
    pub fn root(&self, lower: &[PathBuf], dir: &Path, users: Option<&Users>) -> io::Result<OwnedFd> {
        let Some(users) = users else {
            let lower = [lower, std::slice::from_ref(&self.mount_points)].concat();
            return mount::overlay(&lower, &dir.join(UPPER), &dir.join(WORK));
        };
        // Here the places are made as they are needed: they are not below the directory of all layers, whose mapped copy this is.
        let (below, lower) = mapped_layers(lower, users)?;
        let own = mapped(dir, users)?;
        self.namespace.run_in_copy(|| {
            mount::attach(&below, CWD, Path::new(MountNamespace::FIRST))?;
            mount::attach(&own, CWD, Path::new(MountNamespace::SECOND))?;
            let own = Path::new(MountNamespace::SECOND);
            // Whoever mounts an overlay is who makes its files, before they are given to their owners: it must be
            // somebody whom the mapping knows, and may do it.
            let mine = capability::get()?;
            process::set_files_id(users.ids.first);
            capability::set(mine)?;
            mount::overlay(&lower, &own.join(UPPER), &own.join(WORK))
        })
    }

    /// What is at `sub_path` in the image of the layers `lower` (top first), read-only, attached nowhere. `sub_path` is
    /// resolved as if the image were `/`.
    pub fn volume(&self, lower: &[PathBuf], sub_path: &Path, users: Option<&Users>) -> io::Result<OwnedFd> {
        let root = match (lower, users) {
            ([], _) => return Err(io::Error::new(io::ErrorKind::NotFound, "the image has no layers")),
            ([only], None) => mount::clone_tree(only, false)?,
            ([only], Some(users)) => mapped(only, users)?,
            (layers, None) => mount::overlay_read_only(layers)?,
            (layers, Some(users)) => {
                let (below, lower) = mapped_layers(layers, users)?;
                self.namespace.run_in_copy(|| {
                    mount::attach(&below, CWD, Path::new(MountNamespace::FIRST))?;
                    mount::overlay_read_only(&lower)
                })?
            }
        };
        if sub_path.as_os_str().is_empty() || sub_path == Path::new("/") {
            return Ok(root);
        }
        self.namespace.run_in_copy(|| {
            mount::attach(&root, CWD, Path::new(MountNamespace::FIRST))?;
            let inside = mount::open_in_root(&root, sub_path, OFlags::PATH, Mode::empty())?;
            mount::clone_tree_at(&inside, false)
        })
    }
}

fn make_mount_points(dir: &Path) -> io::Result<()> {
    let set_mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
    for name in MOUNT_POINT_DIRS {
        fs::create_dir_all(dir.join(name))?;
        set_mode(&dir.join(name), 0o755)?;
    }
    for name in MOUNT_POINT_FILES {
        fs::File::create(dir.join(name))?;
        set_mode(&dir.join(name), 0o644)?;
    }
    set_mode(dir, 0o755)
}

/// A copy of the mount at `path`, attached nowhere, its owners mapped for `users`.
fn mapped(path: &Path, users: &Users) -> io::Result<OwnedFd> {
    users.map(mount::clone_tree(path, false)?, path)
}

/// The directory above all of `lower` with its owners mapped, and the paths of `lower` once that is attached as
/// [`MountNamespace::FIRST`].
fn mapped_layers(lower: &[PathBuf], users: &Users) -> io::Result<(OwnedFd, Vec<PathBuf>)> {
    // <dir>/<layer>/diff
    let dir = lower.first().and_then(|layer| layer.ancestors().nth(2));
    let dir = dir.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the image has no layers"))?;
    let below = lower.iter().map(|layer| {
        let name = layer.strip_prefix(dir).map_err(io::Error::other)?;
        Ok(Path::new(MountNamespace::FIRST).join(name))
    });
    Ok((mapped(dir, users)?, below.collect::<io::Result<_>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::openat;
    use std::io::Read;

    /// The root of a container whose image is `lower`, and where its own files go.
    fn root_of(layers: &Layers, dir: &Path, lower: &Path) -> (OwnedFd, PathBuf) {
        for part in [UPPER, WORK] {
            fs::create_dir_all(dir.join(part)).unwrap();
        }
        (layers.root(&[lower.to_owned()], dir, None).unwrap(), dir.join(UPPER))
    }

    fn read(root: &OwnedFd, path: &str) -> io::Result<String> {
        let file = openat(root, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let mut text = String::new();
        fs::File::from(file).read_to_string(&mut text)?;
        Ok(text)
    }

    #[test]
    fn an_image_without_places_for_mounts_has_them_and_its_container_no_file_more() {
        let dir = tempfile::tempdir().unwrap();
        let layers = Layers::open(dir.path()).unwrap();
        // A daemon that comes again finds them.
        Layers::open(dir.path()).unwrap();
        let image = dir.path().join("image");
        fs::create_dir_all(image.join("etc")).unwrap();
        fs::write(image.join("etc/hosts"), "the image's").unwrap();
        fs::write(image.join("proc"), "a file where a directory is to be").unwrap();
        let (root, upper) = root_of(&layers, &dir.path().join("container"), &image);
        assert_eq!(read(&root, "etc/hostname").unwrap(), "");
        assert_eq!(read(&root, "etc/resolv.conf").unwrap(), "");
        assert_eq!(read(&root, "etc/hosts").unwrap(), "the image's");
        assert_eq!(read(&root, "proc").unwrap(), "a file where a directory is to be");
        openat(&root, "sys", OFlags::DIRECTORY, Mode::empty()).unwrap();
        assert_eq!(fs::read_dir(&upper).unwrap().count(), 0);
        // What one container writes there is its own.
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let hostname = openat(&root, "etc/hostname", flags, Mode::empty()).unwrap();
        rustix::io::write(&hostname, b"mine").unwrap();
        let (other, _) = root_of(&layers, &dir.path().join("other"), &image);
        assert_eq!(read(&other, "etc/hostname").unwrap(), "");
        assert_eq!(read(&root, "etc/hostname").unwrap(), "mine");
    }
}
