//! The store against archives made by hand. Needs root: it makes devices, owners and mounts.

mod faithful;
mod hostile;
mod images;
mod lifecycle;
mod merged;
mod streams;
mod tape;

use std::io::{Cursor, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use self::tape::{Tape, digest};
use super::{Compression, LayerError, LayerInfo, Limits, Store};
use crate::image::{ImageConfig, ImageError};

/// A store in a directory of its own.
struct Place {
    dir: TempDir,
    store: Arc<Store>,
}

impl Place {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let store = open(dir.path());
        Self { dir, store }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("images")
    }

    fn ingest(&self, archive: &[u8]) -> Result<LayerInfo, ImageError> {
        self.store
            .ingest_layer(&digest(archive), Compression::None, reader(archive), &Limits::default())
    }

    /// Unpacks what must be good and says where it is.
    fn unpack(&self, tape: Tape) -> (LayerInfo, PathBuf) {
        let layer = self.ingest(&tape.end()).unwrap_or_else(|e| panic!("{}", chain(&e)));
        let diff = self.path().join("layers").join(&layer.diff_id[7..]).join("diff");
        (layer, diff)
    }

    /// Unpacks what must be refused, checks that nothing is left, and says why.
    fn refuse(&self, tape: Tape) -> LayerError {
        self.refuse_bytes(&tape.end(), &Limits::default())
    }

    fn refuse_bytes(&self, archive: &[u8], limits: &Limits) -> LayerError {
        let result = self
            .store
            .ingest_layer(&digest(archive), Compression::None, reader(archive), limits);
        self.assert_nothing_left();
        match result {
            Err(ImageError::Layer { source, .. }) => source,
            other => panic!("not refused: {other:?}"),
        }
    }

    fn assert_nothing_left(&self) {
        self.wait_for_trash();
        assert_eq!(names(&self.path().join("layers")), [""; 0]);
        assert_eq!(self.store.usage(), (0, 0));
    }

    fn wait_for_trash(&self) {
        wait_for_trash(&self.path());
    }

    /// Ends the store and opens it anew.
    fn reopen(&mut self) {
        self.store = open(self.dir.path());
    }
}

fn open(dir: &Path) -> Arc<Store> {
    Store::open(&ImageConfig::new(dir.join("images"))).unwrap()
}

/// What is removed is unlinked in the background.
fn wait_for_trash(images: &Path) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !names(&images.join("trash")).is_empty() {
        assert!(Instant::now() < deadline, "the trash stays full");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn reader(bytes: &[u8]) -> Box<dyn Read + Send> {
    Box::new(Cursor::new(bytes.to_vec()))
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}

fn is_whiteout(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    let meta = std::fs::symlink_metadata(path).unwrap();
    meta.file_type().is_char_device() && meta.rdev() == 0
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 256];
    let len = rustix::fs::lgetxattr(path, name, &mut value[..]).ok()?;
    value.truncate(len);
    Some(value)
}
