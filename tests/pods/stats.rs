//! Figures that are true: they grow with what they measure.

use std::time::Duration;

use crisp::cri::{self, ContainerStats, PodSandboxStats};
use tonic::Code;

use crate::fixture::{Container, Pod, ask, eventually, resources, world};

fn of(container: &Container) -> ContainerStats {
    let request = cri::ContainerStatsRequest {
        container_id: container.id.clone(),
    };
    ask(world().runtime().container_stats(request)).unwrap().stats.unwrap()
}

fn of_pod(pod: &Pod) -> PodSandboxStats {
    let request = cri::PodSandboxStatsRequest {
        pod_sandbox_id: pod.id.clone(),
    };
    ask(world().runtime().pod_sandbox_stats(request))
        .unwrap()
        .stats
        .unwrap()
}

fn cpu(stats: &ContainerStats) -> u64 {
    stats.cpu.as_ref().unwrap().usage_core_nano_seconds.unwrap().value
}

fn working_set(stats: &ContainerStats) -> u64 {
    stats.memory.as_ref().unwrap().working_set_bytes.unwrap().value
}

/// A second of work; more of it on a machine that does a lot else, until it counts.
fn burn(container: &Container) {
    let before = cpu(&of(container));
    eventually("work that counts", || {
        let script = "while :; do :; done";
        assert_eq!(container.exec(&["timeout", "1", "sh", "-c", script]).code, 143);
        (cpu(&of(container)) - before > 600_000_000).then_some(())
    });
}

#[test]
fn a_containers_figures_grow_with_its_work() {
    let pod = world().pod("stats");
    let c = pod.idle("c", |config| {
        config.labels.insert("of".into(), "stats".into());
        resources(config).memory_limit_in_bytes = 512 << 20;
    });
    let before = of(&c);
    let attributes = before.attributes.clone().unwrap();
    assert_eq!(
        (attributes.id.as_str(), attributes.labels["of"].as_str()),
        (c.id.as_str(), "stats")
    );
    assert_eq!(attributes.metadata.unwrap().name, "c");
    assert!(before.cpu.as_ref().unwrap().timestamp > 0 && before.memory.as_ref().unwrap().timestamp > 0);
    // A second of work, 30 MB of files of the container's own, 40 MB of memory.
    burn(&c);
    c.sh("for n in 1 2 3; do dd if=/dev/urandom of=/tmp/f$n bs=1M count=10 2>/dev/null; done; mkdir /tmp/d; touch /tmp/d/1 /tmp/d/2");
    c.sh("dd if=/dev/zero of=/dev/shm/x bs=1M count=40 2>/dev/null");
    let after = of(&c);
    let burnt = cpu(&after) - cpu(&before);
    assert!(
        (500_000_000..10_000_000_000).contains(&burnt),
        "{burnt} ns of cpu for a second of work"
    );
    let grown = working_set(&after).saturating_sub(working_set(&before));
    assert!(
        (30 << 20..400 << 20).contains(&grown),
        "{grown} bytes of memory for 40 MiB"
    );
    assert!(after.memory.as_ref().unwrap().usage_bytes.unwrap().value >= working_set(&after));
    // Measured in the background: it may be some seconds old, or yet to come.
    let (layer, bytes) = eventually("the writable layer is measured", || {
        let layer = of(&c).writable_layer?;
        let bytes = layer.used_bytes?.value;
        (bytes > 30_000_000).then_some((layer, bytes))
    });
    let inodes = layer.inodes_used.unwrap().value;
    assert!(
        bytes < 60_000_000 && (6..100).contains(&inodes),
        "{bytes} bytes, {inodes} inodes"
    );
    let mountpoint = layer.fs_id.unwrap().mountpoint;
    assert!(std::path::Path::new(&mountpoint).is_dir(), "{mountpoint}");
    if let Some(dir) = world().if_crisp() {
        assert!(
            dir.starts_with(&mountpoint) || mountpoint.starts_with(dir.to_str().unwrap()),
            "{mountpoint}"
        );
    }
    // The rate, once there are two looks at it.
    let rate = || {
        burn(&c);
        of(&c)
            .cpu
            .unwrap()
            .usage_nano_cores
            .map(|rate| rate.value)
            .filter(|rate| *rate > 0)
    };
    let rate = eventually("a rate of cpu use", rate);
    assert!((10_000_000..4_000_000_000).contains(&rate), "{rate} nanocores");
}

