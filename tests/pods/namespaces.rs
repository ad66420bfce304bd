//! Who shares what with whom: network, pid and ipc in every mode.

use std::fs;

use crisp::cri::NamespaceMode::{self, Container as Own, Node, Pod as Shared, Target};
use tonic::Code;

use crate::fixture::{Container, is_code, options, sandbox_security, says, security, world};

fn of_process(pid: i64, kind: &str) -> String {
    fs::read_link(format!("/proc/{pid}/ns/{kind}"))
        .expect("it lives")
        .display()
        .to_string()
}

fn inside(container: &Container, kind: &str) -> String {
    container.sh(&format!("readlink /proc/self/ns/{kind}"))
}

/// The node is the machine that the daemon sees.
fn of_node(kind: &str) -> String {
    of_process(world().daemon_pid().into(), kind)
}

fn pod_of(name: &str, network: NamespaceMode, pid: NamespaceMode, ipc: NamespaceMode) -> crate::fixture::Pod {
    world().pod_with(name, |config| {
        let options = options(config);
        options.network = network.into();
        options.pid = pid.into();
        options.ipc = ipc.into();
    })
}

/// A container with its pod's modes.
fn like_its_pod(pod: &crate::fixture::Pod, name: &str) -> Container {
    let modes = pod
        .config
        .linux
        .clone()
        .unwrap()
        .security_context
        .unwrap()
        .namespace_options;
    pod.idle(name, |config| security(config).namespace_options = modes)
}

#[test]
fn everything_of_the_pods_own() {
    let pod = pod_of("own", Shared, Own, Shared);
    let (a, b) = (like_its_pod(&pod, "a"), like_its_pod(&pod, "b"));
    for kind in ["net", "ipc", "uts"] {
        assert_eq!(inside(&a, kind), inside(&b, kind), "{kind}");
        assert_eq!(inside(&a, kind), of_process(pod.pid(), kind), "{kind}");
        assert_ne!(inside(&a, kind), of_node(kind), "{kind}");
    }
    for kind in ["pid", "mnt"] {
        assert_ne!(inside(&a, kind), inside(&b, kind), "{kind}");
        assert_ne!(inside(&a, kind), of_process(pod.pid(), kind), "{kind}");
    }
    assert_eq!(a.sh("readlink /proc/1/exe"), "/bin/busybox");
    // Written in one, seen in the other; not on the host, not in another pod.
    a.sh("echo shared > /dev/shm/note");
    assert_eq!(b.sh("cat /dev/shm/note"), "shared");
    let other = pod_of("own-other", Shared, Own, Shared);
    assert_eq!(like_its_pod(&other, "c").exec(&["cat", "/dev/shm/note"]).code, 1);
    assert_eq!(
        pod.status().linux.unwrap().namespaces.unwrap().options.unwrap().pid(),
        Own
    );
}

#[test]
fn one_pid_namespace_for_the_pod() {
    let pod = pod_of("pids", Shared, Shared, Shared);
    let (a, b) = (like_its_pod(&pod, "a"), like_its_pod(&pod, "b"));
    assert_eq!(inside(&a, "pid"), inside(&b, "pid"));
    assert_eq!(inside(&a, "pid"), of_process(pod.pid(), "pid"));
    assert!(
        a.sh("cat /proc/1/comm").contains("pause"),
        "{}",
        a.sh("cat /proc/1/comm")
    );
    assert_eq!(a.sh("ps -o args | grep -c '^sleep 100000'"), "2");
    // The end of one is not the end of the other, and a stray of a container does not outlive it.
    let c = pod.start("c", &["sh", "-c", "sleep 31337 & exec sleep 100000"], |config| {
        security(config).namespace_options = Some(crisp::cri::NamespaceOption::default());
    });
    crate::fixture::eventually("the stray", || (a.sh("ps -o args").contains("31337")).then_some(()));
    c.stop(0).unwrap();
    assert!(!a.sh("ps -o args").contains("31337"));
}

