//! A volume that an image declares: a directory of the container's own, first filled with what the image has there.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown, lchown};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, Timespec, Timestamps, utimensat};

use crate::sys::mount::open_in_root;
use crate::sys::userns::IdRange;

/// What may be copied out of an image into the volumes of one container, all together: an image cannot make a
/// container's start cost more than this.
pub struct Budget {
    bytes: Allowance,
    /// Whatever their type: an empty file takes an inode, and its time.
    entries: Allowance,
}

struct Allowance {
    what: &'static str,
    limit: u64,
    left: u64,
}

impl Budget {
    fn new(bytes: u64, entries: u64) -> Self {
        let allow = |what, limit| Allowance {
            what,
            limit,
            left: limit,
        };
        Self {
            bytes: allow("bytes", bytes),
            entries: allow("entries", entries),
        }
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self::new(1024 * 1024 * 1024, 100_000)
    }
}

impl Allowance {
    fn take(&mut self, amount: u64) -> io::Result<()> {
        let Self { what, limit, left } = self;
        *left = left.checked_sub(amount).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("the image has more than {limit} {what} for the container's volumes together"),
            )
        })?;
        Ok(())
    }
}

/// Makes `volume` and copies into it what is at `from` below `rootfs`, as far as `budget` allows. The root shows its
/// owners mapped to `ids` if so: the copy has them as the image has them. Nothing is there: it stays empty.
pub fn fill(rootfs: &OwnedFd, from: &Path, volume: &Path, ids: Option<IdRange>, budget: &mut Budget) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(volume)?;
    let source = match open_in_root(rootfs, from, OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::ENOTDIR) => return Ok(()),
        opened => opened?,
    };
    let mut copy = Copy { budget, ids };
    copy.directory(source.as_fd(), volume)
}

/// The path that leads to what `fd` is open on, below it symlinks are never followed.
fn path_of(fd: std::os::fd::BorrowedFd<'_>) -> PathBuf {
    use std::os::fd::AsRawFd;
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

struct Copy<'a> {
    budget: &'a mut Budget,
    ids: Option<IdRange>,
}

