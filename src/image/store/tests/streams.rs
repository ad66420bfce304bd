//! Compression, digests, and streams that end too early.

use std::fs;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::tape::{Tape, digest, gzip, zstd};
use super::{Compression, LayerError, Limits, Place, reader};
use crate::image::{ErrorKind, ImageError};

fn archive() -> Vec<u8> {
    let noise: Vec<u8> = (0..3_000_000u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    Tape::new().dir("d").file("d/noise", noise).file("d/small", "x").end()
}

fn layer_error(result: Result<super::LayerInfo, ImageError>) -> LayerError {
    match result {
        Err(ImageError::Layer { source, .. }) => source,
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_compression_under_every_media_type() {
    let archive = archive();
    let (front, back) = archive.split_at(archive.len() / 2);
    let streams = [
        archive.clone(),
        gzip(&archive),
        zstd(&archive),
        // Several members or frames in one stream, as parallel compressors write them.
        [gzip(front), gzip(back)].concat(),
        [zstd(front), zstd(back)].concat(),
        [b"\x50\x2a\x4d\x18\x03\0\0\0abc".to_vec(), zstd(&archive)].concat(),
    ];
    for bytes in &streams {
        for declared in [Compression::None, Compression::Gzip, Compression::Zstd] {
            let place = Place::new();
            let layer = place
                .store
                .ingest_layer(&digest(&archive), declared, reader(bytes), &Limits::default())
                .unwrap();
            assert_eq!(layer.inodes, 4);
            assert_eq!(layer.size_bytes, 4096 * (1 + 1 + 733 + 1));
            assert_eq!(place.store.usage(), (layer.size_bytes, layer.inodes));
        }
    }
}

#[test]
fn another_diff_id_is_refused_and_named() {
    let place = Place::new();
    let bytes = archive();
    let result = place.store.ingest_layer(
        &digest(b"other"),
        Compression::Gzip,
        reader(&gzip(&bytes)),
        &Limits::default(),
    );
    let error = layer_error(result);
    assert!(matches!(&error, LayerError::DiffId { actual } if *actual == digest(&bytes)));
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    place.assert_nothing_left();
    for malformed in [
        "",
        "sha256:",
        "sha256:../../x",
        "sha512:00",
        &digest(b"x").to_uppercase(),
    ] {
        let result = place
            .store
            .ingest_layer(malformed, Compression::None, reader(&bytes), &Limits::default());
        assert!(matches!(layer_error(result), LayerError::BadDigest));
    }
}

#[test]
fn streams_that_end_too_early_leave_nothing() {
    let archive = archive();
    for (compression, bytes) in [
        (Compression::Gzip, gzip(&archive)),
        (Compression::Zstd, zstd(&archive)),
        (Compression::None, archive.clone()),
    ] {
        for len in [0, 2, 100, bytes.len() / 2, bytes.len() - 1030] {
            let place = Place::new();
            let result = place.store.ingest_layer(
                &digest(&archive),
                compression,
                reader(&bytes[..len]),
                &Limits::default(),
            );
            assert_eq!(
                layer_error(result).kind(),
                ErrorKind::Corrupt,
                "{compression:?} cut at {len}"
            );
            place.assert_nothing_left();
        }
    }
    let mut garbled = gzip(&archive);
    let middle = garbled.len() / 2;
    garbled[middle] ^= 0x55;
    let place = Place::new();
    let result = place.store.ingest_layer(
        &digest(&archive),
        Compression::Gzip,
        reader(&garbled),
        &Limits::default(),
    );
    assert_eq!(layer_error(result).kind(), ErrorKind::Corrupt);
    place.assert_nothing_left();
}

/// Fails after some bytes, as a connection does, or at the end, as a reader that checks a digest.
struct Failing {
    bytes: Vec<u8>,
    at: usize,
}

impl Read for Failing {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = buffer.len().min(1000).min(self.bytes.len() - self.at);
        if len == 0 {
            return Err(io::Error::other("digest of the compressed layer is wrong"));
        }
        buffer[..len].copy_from_slice(&self.bytes[self.at..self.at + len]);
        self.at += len;
        Ok(len)
    }
}

#[test]
fn the_callers_own_error_comes_back_and_nothing_is_published() {
    let archive = archive();
    let whole = gzip(&archive);
    for bytes in [&whole[..], &whole[..whole.len() / 2], &[]] {
        let place = Place::new();
        let failing = Box::new(Failing {
            bytes: bytes.to_vec(),
            at: 0,
        });
        let error = layer_error(place.store.ingest_layer(
            &digest(&archive),
            Compression::Gzip,
            failing,
            &Limits::default(),
        ));
        assert!(
            super::chain(&error).ends_with("digest of the compressed layer is wrong"),
            "{error:?}"
        );
        assert!(matches!(error, LayerError::Read { .. }));
        place.assert_nothing_left();
    }
}

#[test]
fn the_reader_is_read_to_its_end_before_anything_is_published() {
    struct Watched {
        inner: Box<dyn Read + Send>,
        layers: std::path::PathBuf,
        ended: Arc<AtomicBool>,
    }
    impl Read for Watched {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let read = self.inner.read(buffer)?;
            if read == 0 {
                assert!(super::names(&self.layers).iter().all(|name| name.starts_with("tmp-")));
                self.ended.store(true, Ordering::Relaxed);
            }
            Ok(read)
        }
    }
    let archive = [archive(), vec![0; 1 << 20]].concat();
    for (compression, bytes) in [
        (Compression::Gzip, gzip(&archive)),
        (Compression::Zstd, zstd(&archive)),
        (Compression::None, archive.clone()),
    ] {
        let place = Place::new();
        let ended = Arc::new(AtomicBool::new(false));
        let watched = Watched {
            inner: reader(&bytes),
            layers: place.path().join("layers"),
            ended: ended.clone(),
        };
        place
            .store
            .ingest_layer(&digest(&archive), compression, Box::new(watched), &Limits::default())
            .unwrap();
        assert!(ended.load(Ordering::Relaxed));
    }
}

#[test]
fn a_refused_entry_stops_the_reading() {
    struct Endless(Vec<u8>, Arc<AtomicUsize>);
    impl Read for Endless {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let at = self.1.load(Ordering::Relaxed);
            assert!(at < 64 << 20, "read on and on");
            let len = if at < self.0.len() {
                buffer.len().min(self.0.len() - at)
            } else {
                buffer.len()
            };
            match self.0.get(at..at + len) {
                Some(bytes) => buffer[..len].copy_from_slice(bytes),
                None => buffer.fill(0),
            }
            self.1.store(at + len, Ordering::Relaxed);
            Ok(len)
        }
    }
    let place = Place::new();
    let hostile = Tape::new().file("../x", "x").0;
    let endless = Endless(hostile, Arc::new(AtomicUsize::new(0)));
    let error = layer_error(place.store.ingest_layer(
        &digest(b""),
        Compression::None,
        Box::new(endless),
        &Limits::default(),
    ));
    assert!(matches!(error, LayerError::Refused { .. }));
    place.assert_nothing_left();
}

#[test]
fn the_same_layer_at_once_is_published_once() {
    let place = Place::new();
    let archive = archive();
    let bytes = gzip(&archive);
    let layers: Vec<_> = std::thread::scope(|scope| {
        let unpack = || {
            place
                .store
                .ingest_layer(&digest(&archive), Compression::Gzip, reader(&bytes), &Limits::default())
                .unwrap()
        };
        let threads: Vec<_> = (0..6).map(|_| scope.spawn(unpack)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(super::names(&place.path().join("layers")), [&layers[0].diff_id[7..]]);
    assert_eq!(place.store.usage(), (layers[0].size_bytes, layers[0].inodes));
    place.wait_for_trash();
    // And a layer that is here is not read again.
    let never = Box::new(Failing {
        bytes: Vec::new(),
        at: 0,
    });
    place
        .store
        .ingest_layer(&digest(&archive), Compression::Gzip, never, &Limits::default())
        .unwrap();
    assert_eq!(
        fs::read(
            place
                .path()
                .join("layers")
                .join(&layers[0].diff_id[7..])
                .join("diff/d/small")
        )
        .unwrap(),
        b"x"
    );
}
