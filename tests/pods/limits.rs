//! Limits: what the cgroup files say, from the start and after an update, and over a restart of the daemon.

use std::fs;
use std::path::{Path, PathBuf};

use crisp::cri::{ContainerState, HugepageLimit, LinuxContainerResources, UpdateContainerResourcesRequest};
use tonic::{Code, Status};

use crate::fixture::{Container, OwnWorld, ask, is_code, resources, says, world};
use crate::handlers::handler;

const MIB: i64 = 1 << 20;

fn is_v2() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// A file of the container's cgroup: by its controller and name on v1, by its name on v2.
fn limit(container: &Container, v1: &str, v2: &str) -> String {
    let cgroup = container.cgroup();
    let path = if is_v2() {
        PathBuf::from(format!("/sys/fs/cgroup{cgroup}/{v2}"))
    } else {
        let (controller, name) = v1.split_once('/').unwrap();
        PathBuf::from(format!("/sys/fs/cgroup/{controller}{cgroup}/{name}"))
    };
    fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        .trim()
        .to_owned()
}

fn cpu(container: &Container) -> (String, String) {
    match limit(container, "cpu/cpu.cfs_quota_us", "cpu.max") {
        both if is_v2() => both.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap(),
        quota => (quota, limit(container, "cpu/cpu.cfs_period_us", "")),
    }
}

fn shares(container: &Container) -> String {
    limit(container, "cpu/cpu.shares", "cpu.weight")
}

fn memory(container: &Container) -> String {
    limit(container, "memory/memory.limit_in_bytes", "memory.max")
}

fn update(container: &Container, change: LinuxContainerResources) -> Result<(), Status> {
    let request = UpdateContainerResourcesRequest {
        container_id: container.id.clone(),
        linux: Some(change),
        ..Default::default()
    };
    ask(container.world.runtime().update_container_resources(request)).map(drop)
}

fn told(container: &Container) -> LinuxContainerResources {
    container.status().resources.unwrap().linux.unwrap()
}

#[test]
fn every_limit_is_in_its_file_from_the_start() {
    let pod = world().pod("limits");
    let asked = LinuxContainerResources {
        cpu_period: 50_000,
        cpu_quota: 25_000,
        cpu_shares: 512,
        memory_limit_in_bytes: 64 * MIB,
        memory_swap_limit_in_bytes: 64 * MIB,
        cpuset_cpus: "0".into(),
        cpuset_mems: "0".into(),
        oom_score_adj: 500,
        ..Default::default()
    };
    let c = pod.idle("c", |config| *resources(config) = asked.clone());
    assert_eq!(cpu(&c), ("25000".into(), "50000".into()));
    assert_eq!(shares(&c), if is_v2() { "59" } else { "512" });
    assert_eq!(memory(&c), (64 * MIB).to_string());
    assert_eq!(limit(&c, "cpuset/cpuset.cpus", "cpuset.cpus"), "0");
    assert_eq!(
        c.sh("grep Cpus_allowed_list /proc/self/status | cut -f2"),
        "0",
        "exec is not held to the cpuset"
    );
    // What has no file of its own here is told in the log and not taken for a failure.
    let own = |path: &str| {
        fs::read_to_string(format!("/proc/{}/{path}", c.pid()))
            .unwrap()
            .trim()
            .to_owned()
    };
    assert_eq!(own("oom_score_adj"), "500");
    assert_eq!(c.sh("cat /proc/self/oom_score_adj"), "500", "exec has another one");
    assert_eq!(told(&c), asked);
}

#[test]
fn the_number_of_processes() {
    let pod = world().pod("pids-limit");
    let c = pod.idle("c", |config| {
        resources(config).unified.insert("pids.max".into(), "8".into());
    });
    assert_eq!(limit(&c, "pids/pids.max", "pids.max"), "8");
    let done = c.exec(&[
        "sh",
        "-c",
        "for n in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 3 & done; wait",
    ]);
    assert!(done.stderr.contains("can't fork"), "{done:?}");
}

