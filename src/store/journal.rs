//! A record and what became of it, in one file: what was asked for is the first line, and each status is one more. A file
//! is made once, by one inode: a status that came by rename would cost another each time, and file systems find those slowly
//! where many were removed of late.
//!
//! Lines are whole or do not count. Each status begins with a line feed of its own, so that what a full disk or the death of
//! the daemon left of an earlier one does not become part of it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::record::Versioned;

/// Above this size, in bytes, the statuses that count no more are left out.
const COMPACT_ABOVE: u64 = 256 << 10;

/// Makes the file at `path` with `record`. Until all of it is written there is none.
pub fn begin<R: Serialize>(path: &Path, record: &R) -> io::Result<()> {
    let mut text = serde_json::to_vec(&Versioned::new(record))?;
    text.push(b'\n');
    File::create(path)?.write_all(&text)
}

/// Adds a status to the file at `path`, which there must be.
pub fn add<S: Serialize>(path: &Path, status: &S) -> io::Result<()> {
    let mut text = vec![b'\n'];
    serde_json::to_writer(&mut text, &Versioned::new(status))?;
    text.push(b'\n');
    let mut file = OpenOptions::new().append(true).open(path)?;
    if file.metadata()?.len() > COMPACT_ABOVE {
        return compact(path, &text);
    }
    file.write_all(&text)
}

fn compact(path: &Path, status: &[u8]) -> io::Result<()> {
    let text = fs::read(path)?;
    let (record, _) = lines(&text).ok_or(io::ErrorKind::InvalidData)?;
    let unfinished = path.with_extension("new");
    let mut file = File::create(&unfinished)?;
    file.write_all(record)?;
    file.write_all(b"\n")?;
    file.write_all(status)?;
    fs::rename(&unfinished, path)
}

/// The record at `path` and its last status. `None`: there is no file, or no record in it yet.
pub fn read<R: DeserializeOwned, S: DeserializeOwned>(path: &Path) -> io::Result<Option<(R, Option<S>)>> {
    let text = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read?,
    };
    let Some((record, status)) = lines(&text) else {
        return Ok(None);
    };
    Ok(Some((parse(record)?, status.map(parse).transpose()?)))
}

/// The first and the last whole line of `text`.
fn lines(text: &[u8]) -> Option<(&[u8], Option<&[u8]>)> {
    let end = text.iter().rposition(|byte| *byte == b'\n')?;
    let mut whole = text[..end].split(|byte| *byte == b'\n');
    Some((whole.next()?, whole.rfind(|line| !line.is_empty())))
}

fn parse<T: DeserializeOwned>(line: &[u8]) -> io::Result<T> {
    let versioned: Versioned<T> = serde_json::from_slice(line)?;
    versioned.into_current()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(path: &Path) -> Option<(String, Option<u32>)> {
        read(path).unwrap()
    }

    #[test]
    fn the_last_status_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        assert_eq!(written(&path), None);
        assert!(add(&path, &1).is_err());
        begin(&path, &"asked for").unwrap();
        assert_eq!(written(&path), Some(("asked for".to_owned(), None)));
        for status in [1, 2] {
            add(&path, &status).unwrap();
            assert_eq!(written(&path), Some(("asked for".to_owned(), Some(status))));
        }
    }

    #[test]
    fn what_was_cut_short_does_not_count_wherever_it_was_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        begin(&path, &"asked for").unwrap();
        let begun = fs::read(&path).unwrap();
        add(&path, &12).unwrap();
        let first = fs::read(&path).unwrap();
        add(&path, &34).unwrap();
        let second = fs::read(&path).unwrap();
        for length in 0..second.len() {
            fs::write(&path, &second[..length]).unwrap();
            let status = match length {
                _ if length < begun.len() => None,
                _ if length < first.len() => Some(None),
                _ => Some(Some(12)),
            };
            assert_eq!(
                written(&path),
                status.map(|status| ("asked for".to_owned(), status)),
                "{length}"
            );
            if status.is_some() {
                add(&path, &56).unwrap();
                assert_eq!(
                    written(&path),
                    Some(("asked for".to_owned(), Some(56))),
                    "after {length}"
                );
            }
        }
    }

    #[test]
    fn many_statuses_do_not_fill_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        begin(&path, &"asked for").unwrap();
        for status in 0..20_000 {
            add(&path, &status).unwrap();
        }
        assert_eq!(written(&path), Some(("asked for".to_owned(), Some(19_999))));
        assert!(fs::metadata(&path).unwrap().len() <= COMPACT_ABOVE + 100);
    }

    #[test]
    fn what_is_no_record_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        fs::write(&path, "\0\0\0\n").unwrap();
        assert!(read::<String, u32>(&path).is_err());
    }
}
