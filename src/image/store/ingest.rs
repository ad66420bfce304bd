//! One pass over a layer: decompress and hash in the caller's thread, unpack in a second one, publish by rename.

use std::fs;
use std::io::{self, BufRead, Read};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use rustix::fs::{Mode, OFlags};
use sha2::{Digest, Sha256};

use super::decode::Decoder;
use super::layout::Scratch;
use super::record::LayerMeta;
use super::unpack::{Unpacked, unpack};
use super::{Compression, LayerError, LayerInfo, Limits, Store, hex_of};
use crate::image::ImageError;

/// Uncompressed bytes that go from one thread to the other at once, and how many such pieces may wait.
const PIECE: usize = 256 << 10;
const PIECES: usize = 4;

impl Store {
    /// Unpacks one layer and publishes it. Blocks until `reader` is at its end or something failed; `reader` is read
    /// to its end before anything is published, so that its own check of the compressed digest comes first. What
    /// fails leaves nothing behind. A layer that is here already is not read again. It survives a power cut only
    /// once an image with it is recorded.
    ///
    /// # Errors
    /// [`ImageError::Layer`] for everything that is wrong with the layer, [`ImageError::Io`] when the store fails.
    pub fn ingest_layer(
        &self,
        diff_id: &str,
        compression: Compression,
        reader: Box<dyn Read + Send>,
        limits: &Limits,
    ) -> Result<LayerInfo, ImageError> {
        let failed = |source| ImageError::Layer {
            diff_id: diff_id.to_owned(),
            source,
        };
        let hex = hex_of(diff_id).ok_or(LayerError::BadDigest).map_err(failed)?;
        if let Some(layer) = self.has_layer(diff_id) {
            return Ok(layer);
        }
        let scratch = self.layout.scratch()?;
        let root = new_root(&scratch)?;
        let target = root.try_clone().map_err(ImageError::io("open layer", scratch.path()))?;
        let unpacked = stream(hex, compression, reader, limits, target).map_err(failed)?;
        let meta = LayerMeta::new(diff_id, &unpacked);
        meta.write(&scratch, &unpacked.implicit)?;
        crate::fault::blocking_point("pull: layer unpacked")?;
        self.publish_layer(hex, meta, scratch)
    }
}

/// Makes the directory that the layer is unpacked into.
pub(super) fn new_root(scratch: &Scratch) -> Result<OwnedFd, ImageError> {
    let path = scratch.path().join("diff");
    let failed = |op| ImageError::io(op, &path);
    fs::create_dir(&path).map_err(failed("make layer"))?;
    let root = rustix::fs::open(
        &path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|e| failed("open layer")(e.into()))?;
    // A parent with the setgid bit would give its group and its bit to everything below.
    rustix::fs::fchown(&root, Some(rustix::fs::Uid::ROOT), Some(rustix::fs::Gid::ROOT))
        .and_then(|()| rustix::fs::fchmod(&root, Mode::from_raw_mode(0o755)))
        .map_err(|e| failed("set mode of layer")(e.into()))?;
    Ok(root)
}

/// Why the decompressing side stopped.
enum Stop {
    Failed(LayerError),
    /// The unpacking side gave up; it knows why.
    Unwanted,
}

fn stream(
    hex: &str,
    compression: Compression,
    reader: Box<dyn Read + Send>,
    limits: &Limits,
    root: OwnedFd,
) -> Result<Unpacked, LayerError> {
    let (full, arriving) = sync_channel(PIECES);
    let (empty, returned) = channel();
    std::thread::scope(|scope| {
        let unpacker = std::thread::Builder::new()
            .name("unpack".into())
            .spawn_scoped(scope, move || {
                let mut pieces = Pieces {
                    arriving,
                    empty,
                    piece: Vec::new(),
                    at: 0,
                };
                let unpacked = unpack(&mut pieces, root, limits)?;
                // Padding after the archive's end belongs to the digest.
                while let Ok(rest @ 1..) = pieces.fill_buf().map(<[u8]>::len) {
                    pieces.consume(rest);
                }
                Ok(unpacked)
            })
            .map_err(|source| LayerError::Io {
                op: "start thread for",
                entry: "unpacker".into(),
                source,
            })?;
        let decoded = decode(compression, reader, limits, full, returned);
        let unpacked = unpacker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        match decoded {
            Err(Stop::Failed(error)) => Err(error),
            Err(Stop::Unwanted) => Err(unpacked.err().unwrap_or(LayerError::Malformed {
                entry: String::new(),
                reason: "archive ends in the middle",
            })),
            Ok(actual) => match unpacked {
                Ok(_) if actual != hex => Err(LayerError::DiffId {
                    actual: format!("sha256:{actual}"),
                }),
                unpacked => unpacked,
            },
        }
    })
}

/// Decompresses and hashes everything, and hands it over. Returns the digest.
fn decode(
    compression: Compression,
    reader: Box<dyn Read + Send>,
    limits: &Limits,
    full: SyncSender<Vec<u8>>,
    returned: Receiver<Vec<u8>>,
) -> Result<String, Stop> {
    let mut decoder = Decoder::new(reader, compression).map_err(Stop::Failed)?;
    let mut hash = Sha256::new();
    let mut total = 0u64;
    loop {
        let mut piece = returned.try_recv().unwrap_or_default();
        piece.resize(PIECE, 0);
        let filled = decoder.fill(&mut piece).map_err(Stop::Failed)?;
        piece.truncate(filled);
        hash.update(&piece);
        total += filled as u64;
        if total > limits.layer_bytes {
            return Err(Stop::Failed(LayerError::Limit {
                what: "bytes",
                limit: limits.layer_bytes,
            }));
        }
        if total > limits.ratio_from_bytes && total / decoder.compressed_bytes().max(1) > limits.ratio {
            return Err(Stop::Failed(LayerError::Limit {
                what: "bytes per compressed byte",
                limit: limits.ratio,
            }));
        }
        if filled > 0 && full.send(piece).is_err() {
            return Err(Stop::Unwanted);
        }
        if filled < PIECE {
            break;
        }
    }
    decoder.drain().map_err(Stop::Failed)?;
    Ok(format!("{:x}", hash.finalize()))
}

/// The other end of the pieces, as one stream.
struct Pieces {
    arriving: Receiver<Vec<u8>>,
    empty: Sender<Vec<u8>>,
    piece: Vec<u8>,
    at: usize,
}

impl BufRead for Pieces {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.piece.len()
            && let Ok(next) = self.arriving.recv()
        {
            self.at = 0;
            // The decoding side may be gone already; then nobody needs the buffer.
            let _ = self.empty.send(std::mem::replace(&mut self.piece, next));
        }
        Ok(&self.piece[self.at..])
    }

    fn consume(&mut self, bytes: usize) {
        self.at += bytes;
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(buffer)?;
        self.consume(read);
        Ok(read)
    }
}