#[test]
fn huge_pages_and_what_the_kernel_does_not_have() {
    let pod = world().pod("hugepages");
    let huge = vec![HugepageLimit {
        page_size: "2MB".into(),
        limit: 4 << 20,
    }];
    let hugetlb = Path::new("/sys/fs/cgroup/hugetlb").exists() || is_v2();
    let created = pod.try_create({
        let mut config = pod.config("c", &["sleep", "100"]);
        resources(&mut config).hugepage_limits = huge;
        config
    });
    let c = created.expect("a controller that the node does not have is no reason to refuse");
    if hugetlb {
        assert_eq!(
            limit(&c, "hugetlb/hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.max"),
            (4 << 20).to_string()
        );
    }
    let mut config = pod.config("bad", &["true"]);
    resources(&mut config).hugepage_limits = vec![HugepageLimit {
        page_size: "2/../MB".into(),
        limit: 1,
    }];
    assert!(is_code(&pod.try_create(config).err().unwrap(), Code::InvalidArgument));
}

#[test]
fn an_update_of_oom_score_adj_reaches_who_runs_and_who_comes() {
    let pod = world().pod("update-oom");
    let c = pod.idle("c", |config| resources(config).oom_score_adj = 300);
    let first = format!("/proc/{}/oom_score_adj", c.pid());
    let read = |path: &str| std::fs::read_to_string(path).unwrap().trim().to_owned();
    assert_eq!(
        (read(&first), c.sh("cat /proc/self/oom_score_adj")),
        ("300".into(), "300".into())
    );
    let change = |oom_score_adj| LinuxContainerResources {
        oom_score_adj,
        ..Default::default()
    };
    update(&c, change(500)).unwrap();
    // runc gives every command what its container was made with, whatever it is told.
    let later = if handler() == "runc" { "300" } else { "500" };
    assert_eq!(
        (read(&first), c.sh("cat /proc/self/oom_score_adj")),
        ("500".into(), later.into())
    );
    assert_eq!(told(&c).oom_score_adj, 500);
    assert!(is_code(&update(&c, change(1001)).unwrap_err(), Code::InvalidArgument));
    assert_eq!((read(&first), told(&c).oom_score_adj), ("500".into(), 500));
}

#[test]
fn an_update_applies_to_a_running_container_and_leaves_the_rest() {
    let pod = world().pod("update");
    let c = pod.idle("c", |config| {
        *resources(config) = LinuxContainerResources {
            cpu_shares: 512,
            memory_limit_in_bytes: 64 * MIB,
            oom_score_adj: 300,
            ..Default::default()
        };
    });
    let change = LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 30_000,
        memory_limit_in_bytes: 128 * MIB,
        ..Default::default()
    };
    update(&c, change).unwrap();
    assert_eq!(cpu(&c), ("30000".into(), "100000".into()));
    assert_eq!(
        (shares(&c), memory(&c)),
        (if is_v2() { "59" } else { "512" }.to_owned(), (128 * MIB).to_string())
    );
    let now = told(&c);
    assert_eq!(
        (
            now.cpu_shares,
            now.cpu_quota,
            now.memory_limit_in_bytes,
            now.oom_score_adj
        ),
        (512, 30_000, 128 * MIB, 300)
    );
    // Down again, and no limit at all.
    update(
        &c,
        LinuxContainerResources {
            memory_limit_in_bytes: 32 * MIB,
            ..Default::default()
        },
    )
    .unwrap();
    assert_eq!(memory(&c), (32 * MIB).to_string());
    update(
        &c,
        LinuxContainerResources {
            cpu_quota: -1,
            ..Default::default()
        },
    )
    .unwrap();
    assert_eq!(cpu(&c).0, if is_v2() { "max" } else { "-1" });
}

#[test]
fn a_memory_limit_below_what_is_used_is_refused_and_kills_nobody() {
    let pod = world().pod("update-below");
    let c = pod.start(
        "c",
        &[
            "sh",
            "-c",
            "dd if=/dev/zero of=/dev/shm/x bs=1M count=40 2>/dev/null; echo filled; exec sleep 1000",
        ],
        |config| {
            resources(config).memory_limit_in_bytes = 128 * MIB;
        },
    );
    c.logged("filled");
    let refused = update(
        &c,
        LinuxContainerResources {
            memory_limit_in_bytes: 16 * MIB,
            ..Default::default()
        },
    )
    .unwrap_err();
    assert!(says(&refused, "memory"), "{refused}");
    assert_eq!(memory(&c), (128 * MIB).to_string());
    assert_eq!(told(&c).memory_limit_in_bytes, 128 * MIB);
    assert_eq!(c.status().state(), ContainerState::ContainerRunning);
}

