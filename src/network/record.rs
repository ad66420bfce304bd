//! A small file of this instance's own that is read and replaced as a whole.

use std::io;
use std::path::{Path, PathBuf};

use super::NetworkError;

#[derive(Debug)]
pub struct RecordFile(PathBuf);

impl RecordFile {
    pub fn new(path: PathBuf) -> Self {
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Reads it; `None` if there is none.
    pub fn read(&self) -> Result<Option<Vec<u8>>, NetworkError> {
        match std::fs::read(&self.0) {
            Ok(content) => Ok(Some(content)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.failed("read", error)),
        }
    }

    /// Replaces it: a daemon that dies meanwhile leaves the old one or the new one.
    pub fn write(&self, content: &[u8]) -> Result<(), NetworkError> {
        let new = self.0.with_extension("new");
        std::fs::write(&new, content)
            .and_then(|()| std::fs::rename(&new, &self.0))
            .map_err(|error| self.failed("write", error))
    }

    fn failed(&self, op: &'static str, source: io::Error) -> NetworkError {
        NetworkError::File {
            op,
            path: self.0.clone(),
            source,
        }
    }
}
