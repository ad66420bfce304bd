//! Every filter is compiled once.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use oci_spec::runtime::LinuxSeccomp;
use sha2::{Digest, Sha256};

use super::super::policy::SeccompSource;
use super::{Filter, SeccompError, compile, profile, runtime_default};

/// What makes a filter what it is.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Key {
    /// The capabilities that matter to the profile.
    RuntimeDefault(u64),
    /// The digest of the file, whose contents may change while containers come and go, and the bounding set, on which its
    /// rules may depend.
    Localhost([u8; 32], u64),
}

/// Filters kept at most; beyond them all are forgotten. A node has a handful.
const MOST: usize = 64;

/// Compiled filters by what they were made from.
#[derive(Default)]
pub struct SeccompCache {
    filters: Mutex<HashMap<Key, Filter>>,
}

impl SeccompCache {
    /// The profile of `source` for a container whose bounding set is `bounding`, for a runtime that compiles it itself. Refused
    /// as [`SeccompCache::compile`] refuses it: what a runtime does not know it may leave out in silence.
    pub fn profile(&self, source: &SeccompSource, bounding: u64) -> Result<LinuxSeccomp, SeccompError> {
        self.compile(source, bounding)?;
        match source {
            SeccompSource::RuntimeDefault => Ok(runtime_default::profile(bounding)),
            SeccompSource::Localhost(path) => profile::parse(path, &profile::read(path)?, bounding),
        }
    }

    /// The filter of `source` for a container whose bounding set is `bounding`. Reads the profile's file each time;
    /// compiling takes milliseconds of CPU.
    pub fn compile(&self, source: &SeccompSource, bounding: u64) -> Result<Filter, SeccompError> {
        let (key, file) = match source {
            SeccompSource::RuntimeDefault => (
                Key::RuntimeDefault(bounding & runtime_default::relevant_capabilities()),
                None,
            ),
            SeccompSource::Localhost(path) => {
                let bytes = profile::read(path)?;
                (
                    Key::Localhost(Sha256::digest(&bytes).into(), bounding),
                    Some((path, bytes)),
                )
            }
        };
        if let Some(filter) = self.filters.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(filter.clone());
        }
        let profile = match &file {
            None => runtime_default::profile(bounding),
            Some((path, bytes)) => profile::parse(path, bytes, bounding)?,
        };
        let filter = compile::compile(&profile)?;
        let mut filters = self.filters.lock().unwrap_or_else(PoisonError::into_inner);
        if filters.len() >= MOST {
            filters.clear();
        }
        filters.insert(key, filter.clone());
        Ok(filter)
    }
}
