//! What an image's lower layers show together, without mounting them: as overlayfs would merge them.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat, fgetxattr, fstat, readlinkat};
use rustix::io::Errno;

use crate::sys::open::openat2;

/// As path_resolution(7) has it.
const MAX_SYMLINKS: usize = 40;

/// Some layers, the top one first.
pub(super) struct Below(Vec<OwnedFd>);

/// What a path names in all of them together.
pub(super) enum Found {
    Nothing,
    Directory(Stat),
    Symlink(Vec<u8>),
    Other,
}

const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS);

/// Where each directory on the way ends in `path`, and `path` itself.
pub(super) fn ends(path: &[u8]) -> impl Iterator<Item = usize> {
    let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
    slashes.map(|(at, _)| at).chain([path.len()])
}

impl Below {
    pub(super) fn nothing() -> Self {
        Self(Vec::new())
    }

    /// Puts the layer in `diff` on top; if it hides all others, they are forgotten.
    pub(super) fn push(&mut self, diff: &Path, hides_all: bool) -> std::io::Result<()> {
        let layer = OwnedFd::from(File::open(diff)?);
        if hides_all {
            self.0.clear();
        }
        self.0.insert(0, layer);
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Looks a path up; symlinks are not followed, neither on the way nor at its end.
    pub(super) fn find(&self, path: &[u8]) -> rustix::io::Result<Found> {
        let mut visible: Vec<&OwnedFd> = self.0.iter().collect();
        let mut found = Found::Nothing;
        for end in ends(path) {
            let mut deeper = Vec::new();
            found = Found::Nothing;
            for layer in visible {
                let fd = match openat2(layer, &path[..end], FLAGS, Mode::empty(), BENEATH) {
                    Ok(fd) => fd,
                    Err(Errno::NOENT) => continue,
                    Err(error) => return Err(error),
                };
                let stat = fstat(&fd)?;
                let kind = FileType::from_raw_mode(stat.st_mode);
                if kind == FileType::Directory {
                    if deeper.is_empty() {
                        found = Found::Directory(stat);
                    }
                    deeper.push(layer);
                    if is_opaque(layer, &path[..end])? {
                        break;
                    }
                    continue;
                }
                // Below it nothing shows: a whiteout, or something that hides what lower layers have.
                let is_whiteout = kind == FileType::CharacterDevice && stat.st_rdev == 0;
                if deeper.is_empty() && !is_whiteout {
                    found = match kind {
                        FileType::Symlink => Found::Symlink(readlinkat(&fd, c"", Vec::new())?.into_bytes()),
                        _ => Found::Other,
                    };
                }
                break;
            }
            visible = deeper;
            if visible.is_empty() {
                return Ok(if end == path.len() { found } else { Found::Nothing });
            }
        }
        Ok(found)
    }

    /// Follows all symlinks on the way and at the end, as if the layers were `/`. What is missing keeps its name.
    pub(super) fn resolve(&self, path: &[u8]) -> rustix::io::Result<Vec<u8>> {
        let mut todo: Vec<Vec<u8>> = path.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec).collect();
        let mut way: Vec<Vec<u8>> = Vec::new();
        let mut symlinks = 0;
        while let Some(part) = todo.pop() {
            match &part[..] {
                b"" | b"." => continue,
                b".." => {
                    way.pop();
                    continue;
                }
                _ => way.push(part),
            }
            if let Found::Symlink(target) = self.find(&way.join(&b'/'))? {
                symlinks += 1;
                if symlinks > MAX_SYMLINKS {
                    return Err(Errno::LOOP);
                }
                way.pop();
                if target.starts_with(b"/") {
                    way.clear();
                }
                todo.extend(target.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec));
            }
        }
        Ok(way.join(&b'/'))
    }
}

const FLAGS: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Whether the directory hides what lower layers have in it.
pub(super) fn is_opaque(layer: &OwnedFd, path: &[u8]) -> rustix::io::Result<bool> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = openat2(layer, path, flags, Mode::empty(), BENEATH)?;
    let mut value = [0; 8];
    match fgetxattr(&fd, "trusted.overlay.opaque", &mut value[..]) {
        Ok(len) => Ok(value[..len] == *b"y"),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
        Err(error) => Err(error),
    }
}
