//! Cgroups of a test's own, and processes in them.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crisp::sys::cgroup::{Cgroup, Hierarchy};

/// A cgroup `/crisp-test-<pid>-<name>` with what is below it; gone when dropped.
pub struct Tree {
    pub hierarchy: Arc<Hierarchy>,
    pub top: Cgroup,
}

impl Tree {
    pub fn new(name: &str) -> Self {
        let hierarchy = Hierarchy::detect().expect("cgroups are mounted");
        let path = format!("/crisp-test-{}-{name}", std::process::id());
        let top = Cgroup::create(&hierarchy, &path).expect("needs root");
        Self { hierarchy, top }
    }

    pub fn create(&self, name: &str) -> Cgroup {
        Cgroup::create(&self.hierarchy, &format!("{}/{name}", self.top.path())).unwrap()
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let left = self.top.kill();
        let removed = self.top.remove();
        if !std::thread::panicking() {
            assert_eq!(left.unwrap(), Vec::<i32>::new());
            removed.unwrap();
            assert!(!self.top.exists());
        }
    }
}

/// A shell that joins `cgroup` by itself, through the files it is handed, before it runs `script`.
pub fn shell_in(cgroup: &Cgroup, script: &str) -> Child {
    shell_joining(cgroup.procs_fds().unwrap(), script)
}

/// A shell that writes itself to each of `fds` before it runs `script`.
pub fn shell_joining(fds: Vec<OwnedFd>, script: &str) -> Child {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]).stdin(Stdio::null()).stderr(Stdio::null());
    // SAFETY: between fork and exec only write(2) is called; the fds live until after spawn.
    unsafe {
        command.pre_exec(move || {
            for fd in &fds {
                if libc::write(fd.as_raw_fd(), b"0".as_ptr().cast(), 1) != 1 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    command.spawn().unwrap()
}

pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
