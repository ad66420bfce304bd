//! Finds the configuration in force: looked at anew whenever it is needed, by names, inodes, sizes and times. A watch
//! would lose sight of a directory that is replaced (P27 of the pains: every runtime that watches has that bug).

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::conflist::ConfList;
use crate::network::NetworkError;

/// No configuration comes near this.
const CONF_BYTES: u64 = 1 << 20;
const FILES: usize = 1024;

/// A valid configuration.
#[derive(Debug, PartialEq)]
pub struct Found {
    pub path: PathBuf,
    pub text: String,
    pub list: ConfList,
}

/// What the directory holds.
#[derive(Clone, Debug)]
pub enum Discovery {
    /// The lexically first valid configuration.
    Found(Arc<Found>),
    /// There are configurations, none of which is valid: the first, and what is wrong with it.
    Broken { path: PathBuf, reason: String },
    /// There is none.
    Nothing,
}

#[derive(PartialEq)]
struct Mark {
    path: PathBuf,
    identity: Option<(u64, u64, u64, i64, i64, i64, i64)>,
}

/// The configuration directory.
pub struct Directory {
    path: PathBuf,
    seen: Mutex<Option<(Vec<Mark>, Discovery)>>,
}

impl Directory {
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            seen: Mutex::new(None),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is in force now. Files are read again only if one of them has changed.
    pub fn look(&self) -> Result<Discovery, NetworkError> {
        let marks = self.marks().map_err(|source| NetworkError::File {
            op: "read",
            path: self.path.clone(),
            source,
        })?;
        let mut seen = self.seen.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some((before, discovery)) = &*seen
            && *before == marks
        {
            return Ok(discovery.clone());
        }
        let discovery = discover(&marks);
        match &discovery {
            Discovery::Found(found) => {
                tracing::info!(path = %found.path.display(), network = %found.list.name, "CNI configuration in force");
            }
            Discovery::Broken { path, reason } => {
                tracing::warn!(path = %path.display(), %reason, "no CNI configuration is valid");
            }
            Discovery::Nothing => tracing::info!(path = %self.path.display(), "no CNI configuration"),
        }
        *seen = Some((marks, discovery.clone()));
        Ok(discovery)
    }

    /// The files that may be configurations, in their order. A directory that is not there is empty.
    fn marks(&self) -> io::Result<Vec<Mark>> {
        let entries = match std::fs::read_dir(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        let mut marks = Vec::new();
        for entry in entries.take(FILES) {
            let path = entry?.path();
            if !path
                .extension()
                .is_some_and(|e| e == "conflist" || e == "conf" || e == "json")
            {
                continue;
            }
            let identity = std::fs::metadata(&path).ok().map(|m| {
                (
                    m.dev(),
                    m.ino(),
                    m.size(),
                    m.mtime(),
                    m.mtime_nsec(),
                    m.ctime(),
                    m.ctime_nsec(),
                )
            });
            marks.push(Mark { path, identity });
        }
        marks.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(marks)
    }
}

fn discover(marks: &[Mark]) -> Discovery {
    let mut broken = None;
    for Mark { path, .. } in marks {
        let parsed = read(path)
            .map_err(|e| e.to_string())
            .and_then(|text| Ok((ConfList::parse(&text)?, text)));
        match parsed {
            Ok((list, text)) => {
                return Discovery::Found(Arc::new(Found {
                    path: path.clone(),
                    text,
                    list,
                }));
            }
            Err(reason) => {
                tracing::warn!(path = %path.display(), %reason, "not a usable CNI configuration");
                broken.get_or_insert((path, reason));
            }
        }
    }
    match broken {
        Some((path, reason)) => Discovery::Broken {
            path: path.clone(),
            reason,
        },
        None => Discovery::Nothing,
    }
}

fn read(path: &Path) -> io::Result<String> {
    // not blocking: a FIFO of that name must not stop the daemon
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() > CONF_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "not a regular file of at most 1 MiB",
        ));
    }
    let mut text = String::new();
    file.take(CONF_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(discovery: &Discovery) -> String {
        match discovery {
            Discovery::Found(found) => found.list.name.clone(),
            Discovery::Broken { path, .. } => format!("broken {}", path.file_name().unwrap().display()),
            Discovery::Nothing => "nothing".into(),
        }
    }

    /// Symptom elsewhere: after the directory was removed and made again, or a file renamed into place, the runtime
    /// stayed "not ready" until it was restarted. Cause: a watch on the old inode.
    #[test]
    fn every_change_is_seen_however_it_is_made() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("net.d");
        let directory = Directory::new(dir.clone());
        let sees = |expected: &str| assert_eq!(name(&directory.look().unwrap()), expected);
        let conf = |name: &str| format!(r#"{{"name":"{name}","type":"bridge"}}"#);
        sees("nothing");
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("notes.txt"), "x").unwrap();
        sees("nothing");
        std::fs::write(dir.join("20-b.conf"), conf("b")).unwrap();
        sees("b");
        std::fs::write(dir.join("10-a.conflist"), "{").unwrap();
        sees("b");
        std::fs::write(dir.join("10-a.conflist"), conf("a")).unwrap();
        sees("a");
        std::fs::remove_dir_all(&dir).unwrap();
        sees("nothing");
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(parent.path().join("new"), conf("c")).unwrap();
        std::fs::rename(parent.path().join("new"), dir.join("10-a.conflist")).unwrap();
        sees("c");
        std::fs::write(dir.join("10-a.conflist"), "garbage").unwrap();
        sees("broken 10-a.conflist");
        nix::unistd::mkfifo(&dir.join("05.conf"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        sees("broken 05.conf");
    }
}
