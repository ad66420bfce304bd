//! Where the mounts that are left to libcontainer will be, which the text of the request does not show.
//!
//! libcontainer makes links and nodes below /dev by path, while the root is not yet its own. If a link of the image's or of a
//! volume led a volume over the root, that volume's /dev would lead libcontainer to the node's files.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::Spec;
use rustix::fs::{CWD, FileType, Mode, OFlags, PROC_SUPER_MAGIC, ResolveFlags, fstat, fstatfs, openat, readlinkat};
use rustix::io::Errno;

use super::{OciError, stage};
use crate::sys::open::openat2;

/// As many as the kernel follows (path_resolution(7)).
const MOST_LINKS: usize = 40;

/// A bind that comes before others, and where it will be.
type Before<'a> = (PathBuf, &'a OwnedFd);

/// Refuses a bind of `spec` that would cover the root, and one over /proc that is no proc file system. `root` has the binds that
/// are attached already.
pub fn check(spec: &Spec, root: &Path, sent: &[OwnedFd]) -> Result<(), OciError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = openat(CWD, root, flags, Mode::empty()).map_err(|error| OciError::Io {
        op: "open the container's root",
        source: error.into(),
    })?;
    let mut before: Vec<Before> = Vec::new();
    for mount in spec.mounts().iter().flatten() {
        let Some(index) = stage::index_of(mount)? else {
            continue;
        };
        let bind = stage::sent(sent, index)?;
        let place = place_of(&opened, &before, mount.destination()).and_then(|place| fit(place, bind));
        let place = place.map_err(|source| OciError::Mount {
            destination: mount.destination().clone(),
            source,
        })?;
        before.push((place, bind));
    }
    Ok(())
}

fn fit(place: PathBuf, bind: &OwnedFd) -> io::Result<PathBuf> {
    let refused = |what| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    if place == Path::new("/") {
        return refused("a symbolic link leads it over the root file system");
    }
    if place == Path::new("/proc") && fstatfs(bind)?.f_type != PROC_SUPER_MAGIC {
        return refused("a symbolic link leads it to /proc, and it is not a proc file system");
    }
    Ok(place)
}

/// Where `destination` will be, seen from the root, once those `before` it are mounted. The kernel's own file systems are not
/// there yet: of their links those that lead elsewhere are none that a mount may follow.
fn place_of(root: &OwnedFd, before: &[Before], destination: &Path) -> io::Result<PathBuf> {
    let mut place = PathBuf::from("/");
    let mut ahead = steps(destination);
    let mut links = 0;
    while let Some(name) = ahead.pop() {
        if name == ".." {
            place.pop();
            continue;
        }
        let next = place.join(&name);
        let Some(target) = link_at(root, before, &next)? else {
            place = next;
            continue;
        };
        links += 1;
        if links > MOST_LINKS {
            return Err(Errno::LOOP.into());
        }
        if target.is_absolute() {
            place = PathBuf::from("/");
        }
        ahead.extend(steps(&target));
    }
    Ok(place)
}

/// The names of a path, the first one last.
fn steps(path: &Path) -> Vec<OsString> {
    let names = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    let mut names: Vec<_> = names.collect();
    names.reverse();
    names
}

/// What the symbolic link at `place` says, if one is there. On the way there are none.
fn link_at(root: &OwnedFd, before: &[Before], place: &Path) -> io::Result<Option<PathBuf>> {
    // The last one that is mounted is on top.
    let on_top = before.iter().rev().find_map(|(at, tree)| {
        let rest = place.strip_prefix(at).ok()?;
        Some((*tree, rest))
    });
    let (tree, rest) = on_top.unwrap_or((root, place.strip_prefix("/").map_err(io::Error::other)?));
    // What is mounted is no link.
    if rest.as_os_str().is_empty() {
        return Ok(None);
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let found = match openat2(tree.as_fd(), rest, flags, Mode::empty(), resolve) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        found => found?,
    };
    if FileType::from_raw_mode(fstat(&found)?.st_mode) != FileType::Symlink {
        return Ok(None);
    }
    let target = readlinkat(&found, "", Vec::new())?;
    Ok(Some(PathBuf::from(OsString::from_vec(target.into_bytes()))))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn open(path: &Path) -> OwnedFd {
        fs::File::open(path).unwrap().into()
    }

    #[test]
    fn a_place_is_found_through_the_links_of_the_image_and_of_volumes() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["root/run", "root/deep/er", "volume/sub", "second"] {
            fs::create_dir_all(at(name)).unwrap();
        }
        for (target, link) in [
            ("/", "root/top"),
            ("../..", "root/deep/up"),
            ("proc", "root/p"),
            ("/run", "root/deep/run"),
            ("loop", "root/loop"),
            ("/", "volume/w"),
            ("sub/../../run", "volume/out"),
            ("w", "second/w"),
        ] {
            symlink(target, at(link)).unwrap();
        }
        let (root, volume, second) = (open(&at("root")), open(&at("volume")), open(&at("second")));
        let before = [
            (PathBuf::from("/data"), &volume),
            // Covers a part of the first one.
            (PathBuf::from("/data/sub"), &second),
        ];
        for (destination, place) in [
            ("/new/place", "/new/place"),
            ("/top", "/"),
            ("/top/top/deep", "/deep"),
            ("/deep/up", "/"),
            ("/deep/er/../up/x", "/x"),
            ("/p", "/proc"),
            ("/p/sys", "/proc/sys"),
            ("/deep/run/x", "/run/x"),
            ("/data", "/data"),
            ("/data/w", "/"),
            ("/data/w/etc", "/etc"),
            ("/data/out", "/run"),
            ("/data/sub", "/data/sub"),
            ("/top/data/w", "/"),
        ] {
            let found = place_of(&root, &before, Path::new(destination)).unwrap();
            assert_eq!(found, Path::new(place), "{destination}");
        }
        for link_to_itself in ["/loop/x", "/data/sub/w"] {
            assert!(place_of(&root, &before, Path::new(link_to_itself)).is_err());
        }
        for (place, fits) in [("/", false), ("/proc", false), ("/proc/sys", true), ("/data", true)] {
            assert_eq!(fit(place.into(), &volume).is_ok(), fits, "{place}");
        }
        assert!(fit("/proc".into(), &open(Path::new("/proc"))).is_ok());
    }
}
