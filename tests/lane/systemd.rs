//! systemd as the cgroup driver.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crisp::cri::{self, ContainerState};
use tonic::Code;

use crate::fixture::{
    Container, OwnWorld, Pod, ask, cgroup_driver, eventually, linux, resources, sandbox_linux, world,
};

const ROOT: &str = "/sys/fs/cgroup";

fn systemctl(words: &[&str]) -> String {
    let done = Command::new("systemctl").args(words).output().expect("systemd's own");
    assert!(done.status.success(), "systemctl {words:?}: {done:?}");
    String::from_utf8_lossy(&done.stdout).into_owned()
}

/// Properties of a unit, as `systemctl show` has them.
fn properties(unit: &str) -> BTreeMap<String, String> {
    let shown = systemctl(&["show", unit]);
    let split = shown.lines().filter_map(|line| line.split_once('='));
    split.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

/// A slice in one of its test's own, which is stopped when dropped: a start in a slice that somebody else stops is refused.
struct Slice(String);

impl Slice {
    fn new(name: &str) -> Self {
        assert_eq!(cgroup_driver(), "systemd", "CRISP_TEST_CGROUP_DRIVER");
        Self(format!("crisptest{}{name}-pods.slice", std::process::id()))
    }

    fn cgroup(&self) -> String {
        let (above, _) = self.0.split_once('-').unwrap();
        format!("/{above}.slice/{}", self.0)
    }

    fn pod(&self, name: &str) -> Pod {
        world().pod_with(name, |config| sandbox_linux(config).cgroup_parent = self.0.clone())
    }
}

impl Drop for Slice {
    fn drop(&mut self) {
        let (above, _) = self.0.split_once('-').unwrap();
        let _ = Command::new("systemctl")
            .args(["stop", &format!("{above}.slice")])
            .status();
    }
}

fn scope_of(pod: &Pod) -> String {
    format!("crisp-{}.scope", pod.id)
}

fn cgroup_of(pid: i64) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("it lives");
    text.trim_end().strip_prefix("0::").expect("cgroup v2").to_owned()
}

fn directory(cgroup: &str) -> PathBuf {
    Path::new(ROOT).join(cgroup.trim_start_matches('/'))
}

fn file(container: &Container, name: &str) -> String {
    let path = directory(container.info()["cgroup"].as_str().unwrap()).join(name);
    fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        .trim()
        .to_owned()
}

fn is_gone(scope: &str, at: &str) {
    assert!(!directory(at).exists(), "{at} is still there");
    // The unit follows its cgroup.
    eventually("systemd forgets the scope", || {
        (properties(scope)["LoadState"] == "not-found").then_some(())
    });
}

#[test]
fn the_driver_is_told_to_the_kubelet() {
    let config = ask(world().runtime().runtime_config(cri::RuntimeConfigRequest {})).unwrap();
    assert_eq!(config.linux.unwrap().cgroup_driver(), cri::CgroupDriver::Systemd);
}

#[test]
fn a_pod_is_one_scope_in_the_slice_that_is_named() {
    let slice = Slice::new("burstable");
    let pod = slice.pod("scope");
    let (one, two) = (pod.idle("one", |_| {}), pod.idle("two", |_| {}));
    let scope = scope_of(&pod);
    let at = format!("{}/{scope}", slice.cgroup());
    assert_eq!(cgroup_of(pod.pid()), format!("{at}/{}", pod.id));
    assert_eq!(
        cgroup_of(pod.info()["monitorPid"].as_i64().unwrap()),
        format!("{at}/monitor")
    );
    for container in [&one, &two] {
        assert_eq!(cgroup_of(container.pid()), format!("{at}/{}", container.id));
    }
    let shown = properties(&scope);
    for (key, value) in [
        ("ActiveState", "active"),
        ("Slice", slice.0.as_str()),
        ("Delegate", "yes"),
        ("TasksMax", "infinity"),
        ("DefaultDependencies", "no"),
        ("CollectMode", "inactive-or-failed"),
        ("ControlGroup", at.as_str()),
    ] {
        assert_eq!(shown[key], value, "{key}");
    }
    // Of a pod with two containers systemd knows one unit.
    let units = systemctl(&["list-units", "--plain", "--no-legend", "--type=scope"]);
    let of_slice = units
        .lines()
        .filter(|line| line.contains(&pod.id) || line.contains(&one.id));
    assert_eq!(of_slice.count(), 1, "{units}");
    // An exec is in its container's cgroup.
    assert_eq!(one.sh("cat /proc/self/cgroup | head -1").contains("exec-") as u8, 1);
    one.stop(0).unwrap();
    one.remove().unwrap();
    assert!(!directory(&format!("{at}/{}", one.id)).exists());
    drop(pod);
    is_gone(&scope, &at);
}

