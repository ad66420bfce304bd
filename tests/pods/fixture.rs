//! A daemon with everything it needs, and pods and containers that go when their values go.

use std::fs::{self, File};
use std::future::Future;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use crisp::cri::image_service_client::ImageServiceClient;
use crisp::cri::runtime_service_client::RuntimeServiceClient;
use crisp::cri::{self, ContainerState, NamespaceMode};
use crisp::network::netns;
use hyper_util::rt::TokioIo;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

use crate::{handlers, registry};

/// An address of the host, beside loopback.
pub const HOST_ADDRESS: &str = "192.0.2.2";
const NETWORK: &str = "
ip link set lo up
ip link add uplink type veth peer name outside
ip address add 192.0.2.2/24 dev uplink
ip link set outside up
ip link set uplink up
ip route add default via 192.0.2.1 dev uplink
";

/// How long what must happen may take, on a machine that does a lot else.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the daemon and the clients allow a message to be.
pub const MESSAGE_LIMIT: usize = 16 << 20;

pub const TOOLBOX: &str = "toolbox";

pub type Answer<T> = Result<Response<T>, Status>;
pub type RuntimeClient = RuntimeServiceClient<Channel>;
pub type ImageClient = ImageServiceClient<Channel>;

fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap()
    })
}

/// The driver under test: cgroupfs, or what CRISP_TEST_CGROUP_DRIVER says.
pub fn cgroup_driver() -> &'static str {
    static DRIVER: OnceLock<String> = OnceLock::new();
    DRIVER.get_or_init(|| std::env::var("CRISP_TEST_CGROUP_DRIVER").unwrap_or_else(|_| "cgroupfs".to_owned()))
}

/// Waits for the answer of an RPC.
pub fn ask<T>(asked: impl Future<Output = Answer<T>>) -> Result<T, Status> {
    wait(asked).map(Response::into_inner)
}

/// Waits for a future.
pub fn wait<T>(future: impl Future<Output = T>) -> T {
    runtime().block_on(future)
}

/// Waits until `look` gives something.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A daemon on a machine whose network is its own.
pub struct World {
    pub dir: PathBuf,
    pub socket: PathBuf,
    holder: Mutex<Child>,
    netns: File,
    daemon: Mutex<Option<Child>>,
    channel: Mutex<Channel>,
}

/// The world that all tests share.
pub fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    static AT_EXIT: OnceLock<i32> = OnceLock::new();
    extern "C" fn end() {
        if let Some(world) = WORLD.get() {
            world.end();
        }
    }
    // SAFETY: `end` is a function of this program and touches only what lives as long as the program.
    AT_EXIT.get_or_init(|| unsafe { libc::atexit(end) });
    WORLD.get_or_init(|| World::new("shared"))
}

