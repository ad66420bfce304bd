//! Figures of real cgroups, files and network namespaces, in the CRI's messages. Needs root.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crisp::cri;
use crisp::stats::{Collector, ContainerTarget, NetworkTarget, PodTarget};
use crisp::sys::cgroup::{Cgroup, Hierarchy, Resources};

/// A pod `/crisp-test-<pid>-<name>` with a busy container, a quiet one and a pause process; gone when dropped.
struct Pod {
    cgroup: Cgroup,
    targets: PodTarget,
    processes: Vec<Child>,
    layers: tempfile::TempDir,
}

impl Pod {
    fn new(name: &str) -> Self {
        let hierarchy = Hierarchy::detect().unwrap();
        let path = format!("/crisp-test-{}-{name}", std::process::id());
        let cgroup = Cgroup::create(&hierarchy, &path).expect("needs root");
        let create = |name: &str| Cgroup::create(&hierarchy, &format!("{path}/{name}")).unwrap();
        // In memory: the tests make many files, and a disk may be busy.
        let layers = tempfile::tempdir_in("/dev/shm").unwrap();
        let target = |name: &str| ContainerTarget {
            id: name.to_owned(),
            cgroup: create(name),
            writable_layer: Some(layers.path().join(name)),
            attributes: cri::ContainerAttributes {
                id: name.to_owned(),
                ..Default::default()
            },
        };
        let containers = vec![target("busy"), target("quiet")];
        for container in &containers {
            std::fs::create_dir(container.writable_layer.as_ref().unwrap()).unwrap();
        }
        let targets = PodTarget {
            id: format!("pod-{name}"),
            cgroup: Some(cgroup.clone()),
            own_cgroup: create("pause"),
            network: None,
            containers,
            attributes: cri::PodSandboxAttributes {
                id: format!("pod-{name}"),
                ..Default::default()
            },
        };
        let mut pod = Self {
            cgroup,
            targets,
            processes: Vec::new(),
            layers,
        };
        pod.run(&["/bin/sh", "-c", "while :; do :; done"], "busy");
        pod.run(&["/bin/sleep", "1000"], "quiet");
        // As in a scope of systemd's, where the pod's monitor is in its cgroup: none of its processes.
        let monitor = Command::new("/bin/sleep").arg("1000").spawn().unwrap();
        create("monitor").add(i32::try_from(monitor.id()).unwrap()).unwrap();
        pod.processes.push(monitor);
        // The network namespace is there when eth0 is.
        let netns = "ip link add eth0 type veth peer name net1 && ip link set eth0 up && ip link set net1 up && exec sleep 1000";
        let pause = pod.run(&["/usr/bin/unshare", "--net", "/bin/sh", "-c", netns], "pause");
        pod.targets.network = Some(NetworkTarget {
            pid: pause,
            netns: format!("/proc/{pause}/ns/net").into(),
        });
        wait_until("eth0", || {
            std::fs::read_to_string(format!("/proc/{pause}/net/dev"))
                .unwrap()
                .contains("eth0")
                && std::fs::read_to_string(format!("/proc/{pause}/cmdline"))
                    .unwrap()
                    .starts_with("sleep")
        });
        pod
    }

    fn run(&mut self, command: &[&str], cgroup: &str) -> i32 {
        let child = Command::new(command[0])
            .args(&command[1..])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let found = self
            .targets
            .containers
            .iter()
            .map(|c| &c.cgroup)
            .chain([&self.targets.own_cgroup]);
        found
            .into_iter()
            .find(|c| c.path().ends_with(cgroup))
            .unwrap()
            .add(pid)
            .unwrap();
        self.processes.push(child);
        pid
    }

