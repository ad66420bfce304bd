//! Limits of cgroups and their figures on the machine as it is, v1, hybrid or cgroup2. Needs root.

#[path = "support/cgroup_tree.rs"]
mod cgroup_tree;

use std::time::Instant;

use cgroup_tree::{Tree, shell_in, wait_until};
use crisp::sys::cgroup::{Cgroup, CgroupReader, DeviceRule, Resources, Warning, oom_kills};

/// The text of a file of `cgroup`, wherever `controller` is mounted: `(is_v2, text)`.
fn read(tree: &Tree, cgroup: &Cgroup, controller: &str, v1: &str, v2: &str) -> (bool, String) {
    let v1_path = format!("/sys/fs/cgroup/{controller}{}/{v1}", cgroup.path());
    if let Ok(text) = std::fs::read_to_string(&v1_path) {
        return (false, text.trim().to_owned());
    }
    let root = tree.hierarchy.cgroup2().unwrap();
    let path = format!("{}{}/{v2}", root.display(), cgroup.path());
    (
        true,
        std::fs::read_to_string(&path)
            .unwrap_or_else(|e| panic!("{path}: {e}"))
            .trim()
            .to_owned(),
    )
}

#[test]
fn cpu_limits_grow_and_shrink() {
    let tree = Tree::new("cpu");
    let cgroup = tree.create("c");
    let quota_and_period = |cgroup: &Cgroup| match read(&tree, cgroup, "cpu", "cpu.cfs_quota_us", "cpu.max") {
        (true, text) => text,
        (false, quota) => format!(
            "{} {}",
            quota.replace("-1", "max"),
            read(&tree, cgroup, "cpu", "cpu.cfs_period_us", "").1
        ),
    };
    // The parent's limit holds for every step in between, so a wrong order fails here.
    tree.top
        .apply(&Resources {
            cpu_quota_us: Some(100_000),
            cpu_period_us: Some(100_000),
            ..Default::default()
        })
        .unwrap();
    for (quota, period, expected) in [
        (Some(50_000), Some(50_000), "50000 50000"),
        (Some(200_000), Some(200_000), "200000 200000"),
        (Some(10_000), Some(10_000), "10000 10000"),
        (Some(5_000), None, "5000 10000"),
        (None, Some(20_000), "5000 20000"),
        (Some(-1), None, "max 20000"),
        (Some(20_000), Some(20_000), "20000 20000"),
    ] {
        cgroup
            .apply(&Resources {
                cpu_quota_us: quota,
                cpu_period_us: period,
                ..Default::default()
            })
            .unwrap();
        assert_eq!(quota_and_period(&cgroup), expected);
    }
    cgroup
        .apply(&Resources {
            cpu_shares: Some(512),
            ..Default::default()
        })
        .unwrap();
    let (v2, weight) = read(&tree, &cgroup, "cpu", "cpu.shares", "cpu.weight");
    assert_eq!(weight, if v2 { "59" } else { "512" });

    let refused = cgroup
        .apply(&Resources {
            cpu_period_us: Some(7),
            ..Default::default()
        })
        .unwrap_err();
    let text = refused.to_string();
    assert!(
        text.contains('7') && text.contains("cpu.") && text.contains(cgroup.path()),
        "{text}"
    );
}

#[test]
fn cpuset_and_pids_are_set_and_bad_values_named() {
    let tree = Tree::new("set");
    let cgroup = tree.create("a/b");
    let resources = Resources {
        cpuset_cpus: Some("0".into()),
        cpuset_mems: Some("0".into()),
        pids_limit: Some(17),
        ..Default::default()
    };
    assert_eq!(cgroup.apply(&resources).unwrap(), []);
    assert_eq!(read(&tree, &cgroup, "cpuset", "cpuset.cpus", "cpuset.cpus").1, "0");
    assert_eq!(read(&tree, &cgroup, "pids", "pids.max", "pids.max").1, "17");
    cgroup
        .apply(&Resources {
            pids_limit: Some(-1),
            ..Default::default()
        })
        .unwrap();
    assert_eq!(read(&tree, &cgroup, "pids", "pids.max", "pids.max").1, "max");
    let refused = cgroup
        .apply(&Resources {
            cpuset_cpus: Some("9999".into()),
            ..Default::default()
        })
        .unwrap_err();
    assert!(
        refused.to_string().contains("9999") && refused.to_string().contains("cpuset.cpus"),
        "{refused}"
    );
}

