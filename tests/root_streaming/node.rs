//! A node to try things on: a network of its own, a registry, crispd, all gone when it is dropped. Or, on the network that it is in,
//! another runtime that is there already.

use std::ffi::OsStr;
use std::fs::File;
use std::future::Future;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crisp::cri::image_service_client::ImageServiceClient;
use crisp::cri::runtime_service_client::RuntimeServiceClient;
use crisp::cri::*;
use crisp::sys::cgroup::{Cgroup, Hierarchy};
use tonic::transport::{Channel, Endpoint};

use crate::{endpoint, registry};

/// The programs: the directory that hack/build fills, and crictl, built once for all tests.
fn programs() -> &'static (PathBuf, PathBuf) {
    static BUILT: OnceLock<(PathBuf, PathBuf)> = OnceLock::new();
    BUILT.get_or_init(|| {
        assert!(rustix::process::geteuid().is_root(), "these tests need root");
        let package = Path::new(env!("CARGO_MANIFEST_DIR"));
        let build = ". hack/environment; exec python3 -c \"from harness import tools; print(tools.tool('crictl'))\"";
        let done = Command::new("bash")
            .args(["-euc", build])
            .current_dir(package)
            .output()
            .expect("bash runs");
        assert!(
            done.status.success(),
            "crictl: {}",
            String::from_utf8_lossy(&done.stderr)
        );
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| package.join("target"), PathBuf::from);
        (
            target.join("bin"),
            String::from_utf8(done.stdout).unwrap().trim().into(),
        )
    })
}

pub struct Node {
    dir: tempfile::TempDir,
    /// Of its pods.
    uid: String,
    socket: PathBuf,
    crispd: Option<Crispd>,
    runtime: tokio::runtime::Runtime,
    image: String,
}

struct Crispd {
    daemon: Child,
    cgroup: String,
}

impl Crispd {
    fn start(dir: &Path, uid: &str, settings: &str) -> Self {
        let (bin, _) = programs();
        assert!(
            bin.join("crispd").exists(),
            "{} is missing: run hack/build",
            bin.join("crispd").display()
        );
        let log = File::create(dir.join("crispd.log")).unwrap();
        let config = crate::handlers::config(dir);
        let runtimes = std::fs::read_to_string(&config).unwrap();
        std::fs::write(&config, format!("{runtimes}[streaming]\n{settings}\n")).unwrap();
        let cgroup = format!("/crisp-{uid}");
        let daemon = Command::new(bin.join("crispd"))
            .arg("--dir")
            .arg(dir.join("crisp"))
            .arg("--lib-dir")
            .arg(bin)
            .arg("--config")
            .arg(config)
            .args(["--cgroup-parent", &cgroup])
            .args(["--network", "embedded", "--log", "debug,crisp=trace"])
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("crispd starts");
        Self { daemon, cgroup }
    }

    fn end(&mut self) -> std::io::Result<()> {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        Hierarchy::detect()
            .and_then(|hierarchy| Cgroup::open(&hierarchy, &self.cgroup))
            .and_then(|cgroup| cgroup.kill().and_then(|_| cgroup.remove()))
    }
}

