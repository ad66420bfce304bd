//! Limits and devices of containers on cgroup v2 alone, whichever the driver: every kind, and that it holds.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crisp::cri::{self, ContainerState};

use crate::fixture::{Container, OwnWorld, ask, eventually, resources, security, world};

const MIB: i64 = 1 << 20;

fn file(container: &Container, name: &str) -> String {
    let cgroup = container.info()["cgroup"].as_str().unwrap().to_owned();
    let path = format!("/sys/fs/cgroup{cgroup}/{name}");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    text.trim().to_owned()
}

fn check(container: &Container, expected: &[(&str, &str)], when: &str) {
    for (name, value) in expected {
        assert_eq!(file(container, name), *value, "{name} {when}");
    }
}

fn update(container: &Container, change: cri::LinuxContainerResources) {
    let request = cri::UpdateContainerResourcesRequest {
        container_id: container.id.clone(),
        linux: Some(change),
        ..Default::default()
    };
    ask(container.world.runtime().update_container_resources(request)).unwrap();
}

fn unified(settings: &[(&str, &str)]) -> BTreeMap<String, String> {
    let pairs = settings
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    pairs.collect()
}

#[test]
fn every_kind_of_limit_is_set_updated_and_kept_over_the_daemons_death() {
    let own = OwnWorld::new("v2-limits");
    let pod = own.0.pod("v2-limits");
    let container = pod.idle("c", |config| {
        *resources(config) = cri::LinuxContainerResources {
            cpu_period: 50_000,
            cpu_quota: 25_000,
            cpu_shares: 2048,
            memory_limit_in_bytes: 64 * MIB,
            memory_swap_limit_in_bytes: 96 * MIB,
            cpuset_cpus: "0".into(),
            cpuset_mems: "0".into(),
            hugepage_limits: vec![cri::HugepageLimit {
                page_size: "2MB".into(),
                limit: 4 << 20,
            }],
            unified: unified(&[
                ("memory.high", "50331648"),
                ("memory.oom.group", "1"),
                ("pids.max", "77"),
            ]),
            ..Default::default()
        };
    });
    let first = [
        ("cpu.max", "25000 50000"),
        ("cpu.weight", "174"),
        ("cpuset.cpus.effective", "0"),
        ("cpuset.mems.effective", "0"),
        ("memory.max", "67108864"),
        // What is left of the sum when memory is full.
        ("memory.swap.max", "33554432"),
        ("memory.high", "50331648"),
        ("memory.oom.group", "1"),
        ("pids.max", "77"),
        ("hugetlb.2MB.max", "4194304"),
        ("hugetlb.2MB.rsvd.max", "4194304"),
    ];
    check(&container, &first, "at first");
    update(
        &container,
        cri::LinuxContainerResources {
            cpu_shares: 512,
            memory_limit_in_bytes: 80 * MIB,
            memory_swap_limit_in_bytes: 80 * MIB,
            hugepage_limits: vec![cri::HugepageLimit {
                page_size: "2MB".into(),
                limit: 8 << 20,
            }],
            unified: unified(&[("memory.high", "max"), ("pids.max", "88")]),
            ..Default::default()
        },
    );
    let mut expected: BTreeMap<_, _> = first.into();
    expected.extend([
        ("cpu.weight", "59"),
        ("memory.max", "83886080"),
        ("memory.swap.max", "0"),
        ("memory.high", "max"),
        ("pids.max", "88"),
        ("hugetlb.2MB.max", "8388608"),
        ("hugetlb.2MB.rsvd.max", "8388608"),
    ]);
    let expected: Vec<_> = expected.into_iter().collect();
    check(&container, &expected, "after an update");
    kill_daemon(&own);
    own.0.restart();
    check(&container, &expected, "for the next daemon");
}

fn kill_daemon(own: &OwnWorld) {
    let pid = i32::try_from(own.0.daemon_pid()).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL).expect("it is ours");
}

