//! Was it memory? The kernel counts the processes of a cgroup that it killed for memory.

use std::os::fd::OwnedFd;

/// The counter of one container's cgroup.
pub struct Watch {
    file: OwnedFd,
    before: u64,
}

impl Watch {
    /// `file` is `memory.events` (cgroup v2) or `memory.oom_control` (v1); both have a line `oom_kill <n>`.
    pub fn new(file: OwnedFd) -> Self {
        let before = read(&file).unwrap_or(0);
        Self { file, before }
    }

    /// Whether the kernel has killed anything since.
    pub fn rose(&self) -> bool {
        read(&self.file).is_some_and(|now| now > self.before)
    }
}

fn read(file: &OwnedFd) -> Option<u64> {
    let mut text = [0; 512];
    let length = rustix::io::pread(file, &mut text, 0).ok()?;
    std::str::from_utf8(&text[..length])
        .ok()?
        .lines()
        .find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}
