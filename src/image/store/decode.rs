//! Compressed bytes in, archive bytes out.

use std::io::{self, BufReader, Chain, Cursor, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use flate2::bufread::MultiGzDecoder;

use super::{Compression, LayerError};

/// Bytes read from the source at once.
const BUFFER: usize = 256 << 10;

/// The biggest window that a zstd frame may ask memory for, as a power of two: 128 MiB, the zstd tool's own limit.
const ZSTD_WINDOW_LOG: u32 = 27;

/// What happens to the source below the decoder.
#[derive(Default)]
struct Meter {
    bytes: AtomicU64,
    failure: Mutex<Option<io::Error>>,
}

struct Source {
    reader: Box<dyn Read + Send>,
    meter: Arc<Meter>,
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.reader.read(buffer) {
            Ok(read) => {
                self.meter.bytes.fetch_add(read as u64, Ordering::Relaxed);
                Ok(read)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                // Kept apart: the decoder must not make a broken archive of a broken connection.
                let shown = io::Error::from(error.kind());
                *self.meter.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                Err(shown)
            }
        }
    }
}

type Input = BufReader<Chain<Cursor<Vec<u8>>, Source>>;

enum Format {
    Gzip(Box<MultiGzDecoder<Input>>),
    Zstd(zstd::stream::read::Decoder<'static, Input>),
    Plain(Input),
}

/// The archive inside a compressed layer.
pub(super) struct Decoder {
    format: Format,
    meter: Arc<Meter>,
}

impl Decoder {
    /// Looks at the first bytes and makes the decoder for them: registries hold layers under wrong media types, and
    /// what comes out is checked against the diff id. `declared` counts where there are no such bytes.
    pub(super) fn new(reader: Box<dyn Read + Send>, declared: Compression) -> Result<Self, LayerError> {
        let meter = Arc::new(Meter::default());
        let mut source = Source {
            reader,
            meter: meter.clone(),
        };
        let mut head = Vec::new();
        source
            .by_ref()
            .take(4)
            .read_to_end(&mut head)
            .map_err(|e| meter.blame(e))?;
        let compression = match head[..] {
            [0x1f, 0x8b, ..] => Compression::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd] => Compression::Zstd,
            // A skippable frame: only tools that make zstd write them.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18] => Compression::Zstd,
            // Cut off before it began: the declared format says how.
            [] | [_] | [_, _] | [_, _, _] => declared,
            _ => Compression::None,
        };
        let input = BufReader::with_capacity(BUFFER, Cursor::new(head).chain(source));
        let format = match compression {
            Compression::Gzip => Format::Gzip(Box::new(MultiGzDecoder::new(input))),
            Compression::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(input).map_err(|e| meter.blame(e))?;
                decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(|e| meter.blame(e))?;
                Format::Zstd(decoder)
            }
            Compression::None => Format::Plain(input),
        };
        Ok(Self { format, meter })
    }

    /// Fills `buffer` as far as there is something. Less than its length means the end.
    pub(super) fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, LayerError> {
        let mut filled = 0;
        while filled < buffer.len() {
            let rest = &mut buffer[filled..];
            let read = match &mut self.format {
                Format::Gzip(decoder) => decoder.read(rest),
                Format::Zstd(decoder) => decoder.read(rest),
                Format::Plain(input) => input.read(rest),
            };
            match read {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.meter.blame(error)),
            }
        }
        Ok(filled)
    }

    /// Compressed bytes read so far.
    pub(super) fn compressed_bytes(&self) -> u64 {
        self.meter.bytes.load(Ordering::Relaxed)
    }

    /// Reads the source to its end, so that whoever checks its digest there does.
    pub(super) fn drain(self) -> Result<(), LayerError> {
        let mut input = match self.format {
            Format::Gzip(decoder) => decoder.into_inner(),
            Format::Zstd(decoder) => decoder.finish(),
            Format::Plain(input) => input,
        };
        io::copy(&mut input, &mut io::sink())
            .map(drop)
            .map_err(|e| self.meter.blame(e))
    }
}

impl Meter {
    /// Whether it was the source or the format.
    fn blame(&self, error: io::Error) -> LayerError {
        match self.failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(source) => LayerError::Read { source },
            None => LayerError::Decompress { source: error },
        }
    }
}