impl Node {
    /// Takes the calling thread, and all it starts from here on, into the runtime's network, and starts there.
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        match endpoint::socket() {
            Some(socket) => {
                let network = endpoint::network(endpoint::pid(&socket));
                nix::sched::setns(network, nix::sched::CloneFlags::CLONE_NEWNET).expect("root");
                Self::on(dir, uid(), socket, None)
            }
            None => Self::start_in(dir, ""),
        }
    }

    /// As [`Node::start`], with these settings of streaming.
    pub fn start_with(settings: &str) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), settings)
    }

    /// As [`Node::start_with`], below a directory in which something is already.
    pub fn start_in(dir: tempfile::TempDir, settings: &str) -> Self {
        endpoint::only_crisp("a daemon of the test's own");
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a network namespace");
        run(Command::new("ip").args(["link", "set", "lo", "up"]));
        let (uid, socket) = (uid(), dir.path().join("crisp/run/crisp.sock"));
        let crispd = Crispd::start(dir.path(), &uid, settings);
        Self::on(dir, uid, socket, Some(crispd))
    }

    fn on(dir: tempfile::TempDir, uid: String, socket: PathBuf, crispd: Option<Crispd>) -> Self {
        let image = registry::serve();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let node = Self {
            dir,
            uid,
            socket,
            crispd,
            runtime,
            image,
        };
        eventually("the runtime serves", || {
            std::os::unix::net::UnixStream::connect(&node.socket).is_ok()
        });
        let spec = ImageSpec {
            image: node.image.clone(),
            ..ImageSpec::default()
        };
        let pull = PullImageRequest {
            image: Some(spec),
            auth: None,
            sandbox_config: None,
        };
        node.wait(async { ImageServiceClient::new(node.channel().await).pull_image(pull).await })
            .expect("pull");
        node
    }

    /// Where the test may put what it needs.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// What crispd has said so far.
    pub fn log(&self) -> String {
        endpoint::only_crisp("its own log");
        std::fs::read_to_string(self.dir.path().join("crispd.log")).unwrap_or_default()
    }

    /// The daemon's resident memory, in KiB.
    pub fn resident_kib(&self) -> u64 {
        endpoint::only_crisp("its daemon's memory");
        let status = std::fs::read_to_string(format!("/proc/{}/status", endpoint::pid(&self.socket))).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    async fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("unix://{}", self.socket.display()))
            .unwrap()
            .connect()
            .await
            .expect("crispd")
    }

    pub fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    pub async fn client(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel().await)
    }

    /// A container that answers what it reads; whoever attaches now comes after its first words.
    pub fn one_that_has_spoken(&self) -> String {
        let script = "echo long before; while read line; do echo \"$line too\"; done";
        let container = self.container(&self.pod(NamespaceMode::Pod), &["sh", "-c", script], |config| {
            config.stdin = true;
            config.log_path = "said".into();
        });
        eventually("it has spoken", || {
            std::fs::read_to_string(self.logs().join("said")).is_ok_and(|said| said.contains("long before\n"))
        });
        container
    }

    /// Where containers that have a `log_path` log.
    fn logs(&self) -> PathBuf {
        self.dir.path().join("logs")
    }

    fn sandbox(&self, security: Option<LinuxSandboxSecurityContext>) -> PodSandboxConfig {
        std::fs::create_dir_all(self.logs()).expect("a directory of our own");
        let metadata = PodSandboxMetadata {
            name: "pod".into(),
            namespace: self.uid.clone(),
            uid: self.uid.clone(),
            attempt: 0,
        };
        PodSandboxConfig {
            metadata: Some(metadata),
            log_directory: self.logs().display().to_string(),
            linux: Some(LinuxPodSandboxConfig {
                security_context: security,
                ..Default::default()
            }),
            ..PodSandboxConfig::default()
        }
    }

    pub fn pod(&self, network: NamespaceMode) -> String {
        self.pod_with(NamespaceOption {
            network: network.into(),
            ..NamespaceOption::default()
        })
    }

    /// A pod with these namespaces.
    pub fn pod_with(&self, options: NamespaceOption) -> String {
        self.wait(async {
            let security = LinuxSandboxSecurityContext {
                namespace_options: Some(options),
                ..Default::default()
            };
            let config = self.sandbox(Some(security));
            let request = RunPodSandboxRequest {
                config: Some(config),
                runtime_handler: crate::handlers::handler(),
            };
            self.client()
                .await
                .run_pod_sandbox(request)
                .await
                .expect("pod")
                .into_inner()
                .pod_sandbox_id
        })
    }

    /// A running container of `pod`.
    pub fn container(&self, pod: &str, words: &[&str], change: impl FnOnce(&mut ContainerConfig)) -> String {
        let mut config = ContainerConfig {
            metadata: Some(ContainerMetadata {
                name: "container".into(),
                attempt: 0,
            }),
            image: Some(ImageSpec {
                image: self.image.clone(),
                ..ImageSpec::default()
            }),
            command: words.iter().map(|word| word.to_string()).collect(),
            ..ContainerConfig::default()
        };
        change(&mut config);
        self.wait(async {
            let mut client = self.client().await;
            let request = CreateContainerRequest {
                pod_sandbox_id: pod.to_owned(),
                config: Some(config),
                sandbox_config: Some(self.sandbox(None)),
            };
            let id = client
                .create_container(request)
                .await
                .expect("container")
                .into_inner()
                .container_id;
            client
                .start_container(StartContainerRequest {
                    container_id: id.clone(),
                })
                .await
                .expect("start");
            id
        })
    }

    pub fn is_running(&self, container: &str) -> bool {
        self.status(container).status.unwrap().state() == ContainerState::ContainerRunning
    }

    pub fn status(&self, container: &str) -> ContainerStatusResponse {
        let request = ContainerStatusRequest {
            container_id: container.to_owned(),
            verbose: true,
        };
        let answer = self.wait(async { self.client().await.container_status(request).await });
        answer.unwrap().into_inner()
    }

    /// The pid of a container's first process.
    pub fn pid(&self, container: &str) -> i64 {
        let info: serde_json::Value = serde_json::from_str(&self.status(container).info["info"]).unwrap();
        info["pid"].as_i64().unwrap()
    }

    /// The URL of an exec of `words`; `change` says which streams.
    pub fn exec_url(&self, container: &str, words: &[&str], change: impl FnOnce(&mut ExecRequest)) -> String {
        let mut request = ExecRequest {
            container_id: container.to_owned(),
            cmd: words.iter().map(|word| word.to_string()).collect(),
            stdout: true,
            ..ExecRequest::default()
        };
        change(&mut request);
        let answer = self.wait(async { self.client().await.exec(request).await });
        answer.expect("exec").into_inner().url
    }

    /// The URL of forwarding to `port` of a pod.
    pub fn forward_url(&self, pod: &str, port: u16) -> String {
        let request = PortForwardRequest {
            pod_sandbox_id: pod.to_owned(),
            port: vec![port.into()],
        };
        let answer = self.wait(async { self.client().await.port_forward(request).await });
        answer.expect("port-forward").into_inner().url
    }

    /// Runs a command without streaming, and gives its output.
    pub fn sync(&self, container: &str, script: &str) -> String {
        let request = ExecSyncRequest {
            container_id: container.to_owned(),
            cmd: ["sh", "-c", script].map(str::to_owned).to_vec(),
            timeout: 60,
        };
        let answer = self.wait(async { self.client().await.exec_sync(request).await });
        String::from_utf8(answer.expect("exec").into_inner().stdout)
            .unwrap()
            .trim()
            .to_owned()
    }

    /// `crictl` with these words.
    pub fn crictl<W: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = W>) -> Command {
        let config = self.dir.path().join("crictl.yaml");
        if !config.exists() {
            let endpoint = format!("unix://{}", self.socket.display());
            let text = format!("runtime-endpoint: {endpoint}\nimage-endpoint: {endpoint}\n");
            std::fs::write(&config, text).unwrap();
        }
        let mut command = Command::new(&programs().1);
        command.arg("--config").arg(config).args(words);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let ended = self.wait(async {
            let mut client = self.client().await;
            let pods = client
                .list_pod_sandbox(ListPodSandboxRequest::default())
                .await?
                .into_inner()
                .items;
            let ours = |pod: &PodSandbox| pod.metadata.as_ref().is_some_and(|metadata| metadata.uid == self.uid);
            for pod_sandbox_id in pods.into_iter().filter(ours).map(|pod| pod.id) {
                client
                    .stop_pod_sandbox(StopPodSandboxRequest {
                        pod_sandbox_id: pod_sandbox_id.clone(),
                    })
                    .await?;
                client
                    .remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id })
                    .await?;
            }
            Ok::<_, tonic::Status>(())
        });
        let emptied = self.crispd.as_mut().map_or(Ok(()), Crispd::end);
        if std::thread::panicking() || ended.is_err() || emptied.is_err() {
            let log = std::fs::read_to_string(self.dir.path().join("crispd.log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().filter(|line| line.contains("crisp::")).collect();
            let last = &lines[lines.len().saturating_sub(60)..];
            eprintln!("{ended:?}, {emptied:?}; at the end crispd said:\n{}", last.join("\n"));
        }
        if !std::thread::panicking() {
            ended.expect("pods can be stopped and removed");
            emptied.expect("their cgroups are empty");
        }
    }
}

/// How crictl's `-r` names what a session goes by. By WebSocket it speaks the fifth protocol, which is younger than the CRI.
pub fn transports() -> Vec<&'static str> {
    match endpoint::socket() {
        Some(_) => vec!["spdy"],
        None => vec!["spdy", "websocket"],
    }
}

/// A word for the pods of one node.
fn uid() -> String {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    format!(
        "streaming-{}-{}",
        std::process::id(),
        NUMBER.fetch_add(1, Ordering::Relaxed)
    )
}

pub fn run(command: &mut Command) {
    assert!(command.status().expect("runs").success(), "{command:?}");
}

/// Waits for `condition`, at most half a minute.
pub fn eventually(what: &str, condition: impl FnMut() -> bool) {
    eventually_within(Duration::from_secs(30), what, condition);
}

/// As [`eventually`], at most for `patience`.
pub fn eventually_within(patience: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + patience;
    while !condition() {
        assert!(Instant::now() < until, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Runs `command` with `input` to its end.
pub fn fed(command: &mut Command, input: &[u8]) -> Output {
    let mut child = command.stdin(Stdio::piped()).spawn().expect("runs");
    let mut stdin = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let _ = stdin.write_all(input);
        });
        child.wait_with_output().unwrap()
    })
}
