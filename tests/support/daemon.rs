//! The real crispd below a directory of its own, on a machine of its own: network, mounts and cgroups that no other test
//! sees. Everything goes when the test ends, however it ends.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crisp::cri;
use crisp::cri::image_service_client::ImageServiceClient;
use crisp::cri::runtime_service_client::RuntimeServiceClient;
use crisp::sys::cgroup::{Cgroup, Hierarchy};
use hyper_util::rt::TokioIo;
use nix::sched::{CloneFlags, unshare};
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};
use rustix::process::{Pid, Signal, kill_process};
use tonic::transport::{Channel, Endpoint, Uri};

use crate::leak_check::{Scope, Snapshot};

/// How long the daemon may take to serve or to end, and any one request to be answered.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How long after a request what it ended may take to be gone.
const SETTLING: Duration = Duration::from_secs(15);

/// Both services of one daemon.
#[derive(Clone)]
pub struct Client {
    pub runtime: RuntimeServiceClient<Channel>,
    pub images: ImageServiceClient<Channel>,
}

/// What there was at some time.
pub struct Before {
    things: Snapshot,
    /// As `things`, with the open files of the daemon that this is the pid of.
    with_files: (i32, Snapshot),
}

/// The machine. Its thread is in namespaces of its own.
pub struct Machine {
    dir: tempfile::TempDir,
    /// Where crispd is, and where its pods are if they are not below: systemd has them in a slice.
    cgroup: String,
    slice: Option<String>,
    hierarchy: Arc<Hierarchy>,
    own: Cgroup,
    /// Further arguments for crispd.
    pub arguments: Vec<String>,
    /// How many descriptors crispd may have, if not as many as this process.
    pub descriptors: Option<u64>,
    child: Option<Child>,
    client: Option<Client>,
}

