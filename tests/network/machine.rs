//! A machine for a test: a thread in a network namespace of its own, with an uplink to a neighbour.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crisp::model::SandboxId;
use crisp::network::{
    Attached, Attachment, Dns, NetworkConfig, NetworkError, Networks, Plan, PortMapping, Protocol, netns,
};

const PATIENCE: Duration = Duration::from_secs(2);

/// The host of the pods under test, at 192.0.2.1 and fd99::1; its neighbour is at 192.0.2.2 and fd99::2.
pub struct Machine {
    dir: tempfile::TempDir,
    neighbour: PathBuf,
    runtime: tokio::runtime::Runtime,
}

/// A pod's namespace and what is asked for it.
pub struct Pod {
    pub attachment: Attachment,
}

impl Drop for Pod {
    fn drop(&mut self) {
        netns::remove(&self.attachment.netns).expect("the namespace of a test's pod goes");
    }
}

impl Machine {
    /// Runs `body` on a thread in the namespace of a new machine.
    pub fn run_test(body: impl FnOnce(&Machine) + Send) {
        let dir = tempfile::tempdir().expect("a directory");
        let host = netns::create(dir.path(), "host").expect("root, to make namespaces");
        let neighbour = netns::create(dir.path(), "neighbour").expect("a namespace");
        let opened = netns::open(&host).expect("just made");
        let (host_path, neighbour_path) = (host.clone(), neighbour.clone());
        let outcome = netns::run_in(&opened, move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()?;
            let machine = Machine {
                dir,
                neighbour,
                runtime,
            };
            machine.wire();
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| body(&machine)));
            for path in [&host_path, &neighbour_path] {
                netns::remove(path)?;
            }
            Ok(outcome)
        });
        if let Err(panic) = outcome.expect("the machine's thread") {
            std::panic::resume_unwind(panic);
        }
    }

    fn wire(&self) {
        let neighbour = self.neighbour.display();
        self.sh("ip link add up0 type veth peer name up1");
        self.sh(&format!("ip link set up1 netns {neighbour}"));
        self.sh("ip addr add 192.0.2.1/24 dev up0; ip addr add fd99::1/64 dev up0 nodad; ip link set up0 up");
        self.sh("ip route add default via 192.0.2.2");
        let inside = "ip addr add 192.0.2.2/24 dev up1; ip addr add fd99::2/64 dev up1 nodad; ip link set up1 up";
        self.sh(&format!("nsenter --net={neighbour} sh -ec '{inside}'"));
    }

    /// The instance's run directory.
    pub fn run(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// A directory for the test's own files.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// What the shell prints; fails with what it complains of.
    pub fn sh(&self, script: &str) -> String {
        let output = Command::new("sh").arg("-ec").arg(script).output().expect("a shell");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script}: {error}");
        String::from_utf8(output.stdout).expect("text")
    }

    /// A pod whose id is `digit` 64 times.
    pub fn pod(&self, digit: char, ports: &[PortMapping]) -> Pod {
        self.pod_called(digit.to_string().repeat(64), ports)
    }

    /// One of many pods.
    pub fn numbered_pod(&self, n: usize, ports: &[PortMapping]) -> Pod {
        self.pod_called(format!("{n:08x}").repeat(8), ports)
    }

    fn pod_called(&self, id: String, ports: &[PortMapping]) -> Pod {
        let netns = netns::create(&self.run().join("netns"), &id).expect("a namespace");
        Pod {
            attachment: Attachment {
                sandbox_id: SandboxId::new(id),
                namespace: "default".into(),
                name: "pod".into(),
                uid: "uid".into(),
                netns,
                ports: ports.to_vec(),
                dns: Dns::default(),
                annotations: BTreeMap::new(),
                cgroup_parent: None,
            },
        }
    }

    pub fn open(&self, config: NetworkConfig) -> Arc<Networks> {
        Networks::open(config).expect("the networks open")
    }

    pub fn wait<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    pub fn plan(&self, networks: &Networks, pod: &Pod) -> Plan {
        let plan = networks.plan(pod.attachment.clone()).expect("a plan");
        let text = serde_json::to_string(&plan).expect("a plan is plain data");
        serde_json::from_str(&text).expect("a plan comes back from disk")
    }

    pub fn try_add(&self, networks: &Networks, pod: &Pod) -> Result<Attached, NetworkError> {
        self.wait(networks.add(&self.plan(networks, pod)))
    }

    pub fn add(&self, networks: &Networks, pod: &Pod) -> Attached {
        self.try_add(networks, pod)
            .unwrap_or_else(|e| panic!("ADD: {}", chain(&e)))
    }

    pub fn del(&self, networks: &Networks, pod: &Pod) {
        let done = self.wait(networks.del(&self.plan(networks, pod), None));
        done.unwrap_or_else(|e| panic!("DEL: {}", chain(&e)));
        self.settle(networks);
    }

    /// Has DEL end what it leaves to the kernel's own time.
    pub fn settle(&self, networks: &Networks) {
        self.wait(networks.settle())
            .unwrap_or_else(|e| panic!("settle: {}", chain(&e)));
    }

    /// How many addresses are given to pods.
    pub fn leases(&self) -> usize {
        std::fs::read_dir(self.run().join("network/ips"))
            .expect("readable")
            .count()
    }

    /// Serves `text` once at the neighbour; the address of whoever asked comes out of the channel.
    pub fn neighbour_serves(&self, address: &str, text: &'static str) -> (JoinHandle<()>, Receiver<IpAddr>) {
        let listener = netns::run_in(self.neighbour(), || TcpListener::bind(address)).expect("the address is there");
        let (tell, from) = channel();
        let thread = std::thread::spawn(move || {
            let (mut stream, address) = listener.accept().expect("someone asks");
            stream.write_all(text.as_bytes()).expect("someone listens");
            tell.send(address.ip()).expect("the test waits");
        });
        (thread, from)
    }

    /// The namespace of the machine on the other end of the wire.
    pub fn neighbour(&self) -> File {
        netns::open(&self.neighbour).expect("the neighbour lives")
    }

    /// No link but the machine's own, no rule, no address.
    pub fn assert_nothing_left(&self) {
        let links = self.sh("ip -br link");
        let ours = links
            .lines()
            .filter(|line| line.contains("crs-") || line.contains("crisp") || line.contains("cni"));
        assert_eq!(ours.collect::<Vec<_>>(), Vec::<&str>::new());
        assert_eq!(self.sh("nft list ruleset"), "");
        let ips = self.run().join("network/ips");
        if ips.exists() {
            assert_eq!(
                std::fs::read_dir(ips).expect("readable").count(),
                0,
                "an address was lost"
            );
        }
    }
}