#[test]
fn a_pod_that_names_no_slice_is_in_the_systems() {
    let pod = world().pod("no-slice");
    let at = format!("/system.slice/{}", scope_of(&pod));
    assert_eq!(cgroup_of(pod.pid()), format!("{at}/{}", pod.id));
    // It is gone when the stop is answered, though containers may not have been removed.
    let container = pod.idle("c", |_| {});
    pod.try_stop().unwrap();
    is_gone(&scope_of(&pod), &at);
    assert_eq!(container.status().state(), ContainerState::ContainerExited);
}

#[test]
fn what_is_no_slice_is_refused_and_leaves_nothing() {
    for bad in ["/kubepods/pod1", "pod1", "a--b.slice", "../a.slice", "a.scope"] {
        let refused = world().try_pod("bad-slice", |config| {
            sandbox_linux(config).cgroup_parent = bad.to_owned()
        });
        let error = refused.err().unwrap_or_else(|| panic!("{bad} was taken"));
        assert_eq!(error.code(), Code::InvalidArgument, "{bad}");
        assert!(error.message().contains(bad), "{error}");
    }
}

#[test]
fn limits_outlive_a_reload_of_systemd() {
    const MIB: i64 = 1 << 20;
    let slice = Slice::new("limits");
    let pod = slice.pod("reload");
    let container = pod.idle("c", |config| {
        *resources(config) = cri::LinuxContainerResources {
            cpu_period: 50_000,
            cpu_quota: 25_000,
            cpu_shares: 2048,
            memory_limit_in_bytes: 64 * MIB,
            memory_swap_limit_in_bytes: 64 * MIB,
            cpuset_cpus: "0".into(),
            unified: [
                ("memory.high", "50331648"),
                ("pids.max", "77"),
                ("io.weight", "default 50"),
            ]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
            ..Default::default()
        };
    });
    let expected = [
        ("cpu.max", "25000 50000"),
        ("cpu.weight", "174"),
        ("memory.max", "67108864"),
        ("memory.high", "50331648"),
        ("memory.swap.max", "0"),
        ("pids.max", "77"),
        ("cpuset.cpus", "0"),
        ("io.weight", "default 50"),
    ];
    let check = |when: &str| {
        for (name, value) in expected {
            assert_eq!(file(&container, name), value, "{name} {when}");
        }
    };
    check("at first");
    systemctl(&["daemon-reload"]);
    check("after a reload");
    // systemd writes to a slice's files whenever another unit in it comes and goes.
    drop(slice.pod("neighbour"));
    systemctl(&["set-property", "--runtime", &slice.0, "CPUWeight=50"]);
    check("after changes around it");
    let update = cri::UpdateContainerResourcesRequest {
        container_id: container.id.clone(),
        linux: Some(cri::LinuxContainerResources {
            memory_limit_in_bytes: 80 * MIB,
            ..Default::default()
        }),
        ..Default::default()
    };
    ask(world().runtime().update_container_resources(update)).unwrap();
    systemctl(&["daemon-reload"]);
    assert_eq!(file(&container, "memory.max"), (80 * MIB).to_string());
}

