//! Unpacks an archive into a fresh directory that becomes an overlay lower directory.
//!
//! The layer is alone in its directory, so what it changes of the layers below is written down for overlayfs:
//! `.wh.name` becomes a whiteout (character device 0:0), `.wh..wh..opq` the attribute `trusted.overlay.opaque`
//! (OCI image-spec `layer.md`; Linux `Documentation/filesystems/overlayfs.rst`).
//!
//! What is refused, and what is left out:
//! - refused: `..`, names that are too long or too deep, unknown types of entry, sockets, devices 0:0 (the kernel would
//!   take them for whiteouts), hard links to what is not in this layer or to directories;
//! - made as they are: other device nodes (the container's device cgroup decides what they can do, and nobody but
//!   root enters the store), fifos, setuid and setgid bits, `security.capability`, `user.*` and ACLs;
//! - left out: `trusted.*`, `user.overlay.*` and other `security.*` attributes (they speak to the host's kernel:
//!   overlayfs, IMA, SELinux), attributes on anything but files and directories, aufs' own `.wh..wh.*` entries.

mod attributes;
mod place;
mod replace;
mod whiteout;

use std::collections::{HashMap, HashSet};
use std::io::{self, BufRead};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, makedev};
use rustix::io::Errno;

use self::place::{Dir, Missing, components};
use super::archive::{Archive, Entry, Kind, printable};
use super::{LayerError, Limits, RootAttributes};

/// What one file or directory takes on disk is counted in these.
const DISK_BLOCK: u64 = 4096;

/// Memory for what must be remembered to the end: names of directories.
const MAX_REMEMBERED: u64 = 256 << 20;

/// What was unpacked.
#[derive(Debug, Default)]
pub(super) struct Unpacked {
    pub size_bytes: u64,
    pub inodes: u64,
    /// Directories that entries lie in but that have no entry of their own, sorted.
    pub implicit: Vec<Vec<u8>>,
    /// Whether the layer hides everything below it.
    pub opaque_root: bool,
    /// What the archive says of its root.
    pub root: Option<RootAttributes>,
}

fn failed(op: &'static str, entry: &[u8]) -> impl FnOnce(Errno) -> LayerError {
    let entry = printable(entry);
    move |error| LayerError::Io {
        op,
        entry,
        source: io::Error::from(error),
    }
}

fn blocks(bytes: u64) -> u64 {
    bytes.div_ceil(DISK_BLOCK) * DISK_BLOCK
}

struct Unpacker<'a> {
    root: Dir,
    limits: &'a Limits,
    open_dirs: HashMap<Vec<u8>, Dir>,
    /// Attributes of directories; set last, since whatever happens inside changes them.
    directories: Vec<attributes::Directory>,
    implicit: HashSet<Vec<u8>>,
    remembered: u64,
    made: Unpacked,
    /// Something was replaced, so the running sums are too high.
    recount: bool,
}

/// Unpacks `archive` into the empty directory `root`. Call it in a thread of its own: it changes the thread's umask.
pub(super) fn unpack(archive: impl BufRead, root: OwnedFd, limits: &Limits) -> Result<Unpacked, LayerError> {
    // The umask is the process's unless the thread stops sharing it. Without it open(2) sets the whole mode at once.
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS).map_err(|e| LayerError::Io {
        op: "unshare umask of",
        entry: "unpacker".into(),
        source: e.into(),
    })?;
    rustix::process::umask(Mode::empty());
    let mut unpacker = Unpacker {
        root: Dir {
            fd: Rc::new(root),
            path: Vec::new(),
        },
        limits,
        open_dirs: HashMap::new(),
        directories: Vec::new(),
        implicit: HashSet::new(),
        remembered: 0,
        made: Unpacked {
            size_bytes: DISK_BLOCK,
            inodes: 1,
            ..Unpacked::default()
        },
        recount: false,
    };
    let mut archive = Archive::new(archive, limits.entries.saturating_mul(4));
    while let Some(entry) = archive.next_entry()? {
        unpacker.entry(&mut archive, &entry)?;
    }
    unpacker.finish()
}

