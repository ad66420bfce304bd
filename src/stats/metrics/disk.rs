//! Block devices and file systems: their names and sizes.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The file system that writable layers are on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct FileSystem {
    pub(super) device: String,
    pub(super) size_bytes: u64,
    pub(super) inodes: u64,
    pub(super) inodes_free: u64,
}

/// Names of devices, each looked up once a request.
#[derive(Debug, Default)]
pub(super) struct DeviceNames(HashMap<(u32, u32), String>);

impl DeviceNames {
    /// `/dev/<name>`; `major:minor` for what is no block device.
    pub(super) fn of(&mut self, major: u32, minor: u32) -> &str {
        self.0.entry((major, minor)).or_insert_with(|| look_up(major, minor))
    }

    /// The file system that `path` is on; none if there is no telling.
    pub(super) fn file_system(&mut self, path: &Path) -> Option<FileSystem> {
        let number = fs::metadata(path).ok()?.dev();
        let sizes = rustix::fs::statvfs(path).ok()?;
        Some(FileSystem {
            device: self.of(rustix::fs::major(number), rustix::fs::minor(number)).to_owned(),
            size_bytes: sizes.f_blocks.saturating_mul(sizes.f_frsize),
            inodes: sizes.f_files,
            inodes_free: sizes.f_ffree,
        })
    }
}

fn look_up(major: u32, minor: u32) -> String {
    let number = format!("{major}:{minor}");
    let event = fs::read_to_string(format!("/sys/dev/block/{number}/uevent")).unwrap_or_default();
    let name = event.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    name.map_or(number, |name| format!("/dev/{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_has_a_size_and_what_is_no_device_its_number() {
        let mut names = DeviceNames::default();
        let found = names.file_system(Path::new("/dev/shm")).unwrap();
        assert!(found.size_bytes > 0 && found.inodes >= found.inodes_free, "{found:?}");
        assert!(found.device.contains(':'), "{found:?}");
        assert_eq!(names.of(4_000, 5), "4000:5");
        assert_eq!(names.file_system(Path::new("/no/such/file")), None);
    }
}
