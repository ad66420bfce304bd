//! Layers that lean on the ones below.
//!
//! Some tools write `lib/x` into a layer without an entry for `lib`. Unpacked alone the layer gets a directory `lib` of
//! mode 0755, root's; in overlayfs that would change the mode of a `lib` below, or hide a `lib` that is a symlink below,
//! which in a sequential unpacking it would not. So for an image whose lower layers say otherwise, the layer is made
//! anew with hard links: such directories get the attributes they have below, and go where the symlink points.
//! The result is a layer as any other, named by what it was made of; images that need the same share it.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::fd::OwnedFd;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid, XattrFlags, fchmod, fchown,
    fgetxattr, flistxattr, fsetxattr, fstat, futimens, linkat, mkdirat, statat, unlinkat,
};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::archive::printable;
use super::below::{Below, Found, ends, is_opaque};
use super::record::LayerMeta;
use super::unpack::Unpacked;
use super::{LayerError, LayerInfo, Store};
use crate::image::ImageError;
use crate::sys::open::openat2;

impl Store {
    /// For each layer (bottom first) the layer to use in an image of exactly these: itself, or an amended one.
    pub(super) fn amend(&self, layers: &[LayerInfo]) -> Result<Vec<LayerInfo>, ImageError> {
        let mut result = Vec::new();
        let mut below = Below::nothing();
        // Looking is for nothing where no layer leans on another, which is nearly always.
        let mut leaning = 0;
        let mut metas = Vec::new();
        for layer in layers {
            let hex = layer.key();
            let meta = self.lock().layers.get(hex).map(|known| known.meta.clone());
            let meta = meta.expect("it is pinned");
            leaning += usize::from(meta.implicit > 0 && !meta.opaque_root);
            metas.push((hex, meta));
        }
        for (layer, (hex, meta)) in layers.iter().zip(&metas) {
            if leaning == 0 {
                result.push(layer.clone());
                continue;
            }
            let mut used = layer.clone();
            if meta.implicit > 0 && !meta.opaque_root && !below.is_empty() {
                used = self.amend_layer(hex, meta, layer, &below)?;
            }
            leaning -= usize::from(meta.implicit > 0 && !meta.opaque_root);
            let diff = self.layout.layer(used.key()).join("diff");
            below
                .push(&diff, meta.opaque_root)
                .map_err(ImageError::io("open layer", &diff))?;
            result.push(used);
        }
        Ok(result)
    }

    fn amend_layer(
        &self,
        hex: &str,
        meta: &LayerMeta,
        layer: &LayerInfo,
        below: &Below,
    ) -> Result<LayerInfo, ImageError> {
        let dir = self.layout.layer(hex);
        let failed = |op| ImageError::io(op, &dir);
        let implicit = LayerMeta::read_implicit(&dir).map_err(failed("read names of"))?;
        let source = File::open(dir.join("diff")).map_err(failed("open"))?.into();
        let mut map = Map {
            source: &source,
            below,
            implicit: implicit.iter().cloned().collect(),
            known: HashMap::new(),
        };
        let Some(key) = map
            .difference(&meta.diff_id, &implicit)
            .map_err(|e| failed("compare")(e.into()))?
        else {
            return Ok(layer.clone());
        };
        if let Some(done) = self.has_layer(&super::digest_of(&key)) {
            return Ok(done);
        }
        let scratch = self.layout.scratch()?;
        let root = super::ingest::new_root(&scratch)?;
        let mut copy = Copy {
            map,
            root: &root,
            directories: Vec::new(),
            made: 1,
        };
        copy.tree(b"")
            .and_then(|()| copy.finish())
            .map_err(|(path, error)| ImageError::Layer {
                diff_id: meta.diff_id.clone(),
                source: LayerError::Io {
                    op: "put in its place",
                    entry: printable(&path),
                    source: error.into(),
                },
            })?;
        let unpacked = Unpacked {
            // Files are the source's; only directories are new.
            size_bytes: copy.made * 4096,
            inodes: copy.made,
            implicit: Vec::new(),
            opaque_root: false,
            root: meta.root,
        };
        let meta = LayerMeta::new(&meta.diff_id, &unpacked);
        meta.write(&scratch, &[])?;
        self.publish_layer(&key, meta, scratch)
    }
}

