//! The image's /etc/passwd and /etc/group: files that anybody may have written.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use super::super::error::SpecError;
use crate::sys::mount::open_in_root;

/// More than any directory service's dump; beyond it the file is there to do harm.
const LARGEST_FILE: u64 = 8 << 20;

/// A line of passwd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passwd {
    pub name: Vec<u8>,
    pub uid: u32,
    pub gid: u32,
    pub home: Vec<u8>,
}

/// Both files' contents; empty where there is no file.
pub struct Accounts {
    passwd: Vec<u8>,
    group: Vec<u8>,
}

impl Accounts {
    /// Reads both files as the container would see them.
    pub fn read(rootfs: BorrowedFd<'_>) -> Result<Self, SpecError> {
        Ok(Self {
            passwd: read(rootfs, "/etc/passwd")?,
            group: read(rootfs, "/etc/group")?,
        })
    }

    /// The first user with this number.
    pub fn by_uid(&self, uid: u32) -> Option<Passwd> {
        self.users().find(|user| user.uid == uid)
    }

    /// The first user with this name.
    pub fn by_name(&self, name: &str) -> Option<Passwd> {
        self.users().find(|user| user.name == name.as_bytes())
    }

    /// The number of the first group with this name.
    pub fn group(&self, name: &str) -> Option<u32> {
        self.groups()
            .find(|(group, _, _)| *group == name.as_bytes())
            .map(|(_, gid, _)| gid)
    }

    /// The groups that have this user among their members.
    pub fn groups_of(&self, user: &[u8]) -> Vec<u32> {
        let is_member = |members: &[u8]| members.split(|b| *b == b',').any(|member| member == user);
        self.groups()
            .filter(|(_, _, members)| is_member(members))
            .map(|(_, gid, _)| gid)
            .collect()
    }

    fn users(&self) -> impl Iterator<Item = Passwd> + '_ {
        lines(&self.passwd).filter_map(|line| {
            let mut fields = line.split(|b| *b == b':');
            let name = fields.next()?.to_vec();
            let uid = number(fields.nth(1)?)?;
            let gid = number(fields.next()?)?;
            let home = fields.nth(1).unwrap_or_default().to_vec();
            (!name.is_empty()).then_some(Passwd { name, uid, gid, home })
        })
    }

    fn groups(&self) -> impl Iterator<Item = (&[u8], u32, &[u8])> {
        lines(&self.group).filter_map(|line| {
            let mut fields = line.split(|b| *b == b':');
            let name = fields.next()?;
            let gid = number(fields.nth(1)?)?;
            Some((name, gid, fields.next().unwrap_or_default()))
        })
    }
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|b| *b == b'\n')
        .map(|line| line.trim_ascii())
        .filter(|line| !line.starts_with(b"#"))
}

/// A number as ids may be; a line with any other number is not a line.
fn number(text: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(text)
        .ok()
        .filter(|text| text.bytes().all(|b| b.is_ascii_digit()))?;
    text.parse::<u32>()
        .ok()
        .filter(|id| i64::from(*id) <= super::LARGEST_ID)
}

/// The file's contents; nothing where the path leads nowhere. It is looked at before it is opened: opening a device
/// node of an image can have effects on the host, and a FIFO hangs.
fn read(rootfs: BorrowedFd<'_>, path: &'static str) -> Result<Vec<u8>, SpecError> {
    let failed = |source| SpecError::Read { path, source };
    let place = match open_in_root(rootfs, Path::new(path), OFlags::PATH, Mode::empty()) {
        Ok(fd) => File::from(fd),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(source) => return Err(failed(source)),
    };
    let metadata = place.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(failed(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        )));
    }
    let file = File::open(format!("/proc/self/fd/{}", place.as_raw_fd())).map_err(failed)?;
    let mut contents = Vec::new();
    file.take(LARGEST_FILE + 1).read_to_end(&mut contents).map_err(failed)?;
    let size = (contents.len() as u64).max(metadata.len());
    if size > LARGEST_FILE {
        return Err(SpecError::TooLarge {
            what: path,
            size,
            limit: LARGEST_FILE,
        });
    }
    Ok(contents)
}
