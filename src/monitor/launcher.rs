//! Starts monitors.
//!
//! Both programs are read once into sealed memory: every pod runs the same pages, an upgrade of the files changes
//! nothing that runs, and no container's root can write to them through `/proc/<pid>/exe`.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use super::client::{Client, Events, MonitorError, QUICK};
use super::link;
use crate::model::SandboxId;
use crate::sys::memfd;

/// The two programs of a pod, ready to run.
pub struct Launcher {
    monitor: OwnedFd,
    pause: OwnedFd,
}

impl Launcher {
    /// Loads `crisp-monitor` and `crisp-pause` from `dir`.
    pub fn load(dir: &Path) -> Result<Self, MonitorError> {
        let program = |name: &CStr| {
            let path = dir.join(name.to_string_lossy().as_ref());
            memfd::load_program(name, &path).map_err(|source| MonitorError::Io {
                op: "load",
                path,
                source,
            })
        };
        Ok(Self {
            monitor: program(c"crisp-monitor")?,
            pause: program(c"crisp-pause")?,
        })
    }

    /// Starts the monitor of `sandbox_id` on `run_dir`, which exists. It is connected, greeted, and on its own from here
    /// on: that this process ends does not end it, unless it has no pod yet.
    pub async fn spawn(&self, sandbox_id: &SandboxId, run_dir: &Path) -> Result<(Client, Events), MonitorError> {
        let failed = |op| {
            move |source: io::Error| MonitorError::Io {
                op,
                path: run_dir.to_owned(),
                source,
            }
        };
        let directory = std::fs::File::open(run_dir).map_err(failed("open"))?;
        let (ours, theirs) = UnixStream::pair().map_err(failed("make a socket for the monitor in"))?;
        // All that it is given it is given as 0, 1 and 2: that needs no code between fork and exec, so the C library can use
        // vfork, whose cost does not grow with this process. Everything else here is close-on-exec.
        let mut command =
            tokio::process::Command::new(PathBuf::from(format!("/proc/self/fd/{}", self.monitor.as_raw_fd())));
        command
            .arg0("crisp-monitor")
            .arg(sandbox_id.as_str())
            .env_clear()
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::from(OwnedFd::from(directory)))
            .stderr(Stdio::from(
                self.pause.try_clone().map_err(failed("duplicate pause for"))?,
            ));
        let mut child = command.spawn().map_err(failed("start the monitor in"))?;
        drop(command);
        // Nobody needs its exit code, but it must not stay a zombie.
        tokio::spawn(async move { child.wait().await });
        let greeted = tokio::time::timeout(QUICK, link::greet(ours)).await;
        let (client, _, events) = greeted.unwrap_or(Err(MonitorError::Timeout {
            op: "greet",
            deadline: QUICK,
        }))?;
        Ok((client.into(), events))
    }
}
