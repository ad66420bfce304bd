//! Profiles in files: the OCI runtime specification's `linux.seccomp` as JSON.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use oci_spec::runtime::LinuxSeccomp;

use super::SeccompError;

/// The largest profiles in use have some 30 kB.
const LARGEST: u64 = 1 << 20;

/// The bytes of a profile's file.
pub fn read(path: &Path) -> Result<Vec<u8>, SeccompError> {
    let failed = |op| {
        move |source| SeccompError::Read {
            op,
            path: path.to_owned(),
            source,
        }
    };
    // A FIFO in its place must not hang us.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path);
    let file = file.map_err(failed("open"))?;
    if !file.metadata().map_err(failed("stat"))?.is_file() {
        return Err(failed("open")(std::io::Error::new(
            std::io::ErrorKind::InvalidInput,
            "not a regular file",
        )));
    }
    let mut bytes = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(failed("read"))?;
    if bytes.len() as u64 > LARGEST {
        return Err(SeccompError::TooLarge {
            path: path.to_owned(),
            limit: LARGEST,
        });
    }
    Ok(bytes)
}

/// The profile in these bytes of `path`.
pub fn parse(path: &Path, bytes: &[u8]) -> Result<LinuxSeccomp, SeccompError> {
    serde_json::from_slice(bytes).map_err(|source| SeccompError::Parse {
        path: path.to_owned(),
        source,
    })
}