impl Unpacker<'_> {
    fn entry(&mut self, archive: &mut Archive<impl BufRead>, entry: &Entry) -> Result<(), LayerError> {
        let refuse = |reason| LayerError::Refused {
            entry: printable(&entry.path),
            reason,
        };
        let parts = components(&entry.path)?;
        let Some((name, parents)) = parts.split_last() else {
            return match entry.kind {
                Kind::Directory => {
                    self.made.root = Some(RootAttributes {
                        mode: entry.mode,
                        uid: entry.uid,
                        gid: entry.gid,
                    });
                    self.remember_directory(Vec::new(), entry)
                }
                _ => Err(refuse("the root of a layer is a directory")),
            };
        };
        if self.whiteout(parents, name, entry)? {
            return Ok(());
        }
        let dir = self.directory(parents, Missing::Make, &entry.path)?;
        match entry.kind {
            Kind::Directory => self.put_directory(&dir, name, entry),
            Kind::File => self.put_file(&dir, name, entry, archive),
            Kind::Symlink => self.put_symlink(&dir, name, entry),
            Kind::HardLink => self.put_hard_link(&dir, name, entry),
            Kind::Fifo => self.put_node(&dir, name, entry, FileType::Fifo),
            Kind::CharDevice | Kind::BlockDevice if entry.device == (0, 0) => {
                Err(refuse("a device 0:0 would be a whiteout"))
            }
            Kind::CharDevice => self.put_node(&dir, name, entry, FileType::CharacterDevice),
            Kind::BlockDevice => self.put_node(&dir, name, entry, FileType::BlockDevice),
        }
    }

    /// Counts a new inode against the limit.
    fn count(&mut self, bytes: u64) -> Result<(), LayerError> {
        self.made.inodes += 1;
        self.made.size_bytes += blocks(bytes);
        if self.made.inodes > self.limits.entries {
            return Err(LayerError::Limit {
                what: "entries",
                limit: self.limits.entries,
            });
        }
        Ok(())
    }

    fn remember(&mut self, path_len: usize) -> Result<(), LayerError> {
        self.remembered += path_len as u64 + 96;
        if self.remembered > MAX_REMEMBERED {
            return Err(LayerError::Limit {
                what: "bytes of directory names",
                limit: MAX_REMEMBERED,
            });
        }
        Ok(())
    }

    fn remember_implicit(&mut self, path: Vec<u8>) -> Result<(), LayerError> {
        self.remember(path.len())?;
        self.implicit.insert(path);
        Ok(())
    }

    /// Makes a directory where nothing is. Its attributes come at the end.
    fn make_directory(&mut self, dir: &Dir, name: &[u8], entry: &[u8]) -> Result<(), LayerError> {
        rustix::fs::mkdirat(&*dir.fd, name, Mode::from_raw_mode(0o755)).map_err(failed("make directory", entry))?;
        self.count(DISK_BLOCK)
    }

    fn put_directory(&mut self, dir: &Dir, name: &[u8], entry: &Entry) -> Result<(), LayerError> {
        match rustix::fs::mkdirat(&*dir.fd, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => self.count(DISK_BLOCK)?,
            Err(Errno::EXIST) => {
                if self.kind_of(dir, name, &entry.path)? != Some(FileType::Directory) {
                    // What was here hid what lower layers have; a directory would show it again.
                    self.clear(dir, name, &entry.path)?;
                    self.make_directory(dir, name, &entry.path)?;
                    self.set_opaque(dir, name, &entry.path)?;
                }
            }
            Err(error) => return Err(failed("make directory", &entry.path)(error)),
        }
        let path = dir.join(name);
        self.implicit.remove(&path);
        self.remember_directory(path, entry)
    }

    fn put_file(
        &mut self,
        dir: &Dir,
        name: &[u8],
        entry: &Entry,
        archive: &mut Archive<impl BufRead>,
    ) -> Result<(), LayerError> {
        if entry.size > self.limits.file_bytes {
            return Err(LayerError::Limit {
                what: "bytes in one file",
                limit: self.limits.file_bytes,
            });
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(entry.mode & 0o777);
        let file = self.replacing(dir, name, &entry.path, || {
            rustix::fs::openat(&*dir.fd, name, flags, mode)
        })?;
        let stored = match &entry.extents {
            None => write_data(archive, file.as_fd(), entry, entry.size, None)?,
            Some(extents) => {
                let mut stored = 0;
                for extent in extents {
                    stored += blocks(write_data(
                        archive,
                        file.as_fd(),
                        entry,
                        extent.len,
                        Some(extent.offset),
                    )?);
                }
                rustix::fs::ftruncate(&file, entry.size).map_err(failed("set size of", &entry.path))?;
                stored
            }
        };
        attributes::set_on_file(&file, entry)?;
        self.count(stored)
    }

    fn put_symlink(&mut self, dir: &Dir, name: &[u8], entry: &Entry) -> Result<(), LayerError> {
        let refuse = |reason| LayerError::Refused {
            entry: printable(&entry.path),
            reason,
        };
        if entry.link.is_empty() || entry.link.len() > 4095 {
            return Err(refuse("symlink target is empty or too long"));
        }
        self.replacing(dir, name, &entry.path, || {
            rustix::fs::symlinkat(&entry.link[..], &*dir.fd, name)
        })?;
        attributes::set_by_name(&dir.fd, name, entry)?;
        // Short targets lie in the inode.
        self.count(if entry.link.len() < 60 { 0 } else { DISK_BLOCK })
    }

    fn put_hard_link(&mut self, dir: &Dir, name: &[u8], entry: &Entry) -> Result<(), LayerError> {
        let refuse = |reason| LayerError::Refused {
            entry: printable(&entry.path),
            reason,
        };
        let parts = components(&entry.link)?;
        let Some((target, parents)) = parts.split_last() else {
            return Err(refuse("hard link to the root"));
        };
        let there = self.directory(parents, Missing::Fail, &entry.path)?;
        let stat = match rustix::fs::statat(&*there.fd, *target, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Err(refuse("its target is not in this layer")),
            Err(error) => return Err(failed("stat target of", &entry.path)(error)),
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => return Err(refuse("hard link to a directory")),
            FileType::CharacterDevice if stat.st_rdev == 0 => {
                return Err(refuse("its target is not in this layer"));
            }
            _ => {}
        }
        if let Ok(here) = rustix::fs::statat(&*dir.fd, name, AtFlags::SYMLINK_NOFOLLOW)
            && here.st_ino == stat.st_ino
        {
            return Ok(());
        }
        let link = || rustix::fs::linkat(&*there.fd, *target, &*dir.fd, name, AtFlags::empty());
        self.replacing(dir, name, &entry.path, link)
    }

    fn put_node(&mut self, dir: &Dir, name: &[u8], entry: &Entry, kind: FileType) -> Result<(), LayerError> {
        let (major, minor) = entry.device;
        let mode = Mode::from_raw_mode(entry.mode);
        let make = || rustix::fs::mknodat(&*dir.fd, name, kind, mode, makedev(major, minor));
        self.replacing(dir, name, &entry.path, make)?;
        attributes::set_by_name(&dir.fd, name, entry)?;
        self.count(0)
    }

    /// Runs `make`; if something has the name already, removes that and runs it again.
    fn replacing<T>(
        &mut self,
        dir: &Dir,
        name: &[u8],
        entry: &[u8],
        make: impl Fn() -> rustix::io::Result<T>,
    ) -> Result<T, LayerError> {
        match make() {
            Err(Errno::EXIST) => {
                self.clear(dir, name, entry)?;
                make().map_err(failed("make", entry))
            }
            made => made.map_err(failed("make", entry)),
        }
    }

    fn finish(mut self) -> Result<Unpacked, LayerError> {
        self.open_dirs.clear();
        for directory in std::mem::take(&mut self.directories) {
            attributes::set_on_directory(&self.root.fd, &directory)?;
        }
        if self.recount {
            (self.made.inodes, self.made.size_bytes) = replace::count(&self.root.fd)?;
        }
        let mut implicit: Vec<_> = self.implicit.into_iter().collect();
        implicit.sort();
        Ok(Unpacked { implicit, ..self.made })
    }
}

/// Writes the next `len` stored bytes, at `offset` or where the file stands. Returns how many were written.
fn write_data(
    archive: &mut Archive<impl BufRead>,
    file: impl AsFd,
    entry: &Entry,
    len: u64,
    offset: Option<u64>,
) -> Result<u64, LayerError> {
    let mut written = 0;
    while written < len {
        let bytes = archive.data(len - written)?;
        let done = match offset {
            Some(offset) => rustix::io::pwrite(&file, bytes, offset + written),
            None => rustix::io::write(&file, bytes),
        };
        match done {
            Ok(done) => {
                archive.consume(done);
                written += done as u64;
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(failed("write", &entry.path)(error)),
        }
    }
    Ok(written)
}
