//! Where an entry goes: directories below the layer's root, and never out of it.
//!
//! A name is taken apart before it is used. Its directories are opened below the root with openat2(2), without
//! symlinks; where there is a symlink, its target is followed by hand as if the layer were `/` (what tar and every
//! other runtime make of such an archive, inside the layer). The last component is then only used with the directory's
//! descriptor, never following it.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::{Unpacker, failed};
use crate::image::store::LayerError;
use crate::image::store::archive::printable;
use crate::sys::open::openat2;

/// What one name, one path and one tree may have; deeper ones exist on no real system and would cost the
/// remover a descriptor a level.
const MAX_NAME: usize = 255;
const MAX_PATH: usize = 4095;
const MAX_DEPTH: usize = 256;
/// As path_resolution(7) has it.
const MAX_SYMLINKS: usize = 40;
/// Directories that are kept open; archives go through trees in order.
const CACHED: usize = 64;

/// A directory of the layer.
#[derive(Clone)]
pub(super) struct Dir {
    pub fd: Rc<OwnedFd>,
    /// From the root, symlinks resolved; empty for the root.
    pub path: Vec<u8>,
}

impl Dir {
    pub(super) fn join(&self, name: &[u8]) -> Vec<u8> {
        if self.path.is_empty() {
            name.to_vec()
        } else {
            [&self.path[..], b"/", name].concat()
        }
    }
}

/// Whether directories on the way are made.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    Make,
    Fail,
}

/// Splits a name into components. Leading slashes, `.` and empty components mean nothing; `..` is refused.
pub(super) fn components(path: &[u8]) -> Result<Vec<&[u8]>, LayerError> {
    let refuse = |reason| LayerError::Refused {
        entry: printable(path),
        reason,
    };
    if path.len() > MAX_PATH {
        return Err(refuse("path is too long"));
    }
    let parts: Vec<&[u8]> = path
        .split(|byte| *byte == b'/')
        .filter(|part| !part.is_empty() && *part != b".")
        .collect();
    for part in &parts {
        if *part == b".." {
            return Err(refuse("path contains .."));
        }
        if part.len() > MAX_NAME {
            return Err(refuse("name is too long"));
        }
        if part.contains(&0) {
            return Err(refuse("name contains NUL"));
        }
    }
    if parts.len() > MAX_DEPTH {
        Err(refuse("path is too deep"))
    } else {
        Ok(parts)
    }
}

impl Unpacker<'_> {
    /// The directory that `parts` name. `entry` is for errors.
    pub(super) fn directory(&mut self, parts: &[&[u8]], missing: Missing, entry: &[u8]) -> Result<Dir, LayerError> {
        if parts.is_empty() {
            return Ok(self.root.clone());
        }
        let key = parts.join(&b'/');
        if let Some(dir) = self.open_dirs.get(&key) {
            return Ok(dir.clone());
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let beneath =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        let dir = match openat2(&*self.root.fd, &key[..], flags, Mode::empty(), beneath) {
            Ok(fd) => Dir {
                fd: Rc::new(fd),
                path: key.clone(),
            },
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => self.walk(parts, missing, entry)?,
            Err(error) => return Err(failed("open directory of", entry)(error)),
        };
        if self.open_dirs.len() >= CACHED {
            self.open_dirs.clear();
        }
        self.open_dirs.insert(key, dir.clone());
        Ok(dir)
    }

    /// Goes down one component at a time, following symlinks inside the layer and making what is missing.
    fn walk(&mut self, parts: &[&[u8]], missing: Missing, entry: &[u8]) -> Result<Dir, LayerError> {
        let refuse = |reason| LayerError::Refused {
            entry: printable(entry),
            reason,
        };
        let mut todo: VecDeque<Vec<u8>> = parts.iter().map(|part| part.to_vec()).collect();
        let mut way: Vec<Dir> = vec![self.root.clone()];
        let mut symlinks = 0;
        while let Some(part) = todo.pop_front() {
            match &part[..] {
                b"" | b"." => continue,
                // Only in a symlink's target; above `/` is `/`.
                b".." => {
                    if way.len() > 1 {
                        way.pop();
                    }
                    continue;
                }
                _ => {}
            }
            let here = way.last().expect("the root is never taken off").clone();
            let path = here.join(&part);
            if way.len() > MAX_DEPTH || path.len() > MAX_PATH || part.len() > MAX_NAME {
                return Err(refuse("path is too deep"));
            }
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let found = match rustix::fs::openat(&*here.fd, &part[..], flags, Mode::empty()) {
                Ok(fd) => Some(fd),
                Err(Errno::NOENT) => None,
                Err(error) => return Err(failed("open directory of", entry)(error)),
            };
            let Some(fd) = found else {
                if missing == Missing::Fail {
                    return Err(refuse("its target is not in this layer"));
                }
                self.make_directory(&here, &part, entry)?;
                way.push(self.reopen(&here, &part, path.clone(), entry)?);
                self.remember_implicit(path)?;
                continue;
            };
            let stat = rustix::fs::fstat(&fd).map_err(failed("stat", entry))?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => way.push(Dir { fd: Rc::new(fd), path }),
                FileType::Symlink => {
                    symlinks += 1;
                    if symlinks > MAX_SYMLINKS {
                        return Err(refuse("too many symlinks on its way"));
                    }
                    let target = rustix::fs::readlinkat(&fd, c"", Vec::new()).map_err(failed("read link of", entry))?;
                    let target = target.to_bytes();
                    if target.starts_with(b"/") {
                        way.truncate(1);
                    }
                    for part in target.split(|byte| *byte == b'/').rev() {
                        todo.push_front(part.to_vec());
                    }
                }
                FileType::CharacterDevice if stat.st_rdev == 0 && missing == Missing::Make => {
                    // A whiteout hides what lower layers have here; what this layer puts here is a new directory.
                    self.clear(&here, &part, entry)?;
                    self.make_directory(&here, &part, entry)?;
                    let dir = self.reopen(&here, &part, path.clone(), entry)?;
                    self.set_opaque(&here, &part, entry)?;
                    way.push(dir);
                    self.remember_implicit(path)?;
                }
                _ => return Err(refuse("something on its way is not a directory")),
            }
        }
        Ok(way.pop().expect("the root is never taken off"))
    }

    fn reopen(&self, here: &Dir, name: &[u8], path: Vec<u8>, entry: &[u8]) -> Result<Dir, LayerError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&*here.fd, name, flags, Mode::empty()).map_err(failed("open directory", entry))?;
        Ok(Dir { fd: Rc::new(fd), path })
    }
}