impl World {
    pub fn new(name: &str) -> Self {
        let dir = PathBuf::from(format!("/tmp/crisp-pods-{}-{name}", std::process::id()));
        fs::create_dir(&dir).expect("a directory of our own");
        // It says when it is inside, and ends when this program does, by the pipe to it.
        let mut holder = Command::new("unshare")
            .args(["--net", "sh", "-ec", &format!("{NETWORK}\necho inside; exec cat")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("root, to make a network namespace");
        let mut line = String::new();
        BufReader::new(holder.stdout.take().expect("piped"))
            .read_line(&mut line)
            .expect("its word");
        assert_eq!(line, "inside\n");
        let netns = File::open(format!("/proc/{}/ns/net", holder.id())).expect("the holder lives");
        registry::serve(netns::run_in(&netns, || TcpListener::bind(registry::ADDRESS)).expect("a free port"));
        let socket = dir.join("d/run/crisp.sock");
        let (daemon, channel) = Self::start(&dir, &socket, &netns, None);
        let world = Self {
            dir,
            socket,
            holder: Mutex::new(holder),
            netns,
            daemon: Mutex::new(Some(daemon)),
            channel: Mutex::new(channel),
        };
        for image in [TOOLBOX, "talkative", "silent"] {
            world.pull(&registry::reference(image)).expect("the registry has it");
        }
        world
    }

    fn start(dir: &Path, socket: &Path, netns: &File, fault: Option<&str>) -> (Child, Channel) {
        let bin = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bin");
        let log = File::options()
            .create(true)
            .append(true)
            .open(dir.join("crispd.log"))
            .expect("a log");
        assert!(
            bin.join("crispd").exists(),
            "hack/build makes target/bin/crispd, which is tested here"
        );
        let config = handlers::config(dir);
        let daemon = netns::run_in(netns, || {
            Command::new(bin.join("crispd"))
                .arg("--config")
                .arg(&config)
                .args(["--cgroup-driver", cgroup_driver()])
                .envs(fault.map(|fault| (crisp::fault::VARIABLE, fault)))
                .args(["--network", "embedded", "--log", "info,crisp=debug", "--dir"])
                .arg(dir.join("d"))
                .arg("--lib-dir")
                .arg(&bin)
                .stdin(Stdio::null())
                .stderr(log)
                .spawn()
        });
        let mut daemon = daemon.expect("it starts");
        let channel = connect(socket);
        let mut client = RuntimeServiceClient::new(channel.clone());
        eventually("the daemon answers", || {
            if let Some(status) = daemon.try_wait().expect("it is ours") {
                panic!(
                    "crispd ended, {status}: {}",
                    fs::read_to_string(dir.join("crispd.log")).unwrap_or_default()
                );
            }
            ask(client.version(cri::VersionRequest::default())).ok()
        });
        (daemon, channel)
    }

    fn terminate(&self) {
        let Some(mut daemon) = lock(&self.daemon).take() else {
            return;
        };
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(daemon.id() as i32),
            nix::sys::signal::SIGTERM,
        )
        .expect("it is ours");
        daemon.wait().expect("it is ours");
    }

    /// Ends the daemon and starts it again; its pods live on.
    pub fn restart(&self) {
        self.restart_with(None);
    }

    /// As [`World::restart`], the next daemon armed with `fault`.
    pub fn restart_with(&self, fault: Option<&str>) {
        self.terminate();
        let (daemon, channel) = Self::start(&self.dir, &self.socket, &self.netns, fault);
        *lock(&self.daemon) = Some(daemon);
        *lock(&self.channel) = channel;
    }

    pub fn daemon_pid(&self) -> u32 {
        lock(&self.daemon).as_ref().expect("it runs").id()
    }

    /// Ends everything. Nothing here may panic or use a thread's own values: the program may be ending.
    fn end(&self) {
        if let Some(mut daemon) = lock(&self.daemon).take() {
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(daemon.id() as i32),
                nix::sys::signal::SIGTERM,
            );
            let _ = daemon.wait();
        }
        let _ = lock(&self.holder).kill();
        let _ = lock(&self.holder).wait();
        if std::env::var_os("CRISP_TEST_KEEP").is_none() {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }

    pub fn channel(&self) -> Channel {
        lock(&self.channel).clone()
    }

    pub fn runtime(&self) -> RuntimeClient {
        RuntimeServiceClient::new(self.channel())
            .max_decoding_message_size(MESSAGE_LIMIT)
            .max_encoding_message_size(MESSAGE_LIMIT)
    }

    pub fn images(&self) -> ImageClient {
        ImageServiceClient::new(self.channel())
            .max_decoding_message_size(MESSAGE_LIMIT)
            .max_encoding_message_size(MESSAGE_LIMIT)
    }

    pub fn pull(&self, reference: &str) -> Result<String, Status> {
        let request = cri::PullImageRequest {
            image: Some(image(reference)),
            ..Default::default()
        };
        ask(self.images().pull_image(request)).map(|answer| answer.image_ref)
    }

    /// Does `work` on a thread in the world's network.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> std::io::Result<T> + Send) -> std::io::Result<T> {
        netns::run_in(&self.netns, work)
    }

