//! Reading and writing the kernel's cgroup files; an error names the file, and the value when one was written.

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::path::Path;

pub(super) fn failed(op: impl std::fmt::Display, path: &Path, source: io::Error) -> io::Error {
    io::Error::new(source.kind(), format!("{op} {}: {source}", path.display()))
}

/// As [`failed`], of what says ENODEV only of a cgroup that is being removed: that is `NotFound` too.
pub(super) fn failed_below(op: impl std::fmt::Display, path: &Path, source: io::Error) -> io::Error {
    match source.raw_os_error() {
        Some(libc::ENODEV) => failed(op, path, io::ErrorKind::NotFound.into()),
        _ => failed(op, path, source),
    }
}

/// Whether the kernel says by this that a cgroup, or a file of one, is gone. Of one that is being removed it shows the
/// directory and files a moment longer, and answers ENODEV: to opening, reading and writing them, and to mkdir(2).
/// Not to be asked of a write that names a device, whose absence is ENODEV too.
pub(super) fn is_gone(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}

pub(super) fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

pub(super) fn unsupported(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, what)
}

/// One write(2) of `value`: the kernel takes each write as one request.
pub(super) fn write(path: &Path, value: &str) -> io::Result<()> {
    write_raw(path, value).map_err(|e| name_write(path, value, e))
}

/// As [`write`] of one value after the other.
pub(super) fn write_each(path: &Path, values: &[String]) -> io::Result<()> {
    let open = OpenOptions::new().write(true).open(path);
    let mut file = open.map_err(|e| name_write(path, &values.join(", "), e))?;
    values
        .iter()
        .try_for_each(|value| file.write_all(value.as_bytes()).map_err(|e| name_write(path, value, e)))
}

/// As [`write`], with the kernel's bare error for callers that look at its number.
pub(super) fn write_raw(path: &Path, value: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}

/// Names a failed write. A missing file in a cgroup that exists means a controller that is not enabled there, which
/// must not be mistaken for a cgroup that is gone.
pub(super) fn name_write(path: &Path, value: &str, source: io::Error) -> io::Error {
    if source.kind() == io::ErrorKind::NotFound && path.parent().is_some_and(Path::is_dir) {
        return unsupported(format!(
            "write {value:?} to {}: the cgroup has no such file",
            path.display()
        ));
    }
    failed(format_args!("write {value:?} to"), path, source)
}

/// `NotFound` also for a file of a cgroup that is being removed, whose directory may be seen a moment longer.
pub(super) fn read(path: &Path) -> io::Result<String> {
    read_raw(path).map_err(|e| failed_below("read", path, e))
}

fn read_raw(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    OpenOptions::new().read(true).open(path)?.read_to_string(&mut text)?;
    Ok(text)
}

/// A file that holds one number; `max` and `-1` read as none.
pub(super) fn read_number(path: &Path) -> io::Result<Option<u64>> {
    Ok(super::parse::number(read(path)?.as_bytes()))
}

/// The names of the directories in `dir`: the cgroups below it. Empty when `dir` is gone.
pub(super) fn children(dir: &Path) -> io::Result<Vec<std::path::PathBuf>> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if is_gone(&e) => return Ok(Vec::new()),
        Err(e) => return Err(failed("list", dir, e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        match entry {
            Ok(entry) if entry.file_type().is_ok_and(|kind| kind.is_dir()) => found.push(entry.path()),
            Ok(_) => {}
            Err(e) if is_gone(&e) => break,
            Err(e) => return Err(failed("list", dir, e)),
        }
    }
    Ok(found)
}
