//! A mount namespace of the daemon's own in which mounts can be attached for a moment (mount_namespaces(7)).
//!
//! Until Linux 6.15 an overlay takes no layer, and open_tree(2) no path, of a mount that is attached nowhere. Here
//! they are attached where nobody sees them, and where there is nothing else: what is made costs the same on a node
//! with ten mounts and with a thousand.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, mkdirat, open};
use rustix::mount::{MountPropagationFlags, mount_change};

use super::{failed, mount, process};

/// What the short-lived threads here do needs little; the default of 2 MiB costs page tables.
const STACK_BYTES: usize = 256 << 10;

/// An almost empty mount namespace. It ends with this value.
pub struct MountNamespace(OwnedFd);

impl MountNamespace {
    /// A directory to attach something to.
    pub const FIRST: &str = "/first";
    /// Another one.
    pub const SECOND: &str = "/second";

    /// Makes it.
    pub fn create() -> io::Result<Self> {
        on_a_thread(|| {
            process::unshare(libc::CLONE_NEWNS)?;
            let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            mount_change("/", private).map_err(|e| failed("make mounts private", e))?;
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            let namespace = open("/proc/thread-self/ns/mnt", flags, Mode::empty())
                .map_err(|e| failed("open the mount namespace", e))?;
            let root = mount::tmpfs(1 << 20, 0o755)?;
            for place in [Self::FIRST, Self::SECOND] {
                mkdirat(&root, &place[1..], Mode::RWXU).map_err(|e| failed("mkdir", e))?;
            }
            mount::attach(&root, CWD, Path::new("/proc"))?;
            mount::pivot(root)?;
            Ok(Self(namespace))
        })
    }

    /// Runs `work` on a thread of its own in a copy of the namespace. What `work` attaches there goes with the
    /// thread, which nobody waits for.
    pub fn run_in_copy<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        on_a_thread(|| {
            // A thread that shares its root directory with others may not enter.
            process::unshare(libc::CLONE_FS)?;
            process::enter(self.0.as_fd(), libc::CLONE_NEWNS)?;
            process::unshare(libc::CLONE_NEWNS)?;
            work()
        })
    }
}

fn on_a_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("mounts".into())
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, work)?;
        thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_attached_there_is_seen_by_nobody_and_does_not_stay() {
        let seen = || {
            std::fs::read_to_string("/proc/self/mountinfo")
                .unwrap()
                .contains(" /first ")
        };
        let namespace = MountNamespace::create().unwrap();
        for _ in 0..2 {
            let marked = mount::tmpfs(1 << 20, 0o700).unwrap();
            std::fs::write(
                format!("/proc/self/fd/{}/mark", std::os::fd::AsRawFd::as_raw_fd(&marked)),
                "",
            )
            .unwrap();
            let clone = namespace.run_in_copy(|| {
                let mark = Path::new(MountNamespace::FIRST).join("mark");
                assert!(!mark.exists(), "an earlier mount stayed");
                mount::attach(&marked, CWD, Path::new(MountNamespace::FIRST))?;
                assert!(mark.exists());
                mount::clone_tree(Path::new(MountNamespace::FIRST), false)
            });
            assert!(!seen());
            drop(clone.unwrap());
        }
    }
}
