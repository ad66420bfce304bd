//! A pod to try things on: a busybox root, a monitor of its own, all gone when it is dropped.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use crisp::model::{ContainerId, SandboxId};
use crisp::monitor::client::{
    Client, ContainerFds, ContainerSpec, Event, Events, ExecFds, ExecSpec, Policy, SandboxFds, SandboxSpec,
};
use crisp::monitor::protocol::{Exit, Process};
use crisp::monitor::{Launcher, MonitorError};
use crisp::sys::mount;

/// Builds the two programs, once for all tests.
pub fn programs() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    BUILT
        .get_or_init(|| {
            assert!(rustix::process::geteuid().is_root(), "these tests need root");
            let done = std::process::Command::new(package.join("hack/build"))
                .arg("--only-pod")
                .status();
            assert!(done.expect("hack/build runs").success(), "hack/build failed");
            let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| package.join("target"), PathBuf::from);
            target.join("bin")
        })
        .clone()
}

/// A different 64-digit id each time.
pub fn new_id() -> String {
    let bytes: [u8; 32] = rand::random();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub struct Pod {
    pub dir: tempfile::TempDir,
    pub client: Client,
    pub events: Events,
    pub pause: Process,
    pub monitor_pid: i32,
}

/// A sandbox as kubelet makes most of them, but for the network, which is the host's.
pub fn sandbox() -> SandboxSpec {
    SandboxSpec {
        hostname: Some("the-pod".into()),
        new_ipc: true,
        ..SandboxSpec::default()
    }
}

/// The capabilities that containers have unless told otherwise.
pub const USUAL_CAPABILITIES: u64 = 0xa804_25fb;

/// `sh -c script`, as root.
pub fn shell(script: &str) -> Policy {
    Policy {
        args: ["/bin/sh", "-c", script].map(|arg| arg.as_bytes().to_vec()).to_vec(),
        env: vec![b"PATH=/bin".to_vec()],
        bounding: USUAL_CAPABILITIES,
        effective: USUAL_CAPABILITIES,
        permitted: USUAL_CAPABILITIES,
        ..Policy::default()
    }
}

pub fn spec_json() -> serde_json::Value {
    let mount = |to: &str, kind: &str, from: &str, options: &[&str]| serde_json::json!({"destination": to, "type": kind, "source": from, "options": options});
    serde_json::json!({
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs", "readonly": false},
        "mounts": [
            mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount("/dev/shm", "bind", "fd:0", &["rbind"]),
        ],
        "linux": {
            "namespaces": [
                {"type": "pid"}, {"type": "mount"}, {"type": "ipc", "path": "nsfd:ipc"}, {"type": "uts", "path": "nsfd:uts"},
            ],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware", "/proc/scsi"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}

impl Pod {
    pub async fn new() -> Self {
        Self::with(sandbox(), SandboxFds::default()).await
    }

    pub async fn with(spec: SandboxSpec, fds: SandboxFds) -> Self {
        let launcher = Launcher::load(&programs()).expect("the programs load");
        Self::launch(&launcher, spec, fds).await
    }

    pub async fn launch(launcher: &Launcher, spec: SandboxSpec, fds: SandboxFds) -> Self {
        Self::launch_in(Self::prepare(), launcher, spec, fds).await
    }

    /// A directory with a root for containers and a run directory.
    pub fn prepare() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        make_root(&dir.path().join("root"));
        std::fs::create_dir(dir.path().join("run")).unwrap();
        dir
    }

    pub async fn launch_in(dir: tempfile::TempDir, launcher: &Launcher, spec: SandboxSpec, fds: SandboxFds) -> Self {
        let id = SandboxId::new(new_id());
        let (client, events) = launcher
            .spawn(&id, &dir.path().join("run"))
            .await
            .expect("the monitor starts");
        let pause = client.create_sandbox(spec, fds).await.expect("the sandbox is made");
        let monitor_pid = client.monitor_pid();
        Self {
            dir,
            client,
            events,
            pause,
            monitor_pid,
        }
    }

    pub fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    pub fn log_path(&self, container: &ContainerId) -> PathBuf {
        self.dir.path().join(format!("{container}.log"))
    }

    /// A fresh root for a container, and what else it needs.
    pub fn fds(&self, container: &ContainerId) -> ContainerFds {
        let layer = |name: &str| {
            let path = self.dir.path().join(format!("{container}-{name}"));
            std::fs::create_dir_all(&path).unwrap();
            path
        };
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_path(container))
            .unwrap();
        ContainerFds {
            rootfs: mount::overlay(&[self.dir.path().join("root")], &layer("upper"), &layer("work")).unwrap(),
            mounts: vec![mount::tmpfs(1 << 20, 0o1777).unwrap()],
            cgroup_procs: Vec::new(),
            cgroup_dir: None,
            log: Some(log.into()),
            oom_events: None,
            namespaces: Vec::new(),
        }
    }

    pub async fn create(&self, policy: Policy) -> (ContainerId, Process) {
        self.create_as(policy, |_| {}, |_, _| {})
            .await
            .expect("the container is made")
    }

    /// Makes a container after `change` and `equip` have had their way.
    pub async fn create_as(
        &self,
        policy: Policy,
        change: impl FnOnce(&mut ContainerSpec),
        equip: impl FnOnce(&mut serde_json::Value, &mut ContainerFds),
    ) -> Result<(ContainerId, Process), MonitorError> {
        let container = ContainerId::new(new_id());
        let (mut json, mut fds) = (spec_json(), self.fds(&container));
        equip(&mut json, &mut fds);
        let mut spec = ContainerSpec {
            container_id: container.to_string(),
            policy: Some(policy),
            ..ContainerSpec::default()
        };
        spec.spec = serde_json::to_vec(&json).unwrap();
        change(&mut spec);
        let process = self.client.create_container(spec, fds).await?;
        Ok((container, process))
    }

    pub async fn run(&self, policy: Policy) -> ContainerId {
        let (container, _) = self.create(policy).await;
        self.client.start(&container).await.expect("the container starts");
        container
    }

    /// Runs a container to its end and returns how it ended and the lines of its log without their times.
    pub async fn run_to_end(&mut self, policy: Policy) -> (Exit, Vec<String>) {
        let container = self.run(policy).await;
        let exit = self.exit_of(&container).await;
        (exit, self.log_of(&container))
    }

    pub async fn exit_of(&mut self, container: &ContainerId) -> Exit {
        loop {
            match self.event().await {
                Event::Exited { container_id, exit } if container_id == *container => return exit,
                Event::Lost => panic!("the monitor is gone"),
                _ => {}
            }
        }
    }

    pub async fn event(&mut self) -> Event {
        tokio::time::timeout(Duration::from_secs(20), self.events.recv())
            .await
            .expect("in time")
            .expect("an event")
    }

    pub fn log_of(&self, container: &ContainerId) -> Vec<String> {
        let text = std::fs::read(self.log_path(container)).unwrap();
        let text = String::from_utf8_lossy(&text).into_owned();
        text.lines()
            .map(|line| line.split_once(' ').map_or(line, |(_, rest)| rest).to_owned())
            .collect()
    }

    /// Executes `policy` and returns how it ended and what it wrote.
    pub async fn exec(&self, container: &ContainerId, policy: Policy) -> Result<(Exit, String, String), MonitorError> {
        let (out, their_out) = std::io::pipe().unwrap();
        let (err, their_err) = std::io::pipe().unwrap();
        let fds = ExecFds {
            stdin: None,
            stdout: Some(their_out.into()),
            stderr: Some(their_err.into()),
            cgroup_procs: Vec::new(),
            cgroup_dir: None,
        };
        let spec = ExecSpec {
            exec_id: None,
            container_id: container.to_string(),
            policy,
            tty: false,
        };
        let mut exec = self.client.exec(spec, fds).await?;
        let read = |mut pipe: std::io::PipeReader| {
            tokio::task::spawn_blocking(move || std::io::read_to_string(&mut pipe).unwrap())
        };
        let (out, err) = (read(out), read(err));
        let exit = tokio::time::timeout(Duration::from_secs(20), exec.exit())
            .await
            .expect("in time")?;
        Ok((exit, out.await.unwrap(), err.await.unwrap()))
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        // The monitor's end ends its children in the making; pause and containers are killed one by one.
        for pid in children(self.monitor_pid) {
            kill(pid);
        }
        kill(self.monitor_pid);
    }
}

pub fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
}

/// The living and dead children of `pid`.
pub fn children(pid: i32) -> Vec<i32> {
    let listed = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    listed.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

pub fn is_alive(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// Waits until `condition` holds.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..400 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not within 4 s: {what}");
}

fn make_root(root: &Path) {
    for directory in ["bin", "etc", "proc", "sys", "dev", "tmp", "root"] {
        std::fs::create_dir_all(root.join(directory)).unwrap();
    }
    std::fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
    for name in [
        "sh", "true", "false", "cat", "echo", "sleep", "id", "env", "ls", "ps", "kill", "grep", "hostname", "seq",
        "pwd", "readlink", "stat", "tty", "stty", "head", "dd", "mkdir", "touch", "wc", "yes", "test", "chmod",
        "umount", "sync",
    ] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    std::fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\n",
    )
    .unwrap();
}

/// Both ends of a pipe whose reader is this process.
pub fn pipe() -> (std::io::PipeReader, OwnedFd) {
    let (reader, writer) = std::io::pipe().unwrap();
    (reader, writer.into())
}