impl Copy<'_> {
    fn directory(&mut self, source: std::os::fd::BorrowedFd<'_>, target: &Path) -> io::Result<()> {
        for entry in fs::read_dir(path_of(source))? {
            let entry = entry?;
            self.budget.entries.take(1)?;
            let name = entry.file_name();
            let to = target.join(&name);
            let kind = entry.file_type()?;
            let metadata = entry.metadata()?;
            if kind.is_dir() {
                fs::create_dir(&to)?;
                let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let below = rustix::fs::openat(source, &name, flags, Mode::empty())?;
                self.directory(below.as_fd(), &to)?;
            } else if kind.is_symlink() {
                std::os::unix::fs::symlink(fs::read_link(entry.path())?, &to)?;
                let (uid, gid) = self.owner(&metadata);
                lchown(&to, Some(uid), Some(gid))?;
            } else if kind.is_file() {
                self.budget.bytes.take(metadata.len())?;
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let mut from = fs::File::from(rustix::fs::openat(source, &name, flags, Mode::empty())?);
                let mut into = fs::File::create(&to)?;
                io::copy(&mut from, &mut into)?;
                self.keep_attributes(&metadata, &to)?;
            }
            // Devices, sockets and pipes do not belong into a volume.
        }
        self.keep_attributes(&fs::metadata(path_of(source))?, target)
    }

    fn keep_attributes(&self, metadata: &fs::Metadata, to: &Path) -> io::Result<()> {
        let (uid, gid) = self.owner(metadata);
        chown(to, Some(uid), Some(gid))?;
        fs::set_permissions(to, fs::Permissions::from_mode(metadata.mode() & 0o7777))?;
        let time = |seconds, nanoseconds| Timespec {
            tv_sec: seconds,
            tv_nsec: nanoseconds,
        };
        let times = Timestamps {
            last_access: time(metadata.atime(), metadata.atime_nsec()),
            last_modification: time(metadata.mtime(), metadata.mtime_nsec()),
        };
        Ok(utimensat(CWD, to, &times, AtFlags::empty())?)
    }

    /// User and group as the image has them. Whom the pod has no number for shows as nobody, and stays that.
    fn owner(&self, metadata: &fs::Metadata) -> (u32, u32) {
        let inside = |id| self.ids.and_then(|ids| ids.inside(id)).unwrap_or(id);
        (inside(metadata.uid()), inside(metadata.gid()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_gets_what_the_image_has_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let (root, volume) = (dir.path().join("root"), dir.path().join("volume"));
        fs::create_dir_all(root.join("data/sub")).unwrap();
        fs::write(root.join("data/sub/file"), "content").unwrap();
        fs::set_permissions(root.join("data/sub/file"), fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink("/etc/shadow", root.join("data/link")).unwrap();
        std::os::unix::fs::symlink("/etc", root.join("escape")).unwrap();
        let rootfs = OwnedFd::from(fs::File::open(&root).unwrap());
        let mut budget = Budget::default();
        fill(&rootfs, Path::new("/data"), &volume, None, &mut budget).unwrap();
        assert_eq!(fs::read(volume.join("sub/file")).unwrap(), b"content");
        assert_eq!(fs::metadata(volume.join("sub/file")).unwrap().mode() & 0o777, 0o640);
        assert_eq!(fs::read_link(volume.join("link")).unwrap(), Path::new("/etc/shadow"));
        let escaped = dir.path().join("escaped");
        fill(&rootfs, Path::new("/escape"), &escaped, None, &mut budget).unwrap();
        assert_eq!(
            fs::read_dir(&escaped).unwrap().count(),
            0,
            "the link was followed out of the root"
        );
    }

    /// Fills a volume from each of `names`, all within `budget`.
    fn fill_all(root: &Path, names: &[&str], mut budget: Budget) -> io::Result<()> {
        let rootfs = OwnedFd::from(fs::File::open(root).unwrap());
        let volumes = tempfile::tempdir().unwrap();
        names
            .iter()
            .try_for_each(|name| fill(&rootfs, Path::new(name), &volumes.path().join(name), None, &mut budget))
    }

    #[test]
    fn the_volumes_of_a_container_share_what_may_be_copied() {
        // Each of 256 volumes could have as much as one may.
        let root = tempfile::tempdir().unwrap();
        for name in ["a", "b"] {
            fs::create_dir(root.path().join(name)).unwrap();
            fs::write(root.path().join(name).join("file"), [0u8; 60]).unwrap();
        }
        fill_all(root.path(), &["a"], Budget::new(100, 10)).unwrap();
        fill_all(root.path(), &["b"], Budget::new(100, 10)).unwrap();
        fill_all(root.path(), &["a", "b"], Budget::new(120, 10)).unwrap();
        let refused = fill_all(root.path(), &["a", "b"], Budget::new(119, 10)).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::FileTooLarge);
        assert!(refused.to_string().contains("more than 119 bytes"), "{refused}");
        let refused = fill_all(root.path(), &["a", "b"], Budget::new(120, 1)).unwrap_err();
        assert!(refused.to_string().contains("more than 1 entries"), "{refused}");
    }

    #[test]
    fn what_has_no_bytes_counts() {
        // A million empty files cost nothing of a bound in bytes.
        let root = tempfile::tempdir().unwrap();
        let data = root.path().join("data");
        fs::create_dir_all(data.join("sub")).unwrap();
        fs::write(data.join("empty"), "").unwrap();
        fs::write(data.join("sub/empty"), "").unwrap();
        std::os::unix::fs::symlink("nowhere", data.join("sub/link")).unwrap();
        fill_all(root.path(), &["data"], Budget::new(0, 4)).unwrap();
        let refused = fill_all(root.path(), &["data"], Budget::new(0, 3)).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::FileTooLarge);
        assert!(refused.to_string().contains("more than 3 entries"), "{refused}");
    }
}
