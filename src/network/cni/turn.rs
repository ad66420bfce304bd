//! One plugin at a time per pod, even across a crash of the daemon.
//!
//! A plugin outlives a daemon that is killed: an ADD that is still running would hand out an address after the
//! successor's DEL. So a plugin's standard input is a file whose lock it shares; DEL waits until that lock is free.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::model::SandboxId;
use crate::network::NetworkError;

const POLL: Duration = Duration::from_millis(20);
/// How long a predecessor's plugin is waited for. Something it left running may hold the lock for ever.
const PATIENCE: Duration = Duration::from_secs(20);

/// The right to run plugins for a pod, and the file that they read their configuration from.
pub struct Turn {
    path: PathBuf,
    file: File,
}

impl Turn {
    /// Waits for it.
    pub async fn wait(dir: &Path, sandbox_id: &SandboxId) -> Result<Self, NetworkError> {
        let path = dir.join(sandbox_id);
        let failed = |op, source| NetworkError::File {
            op,
            path: path.clone(),
            source,
        };
        std::fs::create_dir_all(dir).map_err(|e| failed("create the directory of", e))?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|e| failed("open", e))?;
        let began = Instant::now();
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::WOULDBLOCK) if began.elapsed() < PATIENCE => tokio::time::sleep(POLL).await,
                Err(Errno::WOULDBLOCK) => {
                    tracing::warn!(%sandbox_id, "a CNI plugin of an earlier call still runs; going on without waiting");
                    break;
                }
                Err(error) => return Err(failed("lock", error.into())),
            }
        }
        Ok(Self { path, file })
    }

    /// `conf` as a plugin's standard input.
    pub fn input(&mut self, conf: &[u8]) -> io::Result<Stdio> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(conf)?;
        self.file.seek(SeekFrom::Start(0))?;
        Ok(self.file.try_clone()?.into())
    }

    /// No plugin will be run for this pod again.
    pub fn last(self) -> Result<(), NetworkError> {
        match std::fs::remove_file(&self.path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(NetworkError::File {
                op: "remove",
                path: self.path,
                source,
            }),
            _ => Ok(()),
        }
    }
}
