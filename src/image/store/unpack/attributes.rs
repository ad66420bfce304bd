//! Owner, mode, extended attributes and times.
//!
//! The order matters: chown(2) takes setuid bits and file capabilities away, so the owner comes first, then the mode,
//! then the attributes, and the time last.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    AtFlags, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags, chownat, fchmod, fchown,
    fsetxattr, futimens, utimensat,
};
use rustix::io::Errno;

use super::{Unpacker, failed};
use crate::image::store::LayerError;
use crate::image::store::archive::Entry;
use crate::sys::open::openat2;

/// What a directory will be given at the end.
pub(super) struct Directory {
    path: Vec<u8>,
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: (i64, u32),
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Unpacker<'_> {
    /// Remembers what the directory `path` will be given at the end.
    pub(super) fn remember_directory(&mut self, path: Vec<u8>, entry: &Entry) -> Result<(), LayerError> {
        let xattrs: Vec<_> = entry.xattrs.iter().filter(|(name, _)| is_kept(name)).cloned().collect();
        self.remember(
            path.len()
                + xattrs
                    .iter()
                    .map(|(name, value)| name.len() + value.len() + 48)
                    .sum::<usize>(),
        )?;
        let Entry {
            mode, uid, gid, mtime, ..
        } = *entry;
        self.directories.push(Directory {
            path,
            mode,
            uid,
            gid,
            mtime,
            xattrs,
        });
        Ok(())
    }
}

fn times((seconds, nanoseconds): (i64, u32)) -> Timestamps {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

/// Whether an extended attribute is the image's business. The others speak to the host's kernel.
fn is_kept(name: &[u8]) -> bool {
    match name {
        b"security.capability" | b"system.posix_acl_access" | b"system.posix_acl_default" => true,
        _ => name.starts_with(b"user.") && !name.starts_with(b"user.overlay."),
    }
}

fn set_xattrs(fd: impl AsFd, xattrs: &[(Vec<u8>, Vec<u8>)], path: &[u8]) -> Result<(), LayerError> {
    for (name, value) in xattrs.iter().filter(|(name, _)| is_kept(name)) {
        match fsetxattr(&fd, &name[..], value, XattrFlags::empty()) {
            Ok(()) => {}
            // A file system without them; a program without its capabilities would fail at run time, so that is told.
            Err(Errno::OPNOTSUPP) if name != b"security.capability" => {}
            Err(error) => return Err(failed("set extended attribute of", path)(error)),
        }
    }
    Ok(())
}

/// Gives a new file, made with the permission bits of its mode by root, the rest.
pub(super) fn set_on_file(file: &OwnedFd, entry: &Entry) -> Result<(), LayerError> {
    if (entry.uid, entry.gid) != (0, 0) {
        fchown(file, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))
            .map_err(failed("set owner of", &entry.path))?;
    }
    if entry.mode & 0o7000 != 0 {
        fchmod(file, Mode::from_raw_mode(entry.mode)).map_err(failed("set mode of", &entry.path))?;
    }
    set_xattrs(file, &entry.xattrs, &entry.path)?;
    futimens(file, &times(entry.mtime)).map_err(failed("set time of", &entry.path))
}

/// Gives a new symlink, device or fifo its owner and time.
pub(super) fn set_by_name(dir: &OwnedFd, name: &[u8], entry: &Entry) -> Result<(), LayerError> {
    if (entry.uid, entry.gid) != (0, 0) {
        let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
        chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(failed("set owner of", &entry.path))?;
    }
    utimensat(dir, name, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW).map_err(failed("set time of", &entry.path))
}

/// Gives a directory everything that its entry said, if it is still there.
pub(super) fn set_on_directory(root: &OwnedFd, directory: &Directory) -> Result<(), LayerError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let path = if directory.path.is_empty() {
        b"."
    } else {
        &directory.path[..]
    };
    let fd = match openat2(root, path, flags, Mode::empty(), beneath) {
        Ok(fd) => fd,
        // A later entry replaced it or a directory above it.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
        Err(error) => return Err(failed("open directory", path)(error)),
    };
    fchown(
        &fd,
        Some(Uid::from_raw(directory.uid)),
        Some(Gid::from_raw(directory.gid)),
    )
    .map_err(failed("set owner of", path))?;
    fchmod(&fd, Mode::from_raw_mode(directory.mode)).map_err(failed("set mode of", path))?;
    set_xattrs(&fd, &directory.xattrs, path)?;
    futimens(&fd, &times(directory.mtime)).map_err(failed("set time of", path))
}

#[cfg(test)]
mod tests {
    use super::is_kept;

    #[test]
    fn attributes_that_speak_to_the_hosts_kernel_are_left_out() {
        for kept in ["security.capability", "user.mime_type", "system.posix_acl_access"] {
            assert!(is_kept(kept.as_bytes()), "{kept}");
        }
        for dropped in [
            "trusted.overlay.opaque",
            "trusted.overlay.redirect",
            "trusted.anything",
            "user.overlay.whiteout",
            "security.selinux",
            "security.ima",
            "system.nfs4_acl",
            "unknown",
        ] {
            assert!(!is_kept(dropped.as_bytes()), "{dropped}");
        }
    }
}
