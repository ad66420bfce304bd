//! A volume that an image declares: a directory of the container's own, first filled with what the image has there.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown, lchown};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, Timespec, Timestamps, utimensat};

use crate::sys::mount::open_in_root;
use crate::sys::userns::IdRange;

/// The most that is copied out of an image into one volume, in bytes: an image cannot make a container's start cost
/// more than this.
const LIMIT_BYTES: u64 = 1024 * 1024 * 1024;

/// Makes `volume` and copies into it what is at `from` below `rootfs`, which shows its owners mapped to `ids` if so:
/// the copy has them as the image has them. Nothing is there: it stays empty.
pub fn fill(rootfs: &OwnedFd, from: &Path, volume: &Path, ids: Option<IdRange>) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(volume)?;
    let source = match open_in_root(rootfs, from, OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::ENOTDIR) => return Ok(()),
        opened => opened?,
    };
    let mut copy = Copy { left: LIMIT_BYTES, ids };
    copy.directory(source.as_fd(), volume)
}

/// The path that leads to what `fd` is open on, below it symlinks are never followed.
fn path_of(fd: std::os::fd::BorrowedFd<'_>) -> PathBuf {
    use std::os::fd::AsRawFd;
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

struct Copy {
    /// Bytes.
    left: u64,
    ids: Option<IdRange>,
}

impl Copy {
    fn directory(&mut self, source: std::os::fd::BorrowedFd<'_>, target: &Path) -> io::Result<()> {
        for entry in fs::read_dir(path_of(source))? {
            let entry = entry?;
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
                self.left = self.left.checked_sub(metadata.len()).ok_or_else(|| {
                    io::Error::new(
                        io::ErrorKind::FileTooLarge,
                        format!("more than {LIMIT_BYTES} bytes in the image"),
                    )
                })?;
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
        fill(&rootfs, Path::new("/data"), &volume, None).unwrap();
        assert_eq!(fs::read(volume.join("sub/file")).unwrap(), b"content");
        assert_eq!(fs::metadata(volume.join("sub/file")).unwrap().mode() & 0o777, 0o640);
        assert_eq!(fs::read_link(volume.join("link")).unwrap(), Path::new("/etc/shadow"));
        let escaped = dir.path().join("escaped");
        fill(&rootfs, Path::new("/escape"), &escaped, None).unwrap();
        assert_eq!(
            fs::read_dir(&escaped).unwrap().count(),
            0,
            "the link was followed out of the root"
        );
    }
}