#[test]
fn a_kill_for_memory_while_the_daemon_is_dead_is_told_by_the_next_one() {
    let own = OwnWorld::new("v2-oom");
    let gate = own.0.directory("gate");
    let pod = own.0.pod("v2-oom");
    let start = |name: &str, then: &str| {
        let script = format!("while [ ! -e /gate/go ]; do sleep 0.1; done; {then}");
        let container = pod.start(name, &["sh", "-c", &script], |config| {
            resources(config).memory_limit_in_bytes = 32 * MIB;
            config.mounts = vec![cri::Mount {
                host_path: gate.display().to_string(),
                container_path: "/gate".to_owned(),
                ..Default::default()
            }];
        });
        let pid = container.pid();
        (container, pid)
    };
    let cases = [
        (start("eats", "exec tail /dev/zero"), (137, "OOMKilled")),
        (start("dies", "kill -KILL $$; exit 137"), (137, "Error")),
        (start("child", "tail /dev/zero; exit 5"), (5, "Error")),
    ];
    kill_daemon(&own);
    fs::write(gate.join("go"), "").unwrap();
    for ((_, pid), _) in &cases {
        eventually("its end", || {
            (!Path::new(&format!("/proc/{pid}")).exists()).then_some(())
        });
    }
    own.0.restart();
    for ((container, _), expected) in &cases {
        let status = container.status();
        assert_eq!(status.state(), ContainerState::ContainerExited);
        assert_eq!((status.exit_code, status.reason.as_str()), *expected);
    }
}

/// A disk of the node's that no container was given.
fn disk() -> String {
    let disks = fs::read_dir("/sys/block").unwrap();
    let mut numbers = disks.filter_map(|disk| fs::read_to_string(disk.ok()?.path().join("dev")).ok());
    let number = numbers.next().expect("a node has a disk");
    number.trim().replace(':', " ")
}

/// Nothing but the program of the cgroup stands in the way: capabilities, seccomp and AppArmor do not.
#[test]
fn devices_are_what_the_container_was_given_with_the_rights_it_was_given() {
    const UNCONFINED: i32 = 1;
    let own = OwnWorld::new("v2-devices");
    let pod = own.0.pod_with("v2-devices", |config| {
        crate::fixture::sandbox_security(config).privileged = true
    });
    let kmsg = |path: &str, permissions: &str| cri::Device {
        host_path: "/dev/kmsg".to_owned(),
        container_path: path.to_owned(),
        permissions: permissions.to_owned(),
    };
    let start = |name: &str, devices: Vec<cri::Device>, privileged: bool| {
        pod.idle(name, |config| {
            config.devices = devices;
            security(config).privileged = privileged;
            let free = || {
                Some(cri::SecurityProfile {
                    profile_type: UNCONFINED,
                    localhost_ref: String::new(),
                })
            };
            (security(config).seccomp, security(config).apparmor) = (free(), free());
            security(config).capabilities = Some(cri::Capability {
                add_capabilities: vec!["ALL".to_owned()],
                ..Default::default()
            });
        })
    };
    let (none, reads) = (
        start("none", vec![], false),
        start("reads", vec![kmsg("/dev/kmsg", "r")], false),
    );
    let (writes, both) = (
        start("writes", vec![kmsg("/dev/kmsg", "w")], false),
        start("both", vec![kmsg("/dev/kmsg", "rw")], false),
    );
    let all = start("all", vec![], true);
    // Nodes of the container's own making: which device it is counts, not whose node.
    let nodes = format!(
        "mknod /tmp/kmsg c 1 11; mknod /tmp/disk b {}; mknod /tmp/null c 1 3",
        disk()
    );
    for container in [&none, &reads, &writes, &both, &all] {
        container.sh(&nodes);
    }
    let hold = |when: &str| {
        for (container, name, read, write, disk) in [
            (&none, "none", false, false, false),
            (&reads, "reads", true, false, false),
            (&writes, "writes", false, true, false),
            (&both, "both", true, true, false),
            (&all, "all", true, true, true),
        ] {
            for (script, expected) in [
                (": < /tmp/kmsg", read),
                (": >> /tmp/kmsg", write),
                (": < /tmp/disk", disk),
                (": < /tmp/null && : >> /tmp/null", true),
            ] {
                let done = container.exec(&["sh", "-c", script]);
                assert_eq!(done.code == 0, expected, "{name}, {script}, {when}: {done:?}");
                let refused = expected || done.stderr.contains("Operation not permitted");
                assert!(refused, "{name}, {script}, {when}: {done:?}");
            }
        }
    };
    hold("at first");
    for container in [&none, &all] {
        update(
            container,
            cri::LinuxContainerResources {
                memory_limit_in_bytes: 64 * MIB,
                ..Default::default()
            },
        );
    }
    kill_daemon(&own);
    own.0.restart();
    hold("after an update and the daemon's death");
}

#[test]
fn the_first_process_is_held_to_its_devices_too() {
    let pod = world().pod("v2-first");
    let script = format!(
        "mknod /tmp/disk b {}; head -c 1 /tmp/disk > /dev/null && exit 3; exit 4",
        disk()
    );
    let container = pod.start("c", &["sh", "-c", &script], |_| {});
    assert_eq!(container.exited().exit_code, 4, "{:?}", container.log());
    assert!(container.log().concat().contains("Operation not permitted"));
}
