//! Reads tar archives as a stream: v7, ustar, GNU and pax.
//!
//! It trusts nothing: sizes of what goes to memory are capped, numbers are checked before they are used, and a name is
//! given out as it stands; whether it may be used is the unpacker's question.
//!
//! Sources: POSIX.1-2024 `pax` (ustar and pax interchange formats), GNU tar manual appendix D (sparse formats),
//! OCI image-spec `layer.md`.

mod header;
mod pax;
mod sparse;

use std::io::{self, BufRead};

use self::header::Header;
use self::pax::Overrides;
pub(in crate::image::store) use self::sparse::Extent;
use super::LayerError;

/// Headers and data are padded to this.
const BLOCK: usize = 512;

/// The most bytes of all extended headers and long names before one entry; everything in them goes to memory.
const MAX_EXTENSION: u64 = 1 << 20;

/// What an entry makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

/// One entry, with everything that its headers say.
#[derive(Debug)]
pub(super) struct Entry {
    pub path: Vec<u8>,
    pub kind: Kind,
    /// Target of a symlink or hard link.
    pub link: Vec<u8>,
    /// Permission bits with setuid, setgid, sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds since the epoch, and nanoseconds on top.
    pub mtime: (i64, u32),
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Bytes of the file, holes counted.
    pub size: u64,
    /// Where the stored bytes belong, for a file with holes.
    pub extents: Option<Vec<Extent>>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Bytes of a name for an error message: printable, not too long.
pub(super) fn printable(path: &[u8]) -> String {
    let cut = &path[..path.len().min(200)];
    cut.escape_ascii().to_string() + if cut.len() < path.len() { "..." } else { "" }
}

/// An archive that is being read.
pub(super) struct Archive<R> {
    reader: R,
    /// Stored bytes of the current entry that were not read yet.
    remaining: u64,
    padding: u64,
    /// Headers that may still come.
    headers_left: u64,
    /// Name of the current entry, for errors.
    current: Vec<u8>,
}

impl<R: BufRead> Archive<R> {
    /// Reads an archive of `max_headers` header blocks at most.
    pub(super) fn new(reader: R, max_headers: u64) -> Self {
        Self {
            reader,
            remaining: 0,
            padding: 0,
            headers_left: max_headers,
            current: Vec::new(),
        }
    }

    fn malformed(&self, reason: &'static str) -> LayerError {
        LayerError::Malformed {
            entry: printable(&self.current),
            reason,
        }
    }

    /// The next entry, or `None` at the end of the archive. What was left of the one before is skipped.
    pub(super) fn next_entry(&mut self) -> Result<Option<Entry>, LayerError> {
        let mut overrides = Overrides::default();
        let mut long_path = None;
        let mut long_link = None;
        let mut room = MAX_EXTENSION;
        loop {
            self.skip_data()?;
            let Some(block) = self.header_block()? else {
                return Ok(None);
            };
            let header = Header::new(&block).map_err(|reason| self.malformed(reason))?;
            self.current = header.path();
            let kind = header.kind();
            let size = header.size().map_err(|reason| self.malformed(reason))?;
            let size = u64::try_from(size).map_err(|_| self.malformed("size is negative"))?;
            match kind {
                b'x' | b'X' => {
                    let records = self.extension(size, &mut room)?;
                    overrides.read(&records).map_err(|reason| self.malformed(reason))?;
                }
                // Defaults for all that follows; nobody who makes layers uses them but for comments.
                b'g' => drop(self.extension(size, &mut room)?),
                b'L' => long_path = Some(self.long_name(size, &mut room)?),
                b'K' => long_link = Some(self.long_name(size, &mut room)?),
                _ => {
                    return self
                        .entry(&header, kind, size, overrides, long_path, long_link)
                        .map(Some);
                }
            }
        }
    }

