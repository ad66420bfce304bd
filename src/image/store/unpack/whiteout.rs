//! Entries that hide what lower layers have.
//!
//! Whiteouts speak of lower layers only; what the same layer puts under the name stays, whichever comes first
//! (image-spec `layer.md`, "Whiteouts"). A directory that was whited out and is made anew must not show what lower
//! layers have in it: it becomes opaque.

use rustix::fs::{AtFlags, FileType, Mode, OFlags, XattrFlags, fsetxattr, makedev, mknodat, openat, statat};
use rustix::io::Errno;

use super::place::{Dir, Missing};
use super::{Unpacker, failed};
use crate::image::store::LayerError;
use crate::image::store::archive::{Entry, printable};

const PREFIX: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// aufs keeps its own affairs under such names.
const AUFS: &[u8] = b".wh..wh.";

impl Unpacker<'_> {
    /// Handles the entry if it is a whiteout and says whether it was.
    pub(super) fn whiteout(&mut self, parents: &[&[u8]], name: &[u8], entry: &Entry) -> Result<bool, LayerError> {
        if parents.iter().any(|parent| parent.starts_with(AUFS)) || (name.starts_with(AUFS) && name != OPAQUE) {
            return Ok(true);
        }
        let Some(hidden) = name.strip_prefix(PREFIX) else {
            return Ok(false);
        };
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(LayerError::Refused {
                entry: printable(&entry.path),
                reason: "whiteout of no name",
            });
        }
        if name == OPAQUE {
            let dir = self.directory(parents, Missing::Make, &entry.path)?;
            // overlayfs does not look for the attribute on a layer's root.
            if dir.path.is_empty() {
                self.made.opaque_root = true;
            } else {
                self.set_opaque(&dir, b".", &entry.path)?;
            }
            return Ok(true);
        }
        let dir = self.directory(parents, Missing::Make, &entry.path)?;
        self.hide(&dir, hidden, &entry.path)?;
        Ok(true)
    }

    fn hide(&mut self, dir: &Dir, name: &[u8], entry: &[u8]) -> Result<(), LayerError> {
        match mknodat(&*dir.fd, name, FileType::CharacterDevice, Mode::empty(), makedev(0, 0)) {
            Ok(()) => self.count(0),
            Err(Errno::EXIST) => {
                let stat = statat(&*dir.fd, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed("stat", entry))?;
                if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                    self.set_opaque(dir, name, entry)?;
                }
                Ok(())
            }
            Err(error) => Err(failed("make whiteout", entry)(error)),
        }
    }

    /// Hides what lower layers have in the directory.
    pub(super) fn set_opaque(&self, dir: &Dir, name: &[u8], entry: &[u8]) -> Result<(), LayerError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(&*dir.fd, name, flags, Mode::empty()).map_err(failed("open directory of", entry))?;
        fsetxattr(&fd, "trusted.overlay.opaque", b"y", XattrFlags::empty()).map_err(failed("make opaque", entry))
    }
}
