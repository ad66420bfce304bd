//! Sandboxes and containers from their making to their end.

use std::os::fd::AsFd;

use crisp::model::ContainerId;
use crisp::monitor::client::{Event, IdMapping, SandboxFds, SandboxSpec};
use crisp::monitor::protocol::{Exit, FailureKind};

use crisp::sys::mount::{self, Attributes, Propagation};
use crisp::sys::userns::{self, IdRange};

use crate::pod::{Pod, eventually, is_alive, new_id, sandbox, shell};

#[tokio::test(flavor = "multi_thread")]
async fn a_container_runs_writes_its_log_and_leaves_its_exit_record_before_the_event() {
    let mut pod = Pod::new().await;
    let container = pod.run(shell("echo out; echo err >&2; hostname; exit 7")).await;
    let exit = pod.exit_of(&container).await;
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (7, 0, false));
    let record = std::fs::read_to_string(pod.run_dir().join("exits").join(&container)).unwrap();
    assert_eq!(Exit::from_record(&record), Some(exit));
    let mut log = pod.log_of(&container);
    log.sort();
    assert_eq!(log, ["stderr F err", "stdout F out", "stdout F the-pod"]);
    pod.client.forget(&container).await.unwrap();
    assert!(!pod.run_dir().join("exits").join(&container).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn pause_is_called_pause_and_owns_nothing() {
    let pod = Pod::with(
        SandboxSpec {
            new_pid: true,
            ..sandbox()
        },
        SandboxFds::default(),
    )
    .await;
    let proc = std::path::PathBuf::from(format!("/proc/{}", pod.pause.pid));
    eventually("it has named itself", || {
        std::fs::read(proc.join("comm")).unwrap() == b"pause\n"
    })
    .await;
    let status = std::fs::read_to_string(proc.join("status")).unwrap();
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .map(|value| value.trim().to_owned())
            .unwrap_or_default()
    };
    assert_eq!(field("Name:"), "pause");
    assert_eq!(field("NSpid:").split_whitespace().last(), Some("1"));
    assert_eq!(
        (field("CapEff:"), field("CapBnd:")),
        ("0000000000000000".into(), "0000000000000000".into())
    );
    assert_eq!(std::fs::read(proc.join("cmdline")).unwrap(), b"/pause\0");
    assert_eq!(std::fs::read_dir(proc.join("root")).unwrap().count(), 0);
    assert!(std::fs::write(proc.join("root/file"), "x").is_err());
    pod.client.stop_sandbox().await.unwrap();
    assert!(!is_alive(pod.pause.pid));
    pod.client.stop_sandbox().await.unwrap();
    pod.client.shutdown().await.unwrap();
    eventually("the monitor is gone", || !is_alive(pod.monitor_pid)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sysctls_are_written_in_the_pods_namespaces_and_nowhere_else() {
    let before = std::fs::read_to_string("/proc/sys/kernel/shm_rmid_forced").unwrap();
    let mut spec = sandbox();
    spec.sysctls.insert("kernel.shm_rmid_forced".into(), "1".into());
    let mut pod = Pod::with(spec, SandboxFds::default()).await;
    let (_, log) = pod.run_to_end(shell("cat /proc/sys/kernel/shm_rmid_forced")).await;
    assert_eq!(log, ["stdout F 1"]);
    assert_eq!(
        std::fs::read_to_string("/proc/sys/kernel/shm_rmid_forced").unwrap(),
        before
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_cannot_be_executed_is_told_when_it_is_started() {
    let mut pod = Pod::new().await;
    for (program, kind, code, says) in [
        ("nowhere", FailureKind::ProgramNotFound, 127, "not found in $PATH"),
        ("/nowhere", FailureKind::ProgramNotFound, 127, "no such file"),
        ("/etc/passwd", FailureKind::ProgramDenied, 126, "permission denied"),
        ("/etc", FailureKind::ProgramDenied, 126, "permission denied"),
    ] {
        let mut policy = shell("");
        policy.args = vec![program.as_bytes().to_vec()];
        let (container, _) = pod.create(policy).await;
        let error = pod.client.start(&container).await.unwrap_err();
        assert_eq!(error.kind(), Some(kind), "{error}");
        assert!(
            error.to_string().contains(says) && error.to_string().contains(program),
            "{error}"
        );
        assert_eq!(pod.exit_of(&container).await.code, code);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_that_lacks_everything_fails_with_the_cause() {
    let pod = Pod::new().await;
    let error = pod
        .create_as(
            shell("true"),
            |_| {},
            |json, _| json["mounts"][0]["type"] = "no-such-filesystem".into(),
        )
        .await
        .unwrap_err();
    let text = error.to_string();
    assert!(text.contains("ENODEV"), "{text}");
    // Nothing of it is left, and the monitor goes on.
    pod.create(shell("true")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_was_never_started_can_be_killed() {
    let mut pod = Pod::new().await;
    let (container, process) = pod.create(shell("true")).await;
    assert!(is_alive(process.pid));
    pod.client.signal(&container, 9).await.unwrap();
    assert_eq!(pod.exit_of(&container).await.signal, 9);
    let error = pod.client.start(&container).await.unwrap_err();
    assert_eq!(error.kind(), Some(FailureKind::State));
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_make_no_sense_are_refused_each_in_its_way() {
    let pod = Pod::new().await;
    let unknown = ContainerId::new(new_id());
    assert_eq!(
        pod.client.start(&unknown).await.unwrap_err().kind(),
        Some(FailureKind::NotFound)
    );
    pod.client.forget(&unknown).await.unwrap();
    let error = pod
        .create_as(shell("true"), |spec| spec.container_id = "../../x".into(), |_, _| {})
        .await
        .unwrap_err();
    assert_eq!(error.kind(), Some(FailureKind::Invalid));
    let error = pod
        .client
        .create_sandbox(sandbox(), SandboxFds::default())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), Some(FailureKind::Exists));
    assert_eq!(
        pod.client.shutdown().await.unwrap_err().kind(),
        Some(FailureKind::State)
    );
    let container = pod.run(shell("exec sleep 60")).await;
    assert_eq!(
        pod.client.forget(&container).await.unwrap_err().kind(),
        Some(FailureKind::State)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_pause_is_told() {
    let mut pod = Pod::new().await;
    crate::pod::kill(pod.pause.pid);
    assert!(matches!(pod.event().await, Event::PauseExited { exit } if exit.signal == 9));
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_of_a_pod_share_what_a_pod_shares() {
    let mut pod = Pod::with(
        SandboxSpec {
            new_pid: true,
            ..sandbox()
        },
        SandboxFds::default(),
    )
    .await;
    let alone = pod.run(shell("exec sleep 60")).await;
    let (_, log) = pod.run_to_end(shell("cat /proc/[0-9]*/comm; true")).await;
    assert_eq!(log, ["stdout F sh"], "each sees only its own processes");
    let shared = pod
        .create_as(
            shell("cat /proc/1/comm; echo $$"),
            |_| {},
            |json, _| json["linux"]["namespaces"][0]["path"] = "nsfd:pid".into(),
        )
        .await
        .unwrap()
        .0;
    pod.client.start(&shared).await.unwrap();
    pod.exit_of(&shared).await;
    let log = pod.log_of(&shared);
    assert_eq!(log[0], "stdout F pause");
    assert_ne!(log[1], "stdout F 1");
    pod.client.signal(&alone, 15).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_with_a_user_namespace_has_no_root_of_the_node_in_it() {
    let mapping = IdMapping {
        container_id: 0,
        host_id: 200_000,
        size: 65536,
    };
    let spec = SandboxSpec {
        uid_mappings: vec![mapping],
        new_pid: true,
        ..sandbox()
    };
    let ids = IdRange {
        first: 200_000,
        count: 65536,
    };
    let made = userns::create(ids, true).unwrap();
    let fds = SandboxFds {
        netns: made.network,
        user: Some(made.user),
        ..SandboxFds::default()
    };
    let mut pod = Pod::with(spec, fds).await;
    let owner = |pid: i32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        status
            .lines()
            .find_map(|line| line.strip_prefix("Uid:\t"))
            .unwrap()
            .split('\t')
            .next()
            .unwrap()
            .to_owned()
    };
    assert_eq!(owner(pod.pause.pid), "200000");
    let join = |json: &mut serde_json::Value, _: &mut crisp::monitor::client::ContainerFds| {
        let user = serde_json::json!({"type": "user", "path": "nsfd:user"});
        let network = serde_json::json!({"type": "network", "path": "nsfd:net"});
        json["linux"]["namespaces"]
            .as_array_mut()
            .unwrap()
            .extend([user, network]);
    };
    let script = "id -u; echo mine > /dev/stdout; until test -e /dev/shm/go; do sleep 0.02; done";
    let (container, process) = pod.create_as(shell(script), |_| {}, join).await.unwrap();
    pod.client.start(&container).await.unwrap();
    assert_eq!(owner(process.pid), "200000");
    let (exit, out, _) = pod
        .exec(&container, shell("cat /proc/self/uid_map; id -u; touch /dev/shm/go"))
        .await
        .unwrap();
    assert_eq!(
        (exit.code, out.split_whitespace().collect::<Vec<_>>()),
        (0, vec!["0", "200000", "65536", "0"])
    );
    assert_eq!(pod.exit_of(&container).await.code, 0);
    assert_eq!(pod.log_of(&container), ["stdout F 0", "stdout F mine"]);
}

/// libcontainer makes every bind a slave of the host, whatever was asked for.
#[tokio::test(flavor = "multi_thread")]
async fn a_volume_sees_later_mounts_only_if_it_was_to() {
    let mut pod = Pod::new().await;
    let host = tempfile::tempdir().unwrap();
    // A mount of the test's own, shared with whoever is to share it.
    let volume = mount::tmpfs(1 << 20, 0o777).unwrap();
    mount::attach(&volume, rustix::fs::CWD, host.path()).unwrap();
    let share = Attributes {
        propagation: Some(Propagation::Shared),
        ..Attributes::default()
    };
    mount::set_attributes(volume.as_fd(), share).unwrap();
    std::fs::create_dir(host.path().join("later")).unwrap();
    let mut containers = Vec::new();
    for propagation in [Propagation::Private, Propagation::Slave] {
        let script = "until test -e /volume/go; do sleep 0.02; done; ls /volume/later; true";
        let equip = |json: &mut serde_json::Value, fds: &mut crisp::monitor::client::ContainerFds| {
            let bind =
                serde_json::json!({"destination": "/volume", "type": "bind", "source": "fd:1", "options": ["rbind"]});
            json["mounts"].as_array_mut().unwrap().push(bind);
            let tree = mount::clone_tree(host.path(), true).unwrap();
            let attributes = Attributes {
                propagation: Some(propagation),
                recursive: true,
                ..Attributes::default()
            };
            mount::set_attributes(tree.as_fd(), attributes).unwrap();
            fds.mounts.push(tree);
        };
        let (container, _) = pod.create_as(shell(script), |_| {}, equip).await.unwrap();
        pod.client.start(&container).await.unwrap();
        containers.push(container);
    }
    let later = mount::tmpfs(1 << 20, 0o777).unwrap();
    mount::attach(&later, rustix::fs::CWD, &host.path().join("later")).unwrap();
    std::fs::write(host.path().join("later/seen"), "").unwrap();
    std::fs::write(host.path().join("go"), "").unwrap();
    let mut ended = 0;
    while ended < 2 {
        ended += usize::from(matches!(pod.event().await, Event::Exited { .. }));
    }
    let logs = containers
        .iter()
        .map(|container| pod.log_of(container))
        .collect::<Vec<_>>();
    drop((later, volume));
    let detach = || rustix::mount::unmount(host.path(), rustix::mount::UnmountFlags::DETACH);
    detach().unwrap();
    assert_eq!(logs, [vec![], vec!["stdout F seen".to_owned()]]);
}
