//! Taking away what a later entry of the same name replaces, and counting what is there.

use std::collections::HashSet;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, openat, statat, unlinkat};
use rustix::io::Errno;

use super::place::Dir;
use super::{Unpacker, failed};
use crate::image::store::LayerError;

impl Unpacker<'_> {
    /// What has that name, if anything has.
    pub(super) fn kind_of(&self, dir: &Dir, name: &[u8], entry: &[u8]) -> Result<Option<FileType>, LayerError> {
        match statat(&*dir.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(failed("stat", entry)(error)),
        }
    }

    /// Removes what has that name, directories with everything in them.
    pub(super) fn clear(&mut self, dir: &Dir, name: &[u8], entry: &[u8]) -> Result<(), LayerError> {
        // The directories that are kept open may be the ones that go.
        self.open_dirs.clear();
        self.recount = true;
        remove(&dir.fd, name).map_err(failed("replace", entry))
    }
}

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Depth is limited by what can be unpacked.
fn remove(dir: &OwnedFd, name: &[u8]) -> rustix::io::Result<()> {
    match unlinkat(dir, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => {}
        other => return other,
    }
    let here = openat(dir, name, DIRECTORY, Mode::empty())?;
    for child in names(&here)? {
        remove(&here, &child)?;
    }
    unlinkat(dir, name, AtFlags::REMOVEDIR)
}

fn names(dir: &OwnedFd) -> rustix::io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_bytes().to_vec());
        }
    }
    Ok(names)
}

/// Inodes and bytes on disk of the tree at `root`, itself included.
pub(super) fn count(root: &OwnedFd) -> Result<(u64, u64), LayerError> {
    fn walk(dir: &OwnedFd, seen: &mut HashSet<u64>, sums: &mut (u64, u64)) -> rustix::io::Result<()> {
        for name in names(dir)? {
            let stat = statat(dir, &name[..], AtFlags::SYMLINK_NOFOLLOW)?;
            let kind = FileType::from_raw_mode(stat.st_mode);
            if kind != FileType::Directory && stat.st_nlink > 1 && !seen.insert(stat.st_ino) {
                continue;
            }
            sums.0 += 1;
            if kind == FileType::Directory {
                sums.1 += super::DISK_BLOCK;
                walk(&openat(dir, &name[..], DIRECTORY, Mode::empty())?, seen, sums)?;
            } else {
                sums.1 += super::blocks(u64::try_from(stat.st_blocks).unwrap_or(0) * 512);
            }
        }
        Ok(())
    }
    let mut sums = (1, super::DISK_BLOCK);
    walk(root, &mut HashSet::new(), &mut sums).map_err(failed("count", b"layer"))?;
    Ok(sums)
}