    /// An empty directory of a test's own.
    pub fn directory(&self, name: &str) -> PathBuf {
        let path = self.dir.join("tests").join(name);
        fs::create_dir_all(&path).expect("a directory");
        path
    }

    /// A pod of this name; its configuration as `change` leaves it.
    pub fn try_pod(&'static self, name: &str, change: impl FnOnce(&mut cri::PodSandboxConfig)) -> Result<Pod, Status> {
        self.try_pod_by(&handlers::handler(), name, change)
    }

    /// As [`World::try_pod`], with this runtime handler.
    pub fn try_pod_by(
        &'static self,
        handler: &str,
        name: &str,
        change: impl FnOnce(&mut cri::PodSandboxConfig),
    ) -> Result<Pod, Status> {
        let mut config = pod_config(name, &self.directory("logs").join(name));
        change(&mut config);
        let request = cri::RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: handler.to_owned(),
        };
        let id = ask(self.runtime().run_pod_sandbox(request))?.pod_sandbox_id;
        Ok(Pod {
            world: self,
            id,
            config,
        })
    }

    pub fn pod_with(&'static self, name: &str, change: impl FnOnce(&mut cri::PodSandboxConfig)) -> Pod {
        self.try_pod(name, change)
            .unwrap_or_else(|error| panic!("pod {name}: {error}"))
    }

    pub fn pod(&'static self, name: &str) -> Pod {
        self.pod_with(name, |_| {})
    }
}

/// A world for one test, which goes with its value. Its pods must be gone by then.
pub struct OwnWorld(pub &'static World);

impl OwnWorld {
    pub fn new(name: &str) -> Self {
        Self(Box::leak(Box::new(World::new(name))))
    }
}

impl Drop for OwnWorld {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.0.dir.join("crispd.log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!(
                "the end of crispd's log:\n{}",
                lines[lines.len().saturating_sub(40)..].join("\n")
            );
        }
        self.0.end();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// A channel to the socket, connected when it is used.
pub fn connect(socket: &Path) -> Channel {
    let socket = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(tokio::net::UnixStream::connect(socket).await?)) }
    });
    let _inside = runtime().enter();
    Endpoint::from_static("http://crisp").connect_with_connector_lazy(connector)
}

pub fn image(reference: &str) -> cri::ImageSpec {
    cri::ImageSpec {
        image: reference.to_owned(),
        ..Default::default()
    }
}

pub fn pod_config(name: &str, logs: &Path) -> cri::PodSandboxConfig {
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: name.to_owned(),
            uid: format!("uid-{name}"),
            namespace: "tests".to_owned(),
            attempt: 0,
        }),
        hostname: name.to_owned(),
        log_directory: logs.display().to_string(),
        ..Default::default()
    }
}

/// The namespace options of a sandbox's configuration, to be changed.
pub fn options(config: &mut cri::PodSandboxConfig) -> &mut cri::NamespaceOption {
    sandbox_security(config)
        .namespace_options
        .get_or_insert_with(|| cri::NamespaceOption {
            pid: NamespaceMode::Container.into(),
            ..Default::default()
        })
}

pub fn sandbox_linux(config: &mut cri::PodSandboxConfig) -> &mut cri::LinuxPodSandboxConfig {
    config.linux.get_or_insert_default()
}

pub fn sandbox_security(config: &mut cri::PodSandboxConfig) -> &mut cri::LinuxSandboxSecurityContext {
    sandbox_linux(config).security_context.get_or_insert_default()
}

pub fn linux(config: &mut cri::ContainerConfig) -> &mut cri::LinuxContainerConfig {
    config.linux.get_or_insert_default()
}

/// The security context of a container's configuration, to be changed.
pub fn security(config: &mut cri::ContainerConfig) -> &mut cri::LinuxContainerSecurityContext {
    linux(config).security_context.get_or_insert_default()
}