    fn busy(&self) -> ContainerTarget {
        self.targets.containers[0].clone()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let left = self.cgroup.kill();
        for process in &mut self.processes {
            let reaped = process.wait();
            assert!(reaped.is_ok() || std::thread::panicking());
        }
        let removed = self.cgroup.remove();
        if !std::thread::panicking() {
            assert!(left.unwrap().is_empty());
            removed.unwrap();
        }
    }
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn value(number: &Option<cri::UInt64Value>) -> u64 {
    number.as_ref().expect("the field is filled").value
}

/// The figures of `target`, once its layer is known: on a slow machine a first answer may come without it.
async fn with_layer(collector: &Arc<Collector>, target: &ContainerTarget) -> cri::ContainerStats {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let stats = collector.container(target.clone()).await.unwrap();
        if stats.writable_layer.is_some() {
            return stats;
        }
        assert!(Instant::now() < deadline, "never measured");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn collector() -> Arc<Collector> {
    Collector::new(Path::new("/var/lib/crisp/images"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_has_all_its_figures() {
    let pod = Pod::new("container");
    let target = pod.busy();
    let limits = Resources {
        memory_limit_bytes: Some(128 << 20),
        cpu_quota_us: Some(50_000),
        cpu_period_us: Some(100_000),
        ..Default::default()
    };
    target.cgroup.apply(&limits).unwrap();
    std::fs::write(target.writable_layer.as_ref().unwrap().join("file"), vec![1; 1 << 20]).unwrap();
    let collector = collector();

    let first = collector.container(target.clone()).await.unwrap();
    assert_eq!(first.attributes.as_ref().unwrap().id, "busy");
    assert_eq!(
        first.cpu.as_ref().unwrap().usage_nano_cores,
        None,
        "one reading is no rate"
    );
    tokio::time::sleep(Duration::from_millis(500)).await;
    let second = with_layer(&collector, &target).await;
    let (cpu, memory) = (second.cpu.as_ref().unwrap(), second.memory.as_ref().unwrap());
    assert!(value(&cpu.usage_core_nano_seconds) > value(&first.cpu.as_ref().unwrap().usage_core_nano_seconds));
    assert!(cpu.timestamp > first.cpu.as_ref().unwrap().timestamp);
    // Half a core, and the machine has other things to do.
    let rate = value(&cpu.usage_nano_cores);
    assert!((1_000_000..900_000_000).contains(&rate), "{rate}");
    assert!(value(&memory.working_set_bytes) <= value(&memory.usage_bytes));
    assert_eq!(
        value(&memory.available_bytes),
        (128 << 20) - value(&memory.working_set_bytes)
    );
    assert!(memory.rss_bytes.is_some() && memory.page_faults.is_some() && memory.major_page_faults.is_some());
    let layer = second.writable_layer.as_ref().unwrap();
    assert_eq!(layer.fs_id.as_ref().unwrap().mountpoint, "/var/lib/crisp/images");
    assert!(value(&layer.used_bytes) >= 1 << 20);
    assert_eq!(value(&layer.inodes_used), 2);
    if Path::new("/proc/pressure/cpu").exists() {
        assert!(cpu.psi.as_ref().unwrap().some.as_ref().unwrap().total > 0);
        assert!(memory.psi.is_some() && second.io.as_ref().unwrap().psi.is_some());
    }

    // Asked again at once, it is no division by next to nothing.
    let again = value(&collector.container(target).await.unwrap().cpu.unwrap().usage_nano_cores);
    assert!((1_000_000..900_000_000).contains(&again), "{again}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_has_its_network_its_processes_and_its_containers() {
    let pod = Pod::new("pod");
    let collector = collector();
    collector.pod(pod.targets.clone()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let stats = collector.pod(pod.targets.clone()).await.unwrap();
    assert_eq!(stats.attributes.unwrap().id, "pod-pod");
    let linux = stats.linux.unwrap();
    assert_eq!(linux.containers.len(), 2);
    assert_eq!(value(&linux.process.unwrap().process_count), 3);
    let cpu = linux.cpu.unwrap();
    assert!(value(&cpu.usage_core_nano_seconds) > 0 && value(&cpu.usage_nano_cores) > 0);
    assert!(value(&linux.memory.unwrap().usage_bytes) > 0);
    let network = linux.network.unwrap();
    assert!(network.timestamp > 0);
    let eth0 = network.default_interface.unwrap();
    assert_eq!(eth0.name, "eth0");
    assert!(eth0.rx_bytes.is_some() && eth0.rx_errors.is_some() && eth0.tx_errors.is_some());
    // IPv6 announces itself on an interface that comes up.
    assert!(eth0.tx_bytes.is_some());
    assert_eq!(
        network.interfaces.iter().map(|i| i.name.as_str()).collect::<Vec<_>>(),
        ["net1"]
    );

    // Another pod's namespace under the same pid is not taken for this one's.
    let mut moved = pod.targets.clone();
    moved.network.as_mut().unwrap().netns = "/proc/self/ns/net".into();
    assert!(collector.pod(moved).await.unwrap().linux.unwrap().network.is_none());

    // Without a cgroup of its own a pod is the sum of its parts.
    let mut parts = pod.targets.clone();
    (parts.id, parts.cgroup) = ("parts".to_owned(), None);
    collector.pod(parts.clone()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(150)).await;
    let linux = collector.pod(parts).await.unwrap().linux.unwrap();
    assert_eq!(value(&linux.process.unwrap().process_count), 3);
    assert!(value(&linux.cpu.unwrap().usage_nano_cores) > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_ended_has_its_layer_only() {
    let pod = Pod::new("ended");
    let collector = collector();
    let mut target = pod.busy();
    collector.container(target.clone()).await.unwrap();
    let hierarchy = Hierarchy::detect().unwrap();
    target.cgroup = Cgroup::open(&hierarchy, "/crisp-test-never-made").unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    target.id = "ended".to_owned();
    let stats = with_layer(&collector, &target).await;
    assert!(stats.cpu.is_none() && stats.memory.is_none() && stats.writable_layer.is_some());
    // Nor does it keep a list from being answered.
    let listed = collector.containers(vec![target, pod.busy()]).await;
    assert_eq!(listed.len(), 2);
    assert!(listed[1].cpu.is_some());
}

/// A walk over a large layer takes as long as it takes; a list does not wait for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_layer_delays_no_answer() {
    let pod = Pod::new("large");
    let layer = pod.layers.path().join("busy");
    for i in 0..200 {
        let dir = layer.join(format!("d{i}"));
        std::fs::create_dir(&dir).unwrap();
        for j in 0..100 {
            std::fs::File::create(dir.join(format!("f{j}"))).unwrap();
        }
    }
    let collector = collector();
    let started = Instant::now();
    let first = collector.containers(vec![pod.busy()]).await;
    let took = started.elapsed();
    println!(
        "first answer in {took:?}, layer known: {}",
        first[0].writable_layer.is_some()
    );
    assert!(took < Duration::from_millis(500), "{took:?}");
    let layer = with_layer(&collector, &pod.busy()).await.writable_layer.unwrap();
    assert_eq!(value(&layer.inodes_used), 1 + 200 + 20_000);
}