/// Where directories of the layer belong over the layers below.
struct Map<'a> {
    source: &'a OwnedFd,
    below: &'a Below,
    implicit: HashSet<Vec<u8>>,
    known: HashMap<Vec<u8>, Place>,
}

#[derive(Clone)]
struct Place {
    path: Vec<u8>,
    /// Whether the directory shows what is below it.
    merges: bool,
}

impl Map<'_> {
    fn place(&mut self, path: &[u8]) -> rustix::io::Result<Place> {
        if path.is_empty() {
            return Ok(Place {
                path: Vec::new(),
                merges: true,
            });
        }
        if let Some(known) = self.known.get(path) {
            return Ok(known.clone());
        }
        let (parent, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(at) => (&path[..at], &path[at + 1..]),
            None => (&b""[..], path),
        };
        let parent = self.place(parent)?;
        let here = join(&parent.path, name);
        let mut place = Place {
            path: here.clone(),
            merges: false,
        };
        if parent.merges {
            let fresh = is_opaque(self.source, path)?;
            match self.below.find(&here)? {
                Found::Directory(_) => place.merges = !fresh,
                Found::Symlink(_) if !fresh && self.implicit.contains(path) => {
                    let target = self.below.resolve(&here)?;
                    place.merges = target.is_empty() || matches!(self.below.find(&target)?, Found::Directory(_));
                    place.path = target;
                }
                _ => {}
            }
        }
        self.known.insert(path.to_vec(), place.clone());
        Ok(place)
    }

    /// The name of the amended layer, or `None` if the layer is right as it is.
    fn difference(&mut self, diff_id: &str, implicit: &[Vec<u8>]) -> rustix::io::Result<Option<String>> {
        let mut hash = Sha256::new_with_prefix(format!("amended 1\0{diff_id}\0"));
        let mut differs = false;
        for path in implicit {
            let stat = match statat(self.source, &path[..], AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => stat,
                // A later entry of the layer replaced it, or something above it.
                Ok(_) | Err(Errno::NOENT | Errno::NOTDIR) => continue,
                Err(error) => return Err(error),
            };
            let place = self.place(path)?;
            let theirs = match self.below.find(&place.path)? {
                Found::Directory(theirs) if place.merges => theirs,
                _ => stat,
            };
            if place.path == *path && owner(&theirs) == owner(&stat) {
                continue;
            }
            differs = true;
            let (mode, uid, gid) = owner(&theirs);
            for part in [&path[..], &place.path, format!("{mode:o} {uid} {gid}").as_bytes()] {
                hash.update((part.len() as u64).to_le_bytes());
                hash.update(part);
            }
        }
        Ok(differs.then(|| format!("{:x}", hash.finalize())))
    }
}

fn owner(stat: &Stat) -> (u32, u32, u32) {
    (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid)
}

fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() {
        name.to_vec()
    } else {
        [dir, b"/", name].concat()
    }
}

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS);

fn open(root: &OwnedFd, path: &[u8]) -> rustix::io::Result<OwnedFd> {
    openat2(
        root,
        if path.is_empty() { b"." } else { path },
        DIRECTORY,
        Mode::empty(),
        BENEATH,
    )
}

/// What failed at which path.
type Failed = (Vec<u8>, Errno);

fn at(path: &[u8]) -> impl FnOnce(Errno) -> Failed {
    move |error| (path.to_vec(), error)
}

/// The amended layer in the making.
struct Copy<'a> {
    map: Map<'a>,
    root: &'a OwnedFd,
    /// Directory of the source, its place, and whether it has an entry of its own.
    directories: Vec<(Vec<u8>, Place, bool)>,
    made: u64,
}