#[test]
fn a_pods_figures_are_the_sum_and_the_network() {
    let pod = world().pod("stats-pod");
    let (a, b) = (pod.idle("a", |_| {}), pod.idle("b", |_| {}));
    let before = of_pod(&pod);
    let linux = before.linux.clone().unwrap();
    assert_eq!(linux.containers.len(), 2);
    // Those that made the containers may be on their way out still.
    let processes = || {
        of_pod(&pod)
            .linux
            .unwrap()
            .process
            .unwrap()
            .process_count
            .unwrap()
            .value
    };
    eventually("two containers and pause", || (processes() == 3).then_some(()));
    let interface = |stats: &PodSandboxStats| {
        let network = stats
            .linux
            .as_ref()
            .unwrap()
            .network
            .clone()
            .unwrap()
            .default_interface
            .unwrap();
        assert_eq!(network.name, "eth0");
        (network.rx_bytes.unwrap().value, network.tx_bytes.unwrap().value)
    };
    let (rx, tx) = interface(&before);
    a.sh(&format!(
        "ping -c 3 -i 0.2 -s 1000 {} > /dev/null",
        crate::fixture::HOST_ADDRESS
    ));
    burn(&b);
    std::thread::sleep(Duration::from_millis(200));
    let after = of_pod(&pod);
    let (rx, tx) = (interface(&after).0 - rx, interface(&after).1 - tx);
    assert!(
        (3_000..100_000).contains(&rx) && (3_000..100_000).contains(&tx),
        "{rx} {tx} for 3 pings of 1000"
    );
    let cpu_of = |stats: &PodSandboxStats| {
        stats
            .linux
            .as_ref()
            .unwrap()
            .cpu
            .as_ref()
            .unwrap()
            .usage_core_nano_seconds
            .unwrap()
            .value
    };
    assert!(cpu_of(&after) - cpu_of(&before) > 500_000_000);
    let parts: u64 = after.linux.as_ref().unwrap().containers.iter().map(cpu).sum();
    assert!(cpu_of(&after) >= parts, "a pod uses less than its containers");
    assert!(after.linux.unwrap().memory.unwrap().working_set_bytes.unwrap().value > 0);
    assert_eq!(after.attributes.unwrap().metadata.unwrap().name, "stats-pod");
}

#[test]
fn a_pod_on_the_nodes_network_has_no_network_of_its_own_to_count() {
    let pod = world().pod_with("stats-node", |config| {
        crate::fixture::options(config).network = cri::NamespaceMode::Node.into()
    });
    assert!(of_pod(&pod).linux.unwrap().network.is_none());
}

#[test]
fn who_is_not_there_has_no_figures() {
    let request = cri::ContainerStatsRequest {
        container_id: "ffff".repeat(16),
    };
    assert_eq!(
        ask(world().runtime().container_stats(request)).unwrap_err().code(),
        Code::NotFound
    );
    let request = cri::PodSandboxStatsRequest {
        pod_sandbox_id: "ffff".repeat(16),
    };
    assert_eq!(
        ask(world().runtime().pod_sandbox_stats(request)).unwrap_err().code(),
        Code::NotFound
    );
}

#[test]
fn pressure_and_swap_are_told_where_the_kernel_counts_them() {
    let pod = world().pod("stats-pressure");
    let c = pod.idle("c", |config| {
        let limits = resources(config);
        limits.memory_limit_in_bytes = 64 << 20;
        limits.cpu_period = 100_000;
        limits.cpu_quota = 20_000;
    });
    burn(&c);
    let (stats, of_pod) = (of(&c), of_pod(&pod).linux.unwrap());
    let (cpu, memory) = (stats.cpu.unwrap(), stats.memory.unwrap());
    let psi = [cpu.psi, memory.psi, stats.io.and_then(|io| io.psi)];
    let pod_psi = [
        of_pod.cpu.unwrap().psi,
        of_pod.memory.unwrap().psi,
        of_pod.io.and_then(|io| io.psi),
    ];
    let counted = std::path::Path::new("/proc/pressure/cpu").exists();
    assert_eq!(psi.map(|psi| psi.is_some()), [counted; 3]);
    assert_eq!(pod_psi.map(|psi| psi.is_some()), [counted; 3]);
    if let Some(psi) = psi[0] {
        let waited = psi.some.unwrap().total;
        assert!(
            waited > 100_000_000,
            "a second at a fifth of a processor, and {waited} ns waited"
        );
    }
    let cgroup = c.cgroup();
    let counts_swap = [
        format!("/sys/fs/cgroup{cgroup}/memory.swap.current"),
        format!("/sys/fs/cgroup/memory{cgroup}/memory.memsw.usage_in_bytes"),
    ];
    let swap = stats
        .swap
        .map(|swap| swap.swap_available_bytes.map(|bytes| bytes.value));
    // A memory limit leaves no room for swap.
    let expected = counts_swap
        .iter()
        .any(|path| std::path::Path::new(path).exists())
        .then_some(Some(0));
    assert_eq!(swap, expected);
    assert_eq!(
        memory.available_bytes.unwrap().value + memory.working_set_bytes.unwrap().value,
        64 << 20
    );
}

/// Where the daemon has a directory of one of these cgroups open.
fn open_directories(names: &[&str]) -> Vec<String> {
    let open = std::fs::read_dir(format!("/proc/{}/fd", world().daemon_pid())).unwrap();
    open.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok())
        .map(|path| path.to_string_lossy().into_owned())
        .filter(|path| path.contains("cgroup") && names.iter().any(|name| path.contains(name)))
        .collect()
}

/// A kubelet that asks for the figures of all pods left the daemon with a dozen open directories for each pod and
/// container that had ever been: the collector was never told what had been removed.
#[test]
fn what_was_removed_leaves_no_open_cgroup_behind() {
    let pod = world().pod("stats-forgotten");
    let (kept, removed) = (pod.idle("kept", |_| {}), pod.idle("removed", |_| {}));
    of_pod(&pod);
    assert!(!open_directories(&[&removed.id]).is_empty(), "nothing is remembered");
    removed.stop(0).unwrap();
    removed.remove().unwrap();
    assert_eq!(open_directories(&[&removed.id]), Vec::<String>::new());
    assert!(!open_directories(&[&kept.id]).is_empty(), "too much is forgotten");
    let (pod_id, kept_id) = (pod.id.clone(), kept.id.clone());
    pod.try_stop().unwrap();
    pod.try_remove().unwrap();
    assert_eq!(
        open_directories(&[&kept_id, &pod_id, "stats-forgotten"]),
        Vec::<String>::new()
    );
}