/// The error with its causes.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    text
}

pub fn port(protocol: Protocol, host_port: u16, container_port: u16) -> PortMapping {
    PortMapping {
        protocol,
        container_port,
        host_port,
        host_ip: None,
    }
}

/// Serves `text`, and the address of whoever asks, to each TCP connection to `address` of the pod.
pub fn serve(pod: &Pod, address: &str, text: &'static str) {
    let netns = netns::open(&pod.attachment.netns).expect("the pod lives");
    let listener = netns::run_in(&netns, || TcpListener::bind(address)).expect("the address is there");
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let _ = stream.write_all(text.as_bytes());
        }
    });
}

/// What `address` answers to a TCP connection from inside of `netns`.
pub fn answers_from(netns: &File, address: &str) -> Option<String> {
    let address: SocketAddr = address.parse().expect("an address");
    netns::run_in(netns, || {
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })
    .ok()
}

/// As [`answers_from`], from inside of the pod.
pub fn answers(pod: &Pod, address: &str) -> Option<String> {
    answers_from(&netns::open(&pod.attachment.netns).expect("the pod lives"), address)
}

/// A UDP socket inside of `netns`.
pub fn udp(netns: &File, address: &str) -> UdpSocket {
    let socket = netns::run_in(netns, || UdpSocket::bind(address)).expect("the address is there");
    socket
        .set_read_timeout(Some(Duration::from_millis(500)))
        .expect("a deadline");
    socket
}