/// Story: of two updates at once, of processors and of memory, the status had only one afterwards.
#[test]
fn updates_at_the_same_time_are_all_in_the_status() {
    let pod = world().pod("update-at-once");
    let c = pod.idle("c", |config| resources(config).memory_limit_in_bytes = 64 << 20);
    for round in 1..=60 {
        let memory = LinuxContainerResources {
            memory_limit_in_bytes: (64 << 20) + round * 4096,
            ..Default::default()
        };
        let shares = LinuxContainerResources {
            cpu_shares: 100 + round,
            ..Default::default()
        };
        std::thread::scope(|scope| {
            for change in [memory.clone(), shares.clone()] {
                scope.spawn(|| update(&c, change).expect("UpdateContainerResources"));
            }
        });
        let told = told(&c);
        assert_eq!(
            (told.memory_limit_in_bytes, told.cpu_shares),
            (memory.memory_limit_in_bytes, shares.cpu_shares)
        );
    }
}

#[test]
fn an_update_of_a_created_container_holds_when_it_starts() {
    let pod = world().pod("update-created");
    let c = pod.create("c", &["sleep", "100000"], |_| {});
    update(
        &c,
        LinuxContainerResources {
            memory_limit_in_bytes: 48 * MIB,
            ..Default::default()
        },
    )
    .unwrap();
    c.start().unwrap();
    assert_eq!(memory(&c), (48 * MIB).to_string());
    assert_eq!(told(&c).memory_limit_in_bytes, 48 * MIB);
}

#[test]
fn an_exited_container_has_no_limits_to_update() {
    let pod = world().pod("update-exited");
    let c = pod.start("c", &["true"], |_| {});
    c.exited();
    let refused = update(
        &c,
        LinuxContainerResources {
            cpu_shares: 100,
            ..Default::default()
        },
    )
    .unwrap_err();
    assert!(is_code(&refused, Code::FailedPrecondition), "{refused}");
    assert!(says(&refused, "exited"), "{refused}");
    let mut gone = c.clone();
    gone.id = "0123".repeat(16);
    assert_eq!(
        update(&gone, LinuxContainerResources::default()).unwrap_err().code(),
        Code::NotFound
    );
}

#[test]
fn what_was_updated_stays_so_over_a_restart_of_the_daemon() {
    let own = OwnWorld::new("restart");
    let pod = own.0.pod("kept");
    let c = pod.idle("c", |config| resources(config).memory_limit_in_bytes = 64 * MIB);
    let waiting = pod.create("waiting", &["sleep", "100000"], |_| {});
    let ended = pod.start("ended", &["sh", "-c", "exit 3"], |_| {});
    let change = LinuxContainerResources {
        memory_limit_in_bytes: 96 * MIB,
        cpu_shares: 333,
        ..Default::default()
    };
    update(&c, change.clone()).unwrap();
    update(&waiting, change).unwrap();
    let before = (ended.exited(), c.status(), pod.status());
    own.0.restart();
    assert_eq!((ended.status(), c.status(), pod.status()), before);
    assert_eq!(
        (told(&c).memory_limit_in_bytes, memory(&c)),
        (96 * MIB, (96 * MIB).to_string())
    );
    waiting.start().unwrap();
    assert_eq!(
        (told(&waiting).cpu_shares, memory(&waiting)),
        (333, (96 * MIB).to_string())
    );
    update(
        &c,
        LinuxContainerResources {
            memory_limit_in_bytes: 80 * MIB,
            ..Default::default()
        },
    )
    .unwrap();
    assert_eq!((told(&c).cpu_shares, memory(&c)), (333, (80 * MIB).to_string()));
    assert_eq!(c.sh("echo still here"), "still here");
}
