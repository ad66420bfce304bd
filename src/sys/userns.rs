//! User namespaces, and network namespaces that belong to them, made by a program that has many threads
//! (user_namespaces(7)).
//!
//! unshare(2) makes no user namespace for one thread of several. So there is a process for a moment: it shares this
//! one's memory, which spares the copy of the page tables, and does nothing but hold what it was born with until
//! that is open here.

use std::ffi::{c_int, c_void};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use super::failed;

/// The ids of a user namespace: `0..count` inside are `first..first + count` outside, users and groups alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    pub first: u32,
    pub count: u32,
}

impl IdRange {
    /// What the id `outside` is called inside, if it is one of these.
    pub fn inside(self, outside: u32) -> Option<u32> {
        outside.checked_sub(self.first).filter(|id| *id < self.count)
    }
}

/// New namespaces. They end with their last process, mount and open descriptor.
#[derive(Debug)]
pub struct Namespaces {
    pub user: OwnedFd,
    /// A network namespace that belongs to `user`.
    pub network: Option<OwnedFd>,
}

/// Makes a user namespace with the ids `ids`, and a network namespace that it owns if `network`.
pub fn create(ids: IdRange, network: bool) -> io::Result<Namespaces> {
    let holder = Holder::start(network)?;
    for file in ["uid_map", "gid_map"] {
        let map = format!("0 {} {}\n", ids.first, ids.count);
        std::fs::write(holder.path(file), &map).map_err(|e| failed(&format!("write {map:?} to {file}"), e))?;
    }
    let open = |kind: &str| {
        let file = File::open(holder.path(kind)).map_err(|e| failed(&format!("open {kind} of a new namespace"), e))?;
        io::Result::Ok(OwnedFd::from(file))
    };
    Ok(Namespaces {
        user: open("ns/user")?,
        network: network.then(|| open("ns/net")).transpose()?,
    })
}

/// A process that waits to be killed. Killed and reaped when dropped; before that it may use its stack.
struct Holder {
    pid: i32,
    /// Of a type that is aligned as a stack is.
    _stack: Box<[u128]>,
}

const STACK_WORDS: usize = (16 << 10) / size_of::<u128>();

impl Holder {
    fn start(network: bool) -> io::Result<Self> {
        let mut stack = vec![0_u128; STACK_WORDS].into_boxed_slice();
        let flags = libc::CLONE_VM | libc::CLONE_NEWUSER | if network { libc::CLONE_NEWNET } else { 0 };
        let blocked = Blocked::all();
        // SAFETY: `hold` gets a stack of its own, which lives until the process is reaped, and calls nothing but the
        // kernel: it touches no other memory, not even errno, for none of its calls fails. No handler of this program
        // can run in it: it is born with every signal blocked.
        let pid = unsafe {
            libc::clone(
                hold,
                stack.as_mut_ptr_range().end.cast(),
                flags,
                std::process::id() as usize as *mut c_void,
            )
        };
        let error = io::Error::last_os_error();
        drop(blocked);
        if pid < 0 {
            return Err(failed("make a user namespace", error));
        }
        Ok(Self { pid, _stack: stack })
    }

    fn path(&self, file: &str) -> String {
        format!("/proc/{}/{file}", self.pid)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // SAFETY: the process is this one's child and not reaped yet, so the number is its own; no status is asked for.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            while libc::waitpid(self.pid, std::ptr::null_mut(), libc::__WALL) < 0
                && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
            {}
        }
    }
}

/// The holder: waits for ever, but not longer than its parent lives.
extern "C" fn hold(parent: *mut c_void) -> c_int {
    // SAFETY: numbers and null pointers only.
    unsafe {
        libc::syscall(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
        // A parent that died before the line above sends no signal.
        while libc::syscall(libc::SYS_getppid) == parent as usize as libc::c_long {
            libc::syscall(libc::SYS_ppoll, 0, 0, 0, 0, 0);
        }
    }
    0
}

/// While this lives, the calling thread takes no signal.
struct Blocked(libc::sigset_t);

impl Blocked {
    fn all() -> Self {
        // SAFETY: both sets live across the calls, the first is initialised by sigfillset, the second by the last call.
        unsafe {
            let (mut all, mut before) = (std::mem::zeroed(), std::mem::zeroed());
            libc::sigfillset(&raw mut all);
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
            Self(before)
        }
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        // SAFETY: the set is what the kernel gave; the present one is not asked for.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, std::ptr::null_mut()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    const IDS: IdRange = IdRange {
        first: 100_000,
        count: 65_536,
    };

    fn children() -> usize {
        std::fs::read_to_string("/proc/thread-self/children")
            .unwrap()
            .split_whitespace()
            .count()
    }

    #[test]
    fn namespaces_are_made_and_their_maker_is_gone() {
        let before = children();
        let made = create(IDS, true).unwrap();
        assert_eq!(children(), before, "the process that held them remains");
        let of = |fd: &OwnedFd| std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap();
        assert_ne!(of(&made.user), std::fs::read_link("/proc/self/ns/user").unwrap());
        let network = made.network.unwrap();
        assert_ne!(of(&network), std::fs::read_link("/proc/self/ns/net").unwrap());
        // SAFETY: NS_GET_USERNS takes no argument and returns a new descriptor.
        let owner = unsafe { std::os::fd::FromRawFd::from_raw_fd(libc::ioctl(network.as_raw_fd(), 0xb701)) };
        assert_eq!(
            of(&owner),
            of(&made.user),
            "the network belongs to another user namespace"
        );
        assert!(create(IDS, false).unwrap().network.is_none());
    }

    /// Story: the daemon is killed while the process that holds the namespaces lives. It must not stay for ever.
    #[test]
    fn the_process_that_holds_them_does_not_outlive_its_parent() {
        let parent = || {
            let holder = Holder::start(true).unwrap();
            let waits = || std::fs::read_to_string(holder.path("stat")).unwrap().contains(") S ");
            while !waits() {
                std::thread::yield_now();
            }
            holder
        };
        let holder = std::thread::spawn(parent).join().unwrap();
        let mut status = 0;
        // SAFETY: the process is this one's child and not reaped yet; `status` lives across the call.
        let ended = unsafe { libc::waitpid(holder.pid, &raw mut status, libc::__WALL) };
        assert_eq!(ended, holder.pid);
        assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGKILL);
        // It is reaped: its number may be another's by now.
        std::mem::forget(holder);
    }

    #[test]
    fn ids_that_cannot_be_are_refused_by_the_kernel_and_told() {
        let none = IdRange { first: 1, count: 0 };
        let told = create(none, false).unwrap_err().to_string();
        assert!(told.contains("uid_map") && told.contains("0 1 0"), "{told}");
    }

    #[test]
    fn an_id_outside_has_one_inside_within_the_range() {
        assert_eq!(IDS.inside(100_000), Some(0));
        assert_eq!(IDS.inside(165_535), Some(65_535));
        assert_eq!(IDS.inside(165_536), None);
        assert_eq!(IDS.inside(0), None);
    }
}
