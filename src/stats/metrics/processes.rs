//! What proc(5) tells of a container's processes: open files, sockets, limits.

use std::fs;
use std::io;
use std::path::Path;

/// Of all processes of a container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct OpenFiles {
    pub(super) descriptors: u64,
    pub(super) sockets: u64,
}

/// Counts. A process that ends meanwhile is left out.
pub(super) fn open_files(pids: &[i32]) -> OpenFiles {
    let mut found = OpenFiles::default();
    for pid in pids {
        if let Ok(of_one) = open_files_of(*pid) {
            found.descriptors += of_one.descriptors;
            found.sockets += of_one.sockets;
        }
    }
    found
}

fn open_files_of(pid: i32) -> io::Result<OpenFiles> {
    let mut found = OpenFiles::default();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let target = fs::read_link(entry?.path());
        found.descriptors += 1;
        found.sockets += u64::from(target.is_ok_and(|target| is_socket(&target)));
    }
    Ok(found)
}

fn is_socket(target: &Path) -> bool {
    target.as_os_str().as_encoded_bytes().starts_with(b"socket:")
}

/// The soft limit of open files of a process; none if it is unlimited or the process is gone.
pub(super) fn max_open_files(pid: i32) -> Option<u64> {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    soft_limit(&limits, "Max open files")
}

/// `Max open files            1024                 524288               files`
fn soft_limit(limits: &str, name: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_and_the_limits_of_this_process_are_found() {
        let own = i32::try_from(std::process::id()).unwrap();
        let before = open_files(&[own]);
        let _socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let held: Vec<_> = (0..50).map(|_| fs::File::open("/dev/null").unwrap()).collect();
        let after = open_files(&[own]);
        // Other tests open and close files of this process, too.
        assert!(after.descriptors >= 50 && after.sockets >= 1, "{before:?} {after:?}");
        drop(held);
        assert!(max_open_files(own).is_some());
        assert_eq!(open_files(&[i32::MAX]), OpenFiles::default());
    }

    #[test]
    fn an_unlimited_limit_is_none() {
        let text = "Max processes             unlimited            unlimited            processes\n";
        assert_eq!(soft_limit(text, "Max processes"), None);
        assert_eq!(
            soft_limit(
                "Max open files            1024                 4096   files",
                "Max open files"
            ),
            Some(1024)
        );
    }
}