    fn entry(
        &mut self,
        header: &Header<'_>,
        kind: u8,
        size: u64,
        overrides: Overrides,
        long_path: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Entry, LayerError> {
        let sparse = overrides.sparse;
        let mut path = overrides.path.or(long_path).unwrap_or_else(|| header.path());
        if let Some(name) = sparse.name {
            path = name;
        }
        self.current.clone_from(&path);
        let link = overrides.link.or(long_link).unwrap_or_else(|| header.link());
        let directory_by_name = path.ends_with(b"/");
        let made = match kind {
            b'\0' if directory_by_name => Kind::Directory,
            b'\0' | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            _ => {
                return Err(LayerError::Refused {
                    entry: printable(&path),
                    reason: "unknown type of entry",
                });
            }
        };
        let fail = |reason| LayerError::Malformed {
            entry: printable(&path),
            reason,
        };
        // Only files have data; what others say in the size field is a size elsewhere.
        let stored = if made == Kind::File {
            overrides.size.unwrap_or(size)
        } else {
            0
        };
        self.remaining = stored;
        self.padding = stored.next_multiple_of(BLOCK as u64) - stored;

        let mut real_size = stored;
        let mut extents = None;
        if kind == b'S' {
            let (map, size) = self.old_gnu_map(header)?;
            (extents, real_size) = (Some(map), size);
        } else if made == Kind::File && (sparse.major, sparse.minor) == (Some(1), Some(0)) {
            real_size = sparse.real_size.ok_or_else(|| fail("sparse file without its size"))?;
            extents = Some(sparse::pax_1_0(|| self.map_block(), fail)?);
        } else if made == Kind::File && sparse.has_map {
            real_size = sparse.real_size.ok_or_else(|| fail("sparse file without its size"))?;
            extents = Some(sparse.map);
        }
        if let Some(map) = &extents {
            sparse::check(map, self.remaining, real_size).map_err(fail)?;
        }

        let id = |number: i64| match u32::try_from(number) {
            // -1 means "leave as it is" to chown(2).
            Ok(u32::MAX) | Err(_) => Err(fail("owner is out of range")),
            Ok(id) => Ok(id),
        };
        let uid = id(overrides.uid.map_or_else(|| header.uid(), Ok).map_err(fail)?)?;
        let gid = id(overrides.gid.map_or_else(|| header.gid(), Ok).map_err(fail)?)?;
        let mode = header.mode().map_err(fail)?;
        let mode = u32::try_from(mode & 0o7777).map_err(|_| fail("mode is out of range"))?;
        let mtime = overrides
            .mtime
            .map_or_else(|| header.mtime().map(|s| (s, 0)), Ok)
            .map_err(fail)?;
        let device = match made {
            Kind::CharDevice | Kind::BlockDevice => match header.device().map_err(fail)? {
                (major @ 0..=0xfff, minor @ 0..=0xf_ffff) => (
                    u32::try_from(major).expect("12 bits fit"),
                    u32::try_from(minor).expect("20 bits fit"),
                ),
                _ => return Err(fail("device number is out of range")),
            },
            _ => (0, 0),
        };
        let xattrs = overrides.xattrs.into_iter().collect();
        Ok(Entry {
            path,
            kind: made,
            link,
            mode,
            uid,
            gid,
            mtime,
            device,
            size: real_size,
            extents,
            xattrs,
        })
    }

    /// Gives out the next stored bytes of the current entry, at most `limit`; none when they are at their end.
    pub(super) fn data(&mut self, limit: u64) -> Result<&[u8], LayerError> {
        let wanted = self.remaining.min(limit);
        if wanted == 0 {
            return Ok(&[]);
        }
        let entry = &self.current;
        let bytes = fill(&mut self.reader).map_err(|_| cut(entry))?;
        if bytes.is_empty() {
            return Err(cut(entry));
        }
        Ok(&bytes[..bytes.len().min(usize::try_from(wanted).unwrap_or(usize::MAX))])
    }

    /// Says that so many of the bytes last given out are done with.
    pub(super) fn consume(&mut self, bytes: usize) {
        self.reader.consume(bytes);
        self.remaining -= bytes as u64;
    }

    fn skip_data(&mut self) -> Result<(), LayerError> {
        self.remaining += std::mem::take(&mut self.padding);
        while self.remaining > 0 {
            let skipped = self.data(u64::MAX)?.len();
            self.consume(skipped);
        }
        Ok(())
    }

    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, LayerError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            let bytes = fill(&mut self.reader).map_err(|_| cut(&self.current))?;
            if bytes.is_empty() {
                return if filled == 0 { Ok(None) } else { Err(cut(&self.current)) };
            }
            let taken = bytes.len().min(BLOCK - filled);
            block[filled..filled + taken].copy_from_slice(&bytes[..taken]);
            self.reader.consume(taken);
            filled += taken;
        }
        Ok(Some(block))
    }