#[test]
fn memory_and_swap_grow_and_shrink_in_the_right_order() {
    let tree = Tree::new("memory");
    let cgroup = tree.create("m");
    const MIB: i64 = 1 << 20;
    let set = |limit: Option<i64>, total: Option<i64>| {
        cgroup.apply(&Resources {
            memory_limit_bytes: limit,
            memory_swap_limit_bytes: total,
            ..Default::default()
        })
    };
    let limits = || {
        let stats = cgroup.stats().unwrap();
        let swap = stats.swap.and_then(|swap| swap.limit_bytes);
        (
            stats.memory.unwrap().limit_bytes.map(|b| b as i64 / MIB),
            swap.map(|b| b as i64 / MIB),
        )
    };
    assert_eq!(limits(), (None, None));
    for (limit, total, expected) in [
        (Some(100 * MIB), Some(100 * MIB), (Some(100), Some(0))),
        (Some(300 * MIB), Some(400 * MIB), (Some(300), Some(100))),
        (Some(50 * MIB), Some(60 * MIB), (Some(50), Some(10))),
        // The room for swap stays when it is not spoken of.
        (Some(200 * MIB), None, (Some(200), Some(10))),
        (Some(80 * MIB), None, (Some(80), Some(10))),
        (None, Some(100 * MIB), (Some(80), Some(20))),
        (Some(-1), Some(-1), (None, None)),
        (Some(64 * MIB), Some(-1), (Some(64), None)),
        (Some(-1), None, (None, None)),
    ] {
        let warnings = set(limit, total).unwrap_or_else(|e| panic!("{limit:?} {total:?}: {e}"));
        if warnings.is_empty() {
            assert_eq!(limits(), expected, "after {limit:?} {total:?}");
        } else {
            assert!(matches!(warnings[..], [Warning::SwapNotLimited { .. }]), "{warnings:?}");
        }
    }
    assert!(set(Some(100 * MIB), Some(50 * MIB)).is_err());
    assert!(set(Some(-1), Some(50 * MIB)).is_err());
    set(Some(100 * MIB), None).unwrap();

    let mut child = shell_in(&cgroup, "head -c 20000000 /dev/zero | { read -r x; sleep 1000; }; true");
    wait_until("memory in use", || {
        cgroup.stats().unwrap().memory.unwrap().usage_bytes > 200_000
    });
    let below = Resources {
        memory_limit_bytes: Some(4096),
        memory_check_before_update: true,
        ..Default::default()
    };
    let refused = cgroup.apply(&below).unwrap_err();
    assert!(
        refused.to_string().contains("4096") && refused.to_string().contains("in use"),
        "{refused}"
    );
    assert_eq!(limits().0, Some(100));
    assert_eq!(cgroup.stats().unwrap().oom_kills, Some(0));
    cgroup.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn an_oom_kill_is_counted_for_the_cgroup_it_happened_in() {
    let tree = Tree::new("oom");
    let (victim, neighbour) = (tree.create("victim"), tree.create("neighbour"));
    let (events, calm) = (victim.oom_events_fd().unwrap(), neighbour.oom_events_fd().unwrap());
    assert_eq!(oom_kills(&events).unwrap(), 0);
    let limit = Some(16 << 20);
    victim
        .apply(&Resources {
            memory_limit_bytes: limit,
            memory_swap_limit_bytes: limit,
            ..Default::default()
        })
        .unwrap();
    // tail keeps the last line, which never ends.
    let mut child = shell_in(&victim, "exec tail /dev/zero");
    assert_eq!(
        std::os::unix::process::ExitStatusExt::signal(&child.wait().unwrap()),
        Some(libc::SIGKILL)
    );
    assert_eq!(oom_kills(&events).unwrap(), 1);
    assert_eq!(oom_kills(&calm).unwrap(), 0);
    assert_eq!(victim.stats().unwrap().oom_kills, Some(1));
}

#[test]
fn unified_keys_go_to_cgroup2_and_are_refused_elsewhere() {
    let tree = Tree::new("unified");
    let cgroup = tree.create("u");
    let apply = |key: &str, value: &str| {
        cgroup.apply(&Resources {
            unified: [(key.to_owned(), value.to_owned())].into(),
            ..Default::default()
        })
    };
    for bad in [
        "../memory.max",
        "memory",
        "memory.",
        ".x",
        "cgroup.procs",
        "cgroup.kill",
        "cgroup.type",
        "no.such",
        "a/b.c",
    ] {
        let refused = apply(bad, "1").unwrap_err();
        assert!(refused.to_string().contains(&format!("{bad:?}")), "{refused}");
    }
    apply("cgroup.max.descendants", "7").unwrap();
    let outcome = apply("memory.high", "104857600");
    if tree.hierarchy.is_v2() {
        outcome.unwrap();
        assert_eq!(read(&tree, &cgroup, "-", "-", "memory.high").1, "104857600");
        apply("memory.oom.group", "1").unwrap();
        assert!(
            apply("memory.nonsense", "1")
                .unwrap_err()
                .to_string()
                .contains("memory.nonsense")
        );
    } else {
        assert!(outcome.unwrap_err().to_string().contains("memory.high"));
    }
}

#[test]
fn huge_pages_are_limited_where_the_kernel_has_them() {
    let tree = Tree::new("huge");
    let cgroup = tree.create("h");
    let limit = |size: &str| {
        cgroup.apply(&Resources {
            hugepages: vec![(size.to_owned(), 4 << 20)],
            ..Default::default()
        })
    };
    if std::path::Path::new("/sys/kernel/mm/hugepages/hugepages-2048kB").exists() && tree.hierarchy.has("hugetlb") {
        assert_eq!(limit("2MB").unwrap(), []);
        assert_eq!(
            read(
                &tree,
                &cgroup,
                "hugetlb",
                "hugetlb.2MB.limit_in_bytes",
                "hugetlb.2MB.max"
            )
            .1,
            "4194304"
        );
    }
    assert!(matches!(
        limit("3MB").unwrap()[..],
        [Warning::HugepagesNotLimited { .. }]
    ));
    assert!(limit("../2MB").is_err());
}

const ONLY_NULL: &str = "echo x >/dev/null && ! head -c 1 /dev/zero >/dev/null";

fn only_null() -> Resources {
    let null = DeviceRule {
        allow: true,
        kind: 'c',
        major: Some(1),
        minor: Some(3),
        access: "rwm".into(),
    };
    Resources {
        devices: vec![DeviceRule::all(false), null],
        ..Default::default()
    }
}

fn everything() -> Resources {
    Resources {
        devices: vec![DeviceRule::all(true)],
        ..Default::default()
    }
}

#[test]
fn devices_are_restricted() {
    let tree = Tree::new("devices");
    let cgroup = tree.create("d");
    assert_eq!(cgroup.apply(&only_null()).unwrap(), []);
    if !tree.hierarchy.is_v2() {
        assert_eq!(read(&tree, &cgroup, "devices", "devices.list", "").1, "c 1:3 rwm");
    }
    assert!(shell_in(&cgroup, ONLY_NULL).wait().unwrap().success());
    assert_eq!(cgroup.apply(&everything()).unwrap(), []);
    if !tree.hierarchy.is_v2() {
        assert_eq!(read(&tree, &cgroup, "devices", "devices.list", "").1, "a *:* rwm");
    }
    assert!(
        shell_in(&cgroup, "head -c 1 /dev/zero >/dev/null")
            .wait()
            .unwrap()
            .success()
    );
}

/// A hybrid machine's cgroup2 asks the kernel's programs too: so these are seen to work wherever the tests run.
#[test]
fn device_programs_of_cgroup2_replace_each_other_and_hold_below() {
    let tree = Tree::new("device-programs");
    let alone = tree.hierarchy.cgroup2_alone().expect("a cgroup2 hierarchy");
    let path = format!("{}/d", tree.top.path());
    let cgroup = Cgroup::create(&alone, &path).unwrap();
    let below = Cgroup::create(&alone, &format!("{path}/below")).unwrap();
    let runs = |script: &str| shell_in(&below, script).wait().unwrap().success();

    assert_eq!(cgroup.apply(&everything()).unwrap(), []);
    assert!(runs("head -c 1 /dev/zero >/dev/null"));
    // The same rules again, as a daemon that comes back may apply them, are one program and not two.
    for _ in 0..100 {
        assert_eq!(cgroup.apply(&only_null()).unwrap(), []);
    }
    assert!(runs(ONLY_NULL));
    // What a nested manager allows does not undo it.
    assert_eq!(below.apply(&only_null()).unwrap(), []);
    assert_eq!(below.apply(&everything()).unwrap(), []);
    assert!(runs(ONLY_NULL));
    assert_eq!(cgroup.apply(&everything()).unwrap(), []);
    assert!(runs("head -c 1 /dev/zero >/dev/null && echo x >/dev/null"));
    below.remove().unwrap();
    cgroup.remove().unwrap();
}

#[test]
fn figures_follow_what_processes_do() {
    let tree = Tree::new("stats");
    let cgroup = tree.create("s");
    let reader = CgroupReader::open(&cgroup).unwrap();
    let before = reader.read().unwrap();
    assert_eq!(before.cpu.unwrap().usage_ns, 0);
    cgroup
        .apply(&Resources {
            memory_limit_bytes: Some(256 << 20),
            pids_limit: Some(50),
            ..Default::default()
        })
        .unwrap();
    let mut child = shell_in(&cgroup, "while :; do :; done");
    wait_until("cpu time", || reader.read().unwrap().cpu.unwrap().usage_ns > 50_000_000);
    // The kernel gathers the memory figures of all processors every two seconds.
    wait_until("page faults", || reader.read().unwrap().memory.unwrap().page_faults > 0);
    let stats = reader.read().unwrap();
    assert!(stats.timestamp_ns > before.timestamp_ns);
    let memory = stats.memory.unwrap();
    assert_eq!(memory.limit_bytes, Some(256 << 20));
    assert!(memory.usage_bytes > 0 && memory.working_set_bytes <= memory.usage_bytes);
    assert!(memory.available_bytes().unwrap() > 200 << 20);
    let pids = stats.pids.unwrap();
    assert!((1..=2).contains(&pids.current) && pids.limit == Some(50), "{pids:?}");
    if std::path::Path::new("/proc/pressure/cpu").exists() && tree.hierarchy.cgroup2().is_some() {
        assert!(stats.pressure.cpu.is_some() && stats.pressure.memory.is_some() && stats.pressure.io.is_some());
    }
    reader.read_io().unwrap();

    let started = Instant::now();
    for _ in 0..1000 {
        reader.read().unwrap();
    }
    println!("one reading: {:?}", started.elapsed() / 1000);

    cgroup.kill().unwrap();
    child.wait().unwrap();
    cgroup.remove().unwrap();
    assert_eq!(reader.read().unwrap_err().kind(), std::io::ErrorKind::NotFound);
    assert_eq!(
        CgroupReader::open(&cgroup).unwrap_err().kind(),
        std::io::ErrorKind::NotFound
    );
}