#[test]
fn the_nodes_namespaces() {
    let pod = pod_of("node", Node, Node, Node);
    let a = like_its_pod(&pod, "a");
    for kind in ["net", "pid", "ipc", "uts"] {
        assert_eq!(inside(&a, kind), of_node(kind), "{kind}");
    }
    let daemon = world().daemon_pid().to_string();
    let pids = a.sh("ps -o pid");
    assert!(
        pids.split_whitespace().any(|pid| pid == daemon),
        "the node's processes are not seen"
    );
    assert!(a.sh("ip address").contains(crate::fixture::HOST_ADDRESS));
    assert_eq!(
        pod.ip(),
        "",
        "a pod on the node's network has the node's address, which the kubelet knows"
    );
    a.sh("touch /dev/shm/crisp-test-of-node-ipc");
    assert!(
        fs::remove_file("/dev/shm/crisp-test-of-node-ipc").is_ok(),
        "/dev/shm is not the node's"
    );
    a.stop(0).unwrap();
}

#[test]
fn a_containers_pid_mode_is_its_own_choice() {
    let pod = pod_of("mixed", Shared, Own, Shared);
    let node = pod.idle("node", |config| {
        security(config).namespace_options = Some(crisp::cri::NamespaceOption {
            pid: Node.into(),
            ..Default::default()
        });
    });
    assert_eq!(inside(&node, "pid"), of_node("pid"));
}

#[test]
fn the_pid_namespace_of_a_target() {
    let pod = pod_of("target", Shared, Own, Shared);
    let target = like_its_pod(&pod, "target");
    let looking = |id: &str| crisp::cri::NamespaceOption {
        pid: Target.into(),
        target_id: id.into(),
        ..Default::default()
    };
    let debugger = pod.idle("debugger", |config| {
        security(config).namespace_options = Some(looking(&target.id))
    });
    assert_eq!(inside(&debugger, "pid"), of_process(target.pid(), "pid"));
    assert_eq!(debugger.sh("tr '\\0' ' ' < /proc/1/cmdline"), "sleep 100000");
    let mut config = pod.config("late", &["sleep", "1"]);

    let other = pod_of("target-other", Shared, Own, Shared);
    security(&mut config).namespace_options = Some(looking(&target.id));
    let refused = other.try_create(config.clone()).err().expect("a target in another pod");
    assert!(is_code(&refused, Code::InvalidArgument), "{refused}");
    security(&mut config).namespace_options = Some(looking("no-such-container"));
    assert_eq!(
        pod.try_create(config.clone()).err().expect("no target").code(),
        Code::NotFound
    );
    target.stop(0).unwrap();
    security(&mut config).namespace_options = Some(looking(&target.id));
    let refused = pod.try_create(config).err().expect("the target is gone");
    assert!(
        says(&refused, &target.id) && says(&refused, "does not run"),
        "{refused}"
    );
}

#[test]
fn modes_that_make_no_sense_are_refused() {
    type Change = fn(&mut crisp::cri::NamespaceOption);
    let cases: [(&str, Change); 5] = [
        ("network", |options| options.network = Own.into()),
        ("ipc", |options| options.ipc = Target.into()),
        ("pid", |options| options.pid = Target.into()),
        ("pid", |options| options.pid = 9),
        ("user", |options| {
            let user = crisp::cri::UserNamespace {
                mode: Own.into(),
                ..Default::default()
            };
            options.userns_options = Some(user);
        }),
    ];
    for (word, change) in cases {
        let refused = world()
            .try_pod("nonsense", |config| change(options(config)))
            .err()
            .expect(word);
        assert!(is_code(&refused, Code::InvalidArgument), "{word}: {refused}");
        assert!(says(&refused, word), "{word}: {refused}");
    }
    let pod = world().pod_with("no-node", |config| sandbox_security(config).privileged = true);
    for change in [(|o| o.network = Node.into()) as Change, |o| o.ipc = Node.into()] {
        let mut config = pod.config("c", &["true"]);
        change(security(&mut config).namespace_options.as_mut().unwrap());
        let refused = pod
            .try_create(config)
            .err()
            .expect("the node's namespace in a pod with its own");
        assert!(is_code(&refused, Code::InvalidArgument), "{refused}");
        assert!(says(&refused, "node's"), "{refused}");
    }
}