    /// The next header, or `None` at the end: two blocks of zeros, or no more blocks.
    fn header_block(&mut self) -> Result<Option<[u8; BLOCK]>, LayerError> {
        let Some(block) = self.block()? else { return Ok(None) };
        if block != [0; BLOCK] {
            self.headers_left = self
                .headers_left
                .checked_sub(1)
                .ok_or_else(|| self.malformed("too many headers"))?;
            return Ok(Some(block));
        }
        match self.block()? {
            Some(second) if second != [0; BLOCK] => Err(self.malformed("entry after a block of zeros")),
            _ => Ok(None),
        }
    }

    /// What stands in an extension, which takes up some of its entry's `room`.
    fn extension(&mut self, size: u64, room: &mut u64) -> Result<Vec<u8>, LayerError> {
        *room = room
            .checked_sub(size)
            .ok_or_else(|| self.malformed("extended headers of one entry are too big"))?;
        self.remaining = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        let mut text = Vec::new();
        loop {
            let bytes = self.data(u64::MAX)?;
            if bytes.is_empty() {
                return Ok(text);
            }
            let taken = bytes.len();
            text.extend_from_slice(bytes);
            self.consume(taken);
        }
    }

    fn long_name(&mut self, size: u64, room: &mut u64) -> Result<Vec<u8>, LayerError> {
        let name = self.extension(size, room)?;
        Ok(header::until_nul(&name).to_vec())
    }

    /// A block of stored data that is part of a sparse map.
    fn map_block(&mut self) -> Result<[u8; BLOCK], LayerError> {
        if self.remaining < BLOCK as u64 {
            return Err(self.malformed("sparse map is cut off"));
        }
        self.remaining -= BLOCK as u64;
        self.block()?.ok_or_else(|| cut(&self.current))
    }

    /// The map of an old GNU sparse file and its size; more of the map may follow the header.
    fn old_gnu_map(&mut self, header: &Header<'_>) -> Result<(Vec<Extent>, u64), LayerError> {
        let (pairs, mut more, real_size) = header.sparse();
        let mut map = Vec::new();
        let real_size = header::number(real_size)
            .and_then(|size| u64::try_from(size).map_err(|_| "size is negative"))
            .and_then(|size| sparse::old_gnu(pairs, &mut map).map(|()| size))
            .map_err(|reason| self.malformed(reason))?;
        while more {
            let block = self.block()?.ok_or_else(|| cut(&self.current))?;
            sparse::old_gnu(&block[..504], &mut map).map_err(|reason| self.malformed(reason))?;
            more = block[504] != 0;
        }
        Ok((map, real_size))
    }
}

/// Reads on after an interrupted call.
fn fill(reader: &mut impl BufRead) -> io::Result<&[u8]> {
    // Asked twice, since the borrow of a first answer would last to the end: the second call finds the buffer full.
    while let Err(error) = reader.fill_buf() {
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    reader.fill_buf()
}

fn cut(entry: &[u8]) -> LayerError {
    LayerError::Malformed {
        entry: printable(entry),
        reason: "archive ends in the middle",
    }
}