impl Machine {
    /// Runs `body` on a new machine. `name` tells machines of one test process apart.
    pub fn test(name: &str, body: impl AsyncFnOnce(&mut Machine) + Send) {
        assert!(rustix::process::geteuid().is_root(), "these tests need root");
        assert!(
            programs().join("crispd").exists(),
            "{} is missing: run hack/build",
            programs().join("crispd").display()
        );
        let outcome = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new()
                .name(name.to_owned())
                .spawn_scoped(scope, || {
                    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("root may");
                    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
                        .expect("our namespace");
                    // Threads of the runtime are born in the namespaces of this one.
                    let runtime = tokio::runtime::Builder::new_multi_thread()
                        .worker_threads(2)
                        .enable_all()
                        .build();
                    // What others have mounted goes when they like.
                    unmount_below(&["/run", "/tmp", "/var/tmp"].map(Path::new));
                    let mut machine = Machine::new(name);
                    machine.sh("ip link set lo up");
                    runtime.expect("threads").block_on(body(&mut machine));
                });
            thread.expect("a thread").join()
        });
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    }

    fn new(name: &str) -> Self {
        let hierarchy = Hierarchy::detect().expect("cgroups are mounted");
        let cgroup = format!("/crisp-test-{}-{name}", std::process::id());
        let own = Cgroup::create(&hierarchy, &format!("{cgroup}/daemon")).expect("root may");
        let dir = tempfile::tempdir().expect("a directory");
        // A dash would be a slice inside another one.
        let slice = (cgroup_driver() == "systemd")
            .then(|| format!("crisptest{}{}.slice", std::process::id(), name.replace('-', "")));
        Self {
            dir,
            cgroup,
            slice,
            hierarchy,
            own,
            arguments: Vec::new(),
            descriptors: None,
            child: None,
            client: None,
        }
    }

    /// A directory for the test's own files.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// What `--dir` says.
    pub fn state_dir(&self) -> PathBuf {
        self.dir.path().join("crisp")
    }

    /// Where crispd writes what it has to say.
    pub fn log(&self) -> PathBuf {
        self.dir.path().join("crispd.log")
    }

    /// What the shell prints; fails with what it complains of.
    pub fn sh(&self, script: &str) -> String {
        let output = Command::new("sh").arg("-ec").arg(script).output().expect("a shell");
        assert!(
            output.status.success(),
            "{script}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).expect("text")
    }

    /// Starts crispd and waits until it serves.
    pub async fn start(&mut self) {
        self.start_with("").await;
    }

    /// As [`Machine::start`], with a fault armed (`crisp::fault`); the empty one is none.
    pub async fn start_with(&mut self, fault: &str) {
        assert!(self.child.is_none(), "it runs already");
        self.child = Some(self.command(fault).spawn().expect("crispd is executable"));
        let deadline = Instant::now() + PATIENCE;
        self.client = loop {
            let child = self.child.as_mut().expect("just started");
            if let Some(status) = child.try_wait().expect("our child") {
                panic!("crispd ended with {status}");
            }
            match connect(&self.state_dir().join("run/crisp.sock")).await {
                Some(client) => break Some(client),
                None => assert!(Instant::now() < deadline, "crispd does not serve"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
    }

    /// crispd as it will run.
    pub fn command(&self, fault: &str) -> Command {
        let out = File::options()
            .create(true)
            .append(true)
            .open(self.log())
            .expect("a log");
        let mut command = Command::new(programs().join("crispd"));
        command.arg("--config").arg(crate::handlers::config(self.dir()));
        command.arg("--dir").arg(self.state_dir());
        let parent = self.slice.clone().unwrap_or_else(|| format!("{}/pods", self.cgroup));
        command.args(["--cgroup-driver", &cgroup_driver(), "--cgroup-parent", &parent]);
        command.args(["--log", "info,crisp=debug"]);
        command.args(
            ["--network", "embedded"]
                .iter()
                .filter(|_| !self.arguments.iter().any(|a| a == "--network")),
        );
        command.args(&self.arguments);
        if !fault.is_empty() {
            command.env(crisp::fault::VARIABLE, fault);
        }
        command
            .stdin(Stdio::null())
            .stdout(out.try_clone().expect("a descriptor"))
            .stderr(out);
        let joins = self.own.procs_fds().expect("the cgroup is there");
        let descriptors = self.descriptors;
        // SAFETY: between fork and exec only write(2) and setrlimit(2) are called; the descriptors live in the closure.
        unsafe {
            command.pre_exec(move || {
                for fd in &joins {
                    if libc::write(fd.as_raw_fd(), b"0".as_ptr().cast(), 1) != 1 {
                        return Err(std::io::Error::last_os_error());
                    }
                }
                if let Some(most) = descriptors {
                    let limit = rustix::process::Rlimit {
                        current: Some(most),
                        maximum: Some(most),
                    };
                    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit)?;
                }
                Ok(())
            });
        }
        command
    }

    /// The pid of crispd, which runs.
    pub fn pid(&self) -> i32 {
        self.child.as_ref().expect("it runs").id().cast_signed()
    }

    /// Requests to crispd, which runs.
    pub fn client(&self) -> Client {
        self.client.clone().expect("it runs")
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().expect("our child");
        child.wait().expect("our child");
        self.client = None;
    }

    /// Asks it to end by TERM, and waits.
    pub async fn terminate(&mut self) -> ExitStatus {
        kill_process(Pid::from_raw(self.pid()).expect("a pid"), Signal::TERM).expect("our child");
        self.ended().await
    }

    /// Waits until it has ended by itself.
    pub async fn ended(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.as_mut().expect("it ran").try_wait().expect("our child") {
                (self.child, self.client) = (None, None);
                return status;
            }
            assert!(Instant::now() < deadline, "crispd does not end");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until a fail point has killed it.
    pub async fn died(&mut self) {
        assert_eq!(self.ended().await.signal(), Some(libc::SIGKILL));
    }

    /// What there is now, as soon as nothing changes any more: processes, mounts, cgroups, links, rules, files and
    /// directories; crispd's open files.
    pub fn look(&self) -> Before {
        let (scope, deadline) = (self.scope(false), Instant::now() + SETTLING);
        loop {
            let snapshot = Snapshot::take(&scope);
            std::thread::sleep(Duration::from_millis(50));
            if !self.is_network_leaving() && snapshot.diff(&Snapshot::take(&scope)).is_empty() {
                break;
            }
            assert!(Instant::now() < deadline, "it does not come to rest");
        }
        let with_files = (self.pid(), Snapshot::take(&self.scope(true)));
        Before {
            things: Snapshot::take(&self.scope(false)),
            with_files,
        }
    }

    /// Whether the kernel is still removing the link of a pod that is gone, whose address rests until then, or the pod network
    /// itself, which goes with the last address.
    fn is_network_leaving(&self) -> bool {
        let names = |dir| fs::read_dir(self.state_dir().join(dir)).into_iter().flatten().flatten();
        let mut leases = names("run/network/ips").peekable();
        if leases.peek().is_none() {
            let links = fs::read_to_string("/proc/thread-self/net/dev").expect("the kernel's own");
            return links.lines().any(|link| link.trim_start().starts_with("crisp-"));
        }
        leases.any(|lease| {
            let lease = fs::read_to_string(lease.path()).unwrap_or_default();
            !names("lib/pods").any(|pod| lease.contains(&*pod.file_name().to_string_lossy()))
        })
    }

    /// Fails unless everything becomes again as it was.
    pub fn nothing_is_left_since(&self, before: &Before) {
        let (daemon, with_files) = &before.with_files;
        // Another daemon opens files of its own.
        let different = match *daemon == self.pid() {
            true => with_files.settled(&self.scope(true), SETTLING),
            false => before.things.settled(&self.scope(false), SETTLING),
        };
        assert!(different.is_empty(), "left behind:\n{}", different.join("\n"));
    }

    fn cgroups(&self) -> Vec<String> {
        let slice = self.slice.iter().map(|slice| format!("/{slice}"));
        slice.chain([self.cgroup.clone()]).collect()
    }

    fn scope(&self, with_files: bool) -> Scope {
        Scope {
            commands: Vec::new(),
            cgroups: self.cgroups(),
            members: true,
            known: vec![self.pid()],
            directories: vec![self.state_dir()],
            open_files_of: if with_files { vec![self.pid()] } else { Vec::new() },
            all_netns: false,
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if failed {
            let log = fs::read_to_string(self.log()).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!(
                "the end of crispd's log:\n{}",
                lines[lines.len().saturating_sub(60)..].join("\n")
            );
        }
        let cgroups: Vec<Cgroup> = self
            .cgroups()
            .iter()
            .map(|path| Cgroup::open(&self.hierarchy, path).expect("its name is sound"))
            .collect();
        let killed: Vec<_> = cgroups.iter().map(Cgroup::kill).collect();
        if let Some(slice) = &self.slice {
            let stopped = Command::new("systemctl").args(["stop", slice]).status();
            assert!(failed || stopped.is_ok_and(|status| status.success()), "stop {slice}");
        }
        let removed: Vec<_> = cgroups.iter().map(Cgroup::remove).collect();
        unmount_below(&[self.dir.path()]);
        if !failed {
            for (killed, removed) in killed.into_iter().zip(removed) {
                assert_eq!(killed.expect("root may"), Vec::<i32>::new());
                removed.expect("it is empty");
            }
        }
    }
}

/// The driver under test: cgroupfs, or what CRISP_TEST_CGROUP_DRIVER says.
pub fn cgroup_driver() -> String {
    std::env::var("CRISP_TEST_CGROUP_DRIVER").unwrap_or_else(|_| "cgroupfs".to_owned())
}

/// Detaches whatever is mounted below one of `dirs` in the namespace of this thread.
fn unmount_below(dirs: &[&Path]) {
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").expect("proc");
    for point in mounts
        .lines()
        .rev()
        .filter_map(|line| line.split(' ').nth(4))
        .map(Path::new)
    {
        if dirs.iter().any(|dir| point.starts_with(dir) && point != *dir) {
            // It may have gone by itself.
            let _ = unmount(point, UnmountFlags::DETACH);
        }
    }
}

fn programs() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| package.join("target"), PathBuf::from)
        .join("bin")
}

/// Connects, if somebody serves on `socket`.
async fn connect(socket: &Path) -> Option<Client> {
    const LIMIT_BYTES: usize = 64 * 1024 * 1024;
    let socket = socket.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { tokio::net::UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://crispd")
        .connect_with_connector(connector)
        .await
        .ok()?;
    let mut runtime = RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(LIMIT_BYTES);
    runtime.version(cri::VersionRequest::default()).await.ok()?;
    Some(Client {
        runtime,
        images: ImageServiceClient::new(channel),
    })
}