impl Copy<'_> {
    fn tree(&mut self, path: &[u8]) -> Result<(), Failed> {
        let place = self.map.place(path).map_err(at(path))?;
        self.make(&place.path).map_err(at(path))?;
        let own = !self.map.implicit.contains(path);
        self.directories.push((path.to_vec(), place.clone(), own));
        let source = open(self.map.source, path).map_err(at(path))?;
        let mut inner = Vec::new();
        {
            let target = open(self.root, &place.path).map_err(at(path))?;
            for entry in rustix::fs::Dir::read_from(&source).map_err(at(path))? {
                let entry = entry.map_err(at(path))?;
                let name = entry.file_name();
                if matches!(name.to_bytes(), b"." | b"..") {
                    continue;
                }
                let stat = statat(&source, name, AtFlags::SYMLINK_NOFOLLOW).map_err(at(path))?;
                if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                    inner.push(join(path, name.to_bytes()));
                    continue;
                }
                let link = || linkat(&source, name, &target, name, AtFlags::empty());
                let linked = match link() {
                    // Two directories of the layer come together here.
                    Err(Errno::EXIST) => unlinkat(&target, name, AtFlags::empty()).and_then(|()| link()),
                    other => other,
                };
                linked.map_err(at(&join(path, name.to_bytes())))?;
            }
        }
        drop(source);
        for path in inner {
            self.tree(&path)?;
        }
        Ok(())
    }

    /// Makes a directory and those above it. They look as below until they get their own attributes.
    fn make(&mut self, path: &[u8]) -> rustix::io::Result<()> {
        if path.is_empty() {
            return Ok(());
        }
        for end in ends(path) {
            let (above, name) = match path[..end].iter().rposition(|byte| *byte == b'/') {
                Some(at) => (&path[..at], &path[at + 1..end]),
                None => (&b""[..], &path[..end]),
            };
            let dir = open(self.root, above)?;
            match mkdirat(&dir, name, Mode::from_raw_mode(0o755)) {
                Ok(()) => self.made += 1,
                Err(Errno::EXIST) => continue,
                Err(error) => return Err(error),
            }
            let made = open(self.root, &path[..end])?;
            match self.map.below.find(&path[..end])? {
                Found::Directory(theirs) => set(&made, &theirs)?,
                _ => fchmod(&made, Mode::from_raw_mode(0o755))?,
            }
        }
        Ok(())
    }

    /// Gives all directories their attributes, those with entries of their own last.
    fn finish(&self) -> Result<(), Failed> {
        let (own, implicit): (Vec<_>, Vec<_>) = self.directories.iter().partition(|(_, _, own)| *own);
        for (path, place, own) in implicit.into_iter().chain(own) {
            let copy = || -> rustix::io::Result<()> {
                let (from, to) = (open(self.map.source, path)?, open(self.root, &place.path)?);
                let stat = match self.map.below.find(&place.path)? {
                    Found::Directory(theirs) if !own && place.merges => theirs,
                    _ => fstat(&from)?,
                };
                copy_xattrs(&from, &to)?;
                set(&to, &stat)
            };
            copy().map_err(at(path))?;
        }
        Ok(())
    }
}

fn set(dir: &OwnedFd, stat: &Stat) -> rustix::io::Result<()> {
    fchown(dir, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    fchmod(dir, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    let time = Timespec {
        tv_sec: stat.st_mtime,
        tv_nsec: stat.st_mtime_nsec.cast_signed(),
    };
    futimens(
        dir,
        &Timestamps {
            last_access: time,
            last_modification: time,
        },
    )
}

fn copy_xattrs(from: &OwnedFd, to: &OwnedFd) -> rustix::io::Result<()> {
    let mut names = vec![0; 64 << 10];
    let len = match flistxattr(from, &mut names[..]) {
        Err(Errno::OPNOTSUPP) => 0,
        other => other?,
    };
    let mut value = vec![0; 64 << 10];
    for name in names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        // The host's own label is given anew.
        if name == b"security.selinux" {
            continue;
        }
        let len = fgetxattr(from, name, &mut value[..])?;
        fsetxattr(to, name, &value[..len], XattrFlags::empty())?;
    }
    Ok(())
}