#[test]
fn limits_of_a_whole_pod_are_systemds_to_set() {
    let pod = world().pod("pod-limits");
    let asked = |memory| cri::UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: pod.id.clone(),
        resources: Some(cri::LinuxContainerResources {
            cpu_period: 50_000,
            cpu_quota: 25_000,
            cpu_shares: 2048,
            memory_limit_in_bytes: memory,
            ..Default::default()
        }),
        ..Default::default()
    };
    let update = |memory| ask(world().runtime().update_pod_sandbox_resources(asked(memory)));
    update(256 << 20).unwrap();
    let at = directory(&format!("/system.slice/{}", scope_of(&pod)));
    let check = |when: &str| {
        for (name, value) in [
            ("cpu.max", "25000 50000"),
            ("cpu.weight", "174"),
            ("memory.max", "268435456"),
        ] {
            assert_eq!(
                fs::read_to_string(at.join(name)).unwrap().trim(),
                value,
                "{name} {when}"
            );
        }
    };
    check("at first");
    systemctl(&["daemon-reload"]);
    check("after a reload");
    let refused = update(4096).expect_err("more is in use");
    assert!(refused.message().contains("in use"), "{refused}");
    check("after a refusal");
}

#[test]
fn every_container_that_is_killed_for_memory_says_so() {
    let slice = Slice::new("oom");
    for round in 0..4 {
        let pod = slice.pod(&format!("oom-{round}"));
        let container = pod.start("c", &["tail", "/dev/zero"], |config| {
            resources(config).memory_limit_in_bytes = 32 << 20;
            linux(config).resources.as_mut().unwrap().memory_swap_limit_in_bytes = 32 << 20;
        });
        let status = container.exited();
        assert_eq!(
            (status.exit_code, status.reason.as_str()),
            (137, "OOMKilled"),
            "round {round}"
        );
        // The pod is not touched by it.
        assert_eq!(pod.status().state(), cri::PodSandboxState::SandboxReady);
    }
}

#[test]
fn pressure_and_use_of_the_whole_pod_are_told() {
    let slice = Slice::new("stats");
    let pod = slice.pod("stats");
    let container = pod.start("c", &["sh", "-c", "while :; do :; done"], |_| {});
    eventually("cpu time of the pod", || {
        let request = cri::PodSandboxStatsRequest {
            pod_sandbox_id: pod.id.clone(),
        };
        let stats = ask(world().runtime().pod_sandbox_stats(request)).unwrap().stats?;
        let cpu = stats.linux?.cpu?;
        assert!(cpu.psi.is_some(), "pressure figures on cgroup v2");
        (cpu.usage_core_nano_seconds?.value > 10_000_000).then_some(())
    });
    assert_eq!(container.status().state(), ContainerState::ContainerRunning);
}

#[test]
fn pods_outlive_the_daemon_and_go_with_their_scopes() {
    let own = OwnWorld::new("systemd-restart");
    let pod = own.0.pod("outlives");
    let container = pod.idle("c", |_| {});
    let (scope, pid) = (scope_of(&pod), container.pid());
    own.0.restart();
    assert_eq!(container.pid(), pid);
    assert_eq!(container.sh("echo here"), "here");
    let at = format!("/system.slice/{scope}");
    assert_eq!(cgroup_of(container.pid()), format!("{at}/{}", container.id));
    drop(pod);
    is_gone(&scope, &at);
}

#[test]
fn a_daemon_that_dies_between_the_scope_and_the_pod_leaves_neither() {
    let own = OwnWorld::new("systemd-killed");
    for point in ["run: scope made", "run: cgroup made", "run: pause made"] {
        own.0.restart_with(Some(&format!("kill@{point}")));
        let request = |name: &str| own.0.try_pod(name, |_| {});
        assert!(request("cut-short").is_err(), "the daemon died");
        own.0.restart();
        // The same request is answered by a pod, and when that is gone nothing is left of either.
        let pod = request("cut-short").expect(point);
        let id = pod.id.clone();
        drop(pod);
        eventually("no scope of either try", || {
            let units = systemctl(&["list-units", "--plain", "--no-legend", "--type=scope", "--all"]);
            let pods = fs::read_dir(own.0.crisps_dir().join("d/lib/pods")).map_or(0, |pods| pods.count());
            (pods == 0 && !units.contains(&id)).then_some(())
        });
    }
}