pub fn resources(config: &mut cri::ContainerConfig) -> &mut cri::LinuxContainerResources {
    linux(config).resources.get_or_insert_default()
}

/// A container's pid namespace is its own, unless its test is about that.
pub fn own_pids() -> cri::NamespaceOption {
    cri::NamespaceOption {
        pid: NamespaceMode::Container.into(),
        ..Default::default()
    }
}

pub fn int(value: i64) -> Option<cri::Int64Value> {
    Some(cri::Int64Value { value })
}

/// A sandbox; stopped and removed when dropped.
pub struct Pod {
    pub world: &'static World,
    pub id: String,
    pub config: cri::PodSandboxConfig,
}

impl Drop for Pod {
    fn drop(&mut self) {
        let removed = self.try_remove();
        if !std::thread::panicking() {
            removed.expect("the pod goes");
        }
    }
}

impl Pod {
    pub fn try_stop(&self) -> Result<(), Status> {
        let request = cri::StopPodSandboxRequest {
            pod_sandbox_id: self.id.clone(),
        };
        ask(self.world.runtime().stop_pod_sandbox(request)).map(drop)
    }

    pub fn try_remove(&self) -> Result<(), Status> {
        self.try_stop()?;
        let request = cri::RemovePodSandboxRequest {
            pod_sandbox_id: self.id.clone(),
        };
        ask(self.world.runtime().remove_pod_sandbox(request)).map(drop)
    }

    pub fn status(&self) -> cri::PodSandboxStatus {
        self.full_status(false).status.expect("a status")
    }

    pub fn full_status(&self, verbose: bool) -> cri::PodSandboxStatusResponse {
        let request = cri::PodSandboxStatusRequest {
            pod_sandbox_id: self.id.clone(),
            verbose,
        };
        ask(self.world.runtime().pod_sandbox_status(request)).expect("it is there")
    }

    pub fn ip(&self) -> String {
        self.status().network.expect("a network").ip
    }

    /// What a verbose status says.
    pub fn info(&self) -> serde_json::Value {
        serde_json::from_str(&self.full_status(true).info["info"]).expect("JSON")
    }

    /// Of pause.
    pub fn pid(&self) -> i64 {
        self.info()["pid"].as_i64().expect("a pid")
    }

    /// A configuration: the toolbox running `command`.
    pub fn config(&self, name: &str, command: &[&str]) -> cri::ContainerConfig {
        let mut config = cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata {
                name: name.to_owned(),
                attempt: 0,
            }),
            image: Some(image(&registry::reference(TOOLBOX))),
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            log_path: format!("{name}.log"),
            ..Default::default()
        };
        security(&mut config).namespace_options = Some(own_pids());
        config
    }

    pub fn try_create(&self, config: cri::ContainerConfig) -> Result<Container, Status> {
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: Some(config),
            sandbox_config: Some(self.config.clone()),
        };
        let id = ask(self.world.runtime().create_container(request))?.container_id;
        Ok(Container { world: self.world, id })
    }

    /// A container as `change` leaves its configuration, created.
    pub fn create(&self, name: &str, command: &[&str], change: impl FnOnce(&mut cri::ContainerConfig)) -> Container {
        let mut config = self.config(name, command);
        change(&mut config);
        self.try_create(config)
            .unwrap_or_else(|error| panic!("container {name}: {error}"))
    }

    /// As [`Pod::create`], and started.
    pub fn start(&self, name: &str, command: &[&str], change: impl FnOnce(&mut cri::ContainerConfig)) -> Container {
        let container = self.create(name, command, change);
        container
            .start()
            .unwrap_or_else(|error| panic!("container {name}: {error}"));
        container
    }

    /// A started container that does nothing, to look around in.
    pub fn idle(&self, name: &str, change: impl FnOnce(&mut cri::ContainerConfig)) -> Container {
        self.start(name, &["sleep", "100000"], change)
    }
}

/// A container; it goes with its pod.
#[derive(Clone)]
pub struct Container {
    pub world: &'static World,
    pub id: String,
}

/// What a command in a container did.
#[derive(Debug, PartialEq, Eq)]
pub struct Output {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Container {
    pub fn start(&self) -> Result<(), Status> {
        let request = cri::StartContainerRequest {
            container_id: self.id.clone(),
        };
        ask(self.world.runtime().start_container(request)).map(drop)
    }

    pub fn stop(&self, grace_seconds: i64) -> Result<(), Status> {
        let request = cri::StopContainerRequest {
            container_id: self.id.clone(),
            timeout: grace_seconds,
        };
        ask(self.world.runtime().stop_container(request)).map(drop)
    }

    pub fn remove(&self) -> Result<(), Status> {
        let request = cri::RemoveContainerRequest {
            container_id: self.id.clone(),
        };
        ask(self.world.runtime().remove_container(request)).map(drop)
    }

    pub fn try_exec(&self, command: &[&str], timeout_seconds: i64) -> Result<cri::ExecSyncResponse, Status> {
        let cmd = command.iter().map(|word| (*word).to_owned()).collect();
        let request = cri::ExecSyncRequest {
            container_id: self.id.clone(),
            cmd,
            timeout: timeout_seconds,
        };
        ask(self.world.runtime().exec_sync(request))
    }

    pub fn exec(&self, command: &[&str]) -> Output {
        let done = self
            .try_exec(command, 30)
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).trim_end().to_owned();
        Output {
            code: done.exit_code,
            stdout: text(done.stdout),
            stderr: text(done.stderr),
        }
    }

    /// What a shell script that succeeds prints.
    pub fn sh(&self, script: &str) -> String {
        let done = self.exec(&["sh", "-c", script]);
        assert_eq!((done.code, done.stderr.as_str()), (0, ""), "{script}: {}", done.stdout);
        done.stdout
    }

    pub fn try_status(&self) -> Result<cri::ContainerStatus, Status> {
        let request = cri::ContainerStatusRequest {
            container_id: self.id.clone(),
            verbose: false,
        };
        Ok(ask(self.world.runtime().container_status(request))?
            .status
            .expect("a status"))
    }

    pub fn status(&self) -> cri::ContainerStatus {
        self.try_status().expect("it is there")
    }

    pub fn info(&self) -> serde_json::Value {
        let request = cri::ContainerStatusRequest {
            container_id: self.id.clone(),
            verbose: true,
        };
        let answer = ask(self.world.runtime().container_status(request)).expect("it is there");
        serde_json::from_str(&answer.info["info"]).expect("JSON")
    }

    /// Of its first process, on the host.
    pub fn pid(&self) -> i64 {
        self.info()["pid"].as_i64().expect("it lives")
    }

    /// Its status once it has exited.
    pub fn exited(&self) -> cri::ContainerStatus {
        eventually("the container exits", || {
            Some(self.status()).filter(|status| status.state() == ContainerState::ContainerExited)
        })
    }

    /// Its log, without the times: `stdout F text`.
    pub fn log(&self) -> Vec<String> {
        let text = fs::read_to_string(self.status().log_path).unwrap_or_default();
        text.lines()
            .filter_map(|line| Some(line.split_once(' ')?.1.to_owned()))
            .collect()
    }

    /// Its log once it has this line.
    pub fn logged(&self, text: &str) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let log = self.log();
            if log.iter().any(|line| line.contains(text)) {
                return log;
            }
            assert!(
                Instant::now() < deadline,
                "never in the log: {text}; there is {log:?}, {:?}",
                self.status()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A file with this content.
pub fn write(path: &Path, content: &str) {
    let mut file = File::create(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    file.write_all(content.as_bytes()).expect("room on the disk");
}
