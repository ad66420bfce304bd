//! The processes that hold a pod are killed: what is told of it is true, and it can be stopped and removed.

use std::path::Path;

use crisp::cri;
use rustix::process::{Pid, Signal, kill_process};

use crate::daemon::Machine;
use crate::pods::{COUNTER, STUBBORN, container, namespaces, pod, start, until};

fn kill(pid: i32) {
    kill_process(Pid::from_raw(pid).expect("a pid"), Signal::KILL).expect("it lives");
}

fn lives(pid: i32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// What proc(5) says of a process, if it is there.
fn stat(pid: i32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default()
}

/// The dead children of a process that it has not taken notice of.
fn zombies(parent: i32) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
        if fields.len() > 1 && fields[0] == "Z" && fields[1] == parent.to_string() {
            found.push(stat);
        }
    }
    found
}

/// Kills the monitor of a pod with two containers, with the daemon alive or dead meanwhile.
async fn lose_the_monitor(machine: &mut Machine, daemon_lives: bool) {
    let _registry = start(machine).await;
    let client = machine.client();
    client.warm_up(machine).await;
    let before = machine.look();
    let pod_id = client.run_pod(&pod(machine, "orphan")).await.expect("RunPodSandbox");
    let counter = client.launch(&pod_id, &container(machine, "counter", COUNTER)).await;
    let script = format!("setsid sleep 1000 & {STUBBORN}");
    let family = client.launch(&pod_id, &container(machine, "family", &script)).await;
    let waiting = client
        .create(&pod_id, &container(machine, "waiting", STUBBORN))
        .await
        .expect("CreateContainer");
    let (monitor, pause) = client.pod_pids(&pod_id).await;
    let mut pids = vec![monitor, pause];
    for id in [&counter, &family, &waiting] {
        pids.push(client.container_pid(id).await);
    }
    match daemon_lives {
        true => kill(monitor),
        false => {
            machine.kill();
            kill(monitor);
            until("the monitor is gone", async || !lives(monitor)).await;
            machine.start().await;
        }
    }
    let client = machine.client();
    until("the pod is not ready", async || !client.is_ready(&pod_id).await).await;
    for id in [&counter, &family, &waiting] {
        let status = client.exited(id).await;
        assert!(status.exit_code != 0 && status.finished_at > 0, "{status:?}");
    }
    let names = ["monitor", "pause", "counter", "family", "waiting"];
    for (name, pid) in names.into_iter().zip(pids) {
        until(&format!("the {name} is dead: {}", stat(pid)), async || !lives(pid)).await;
    }
    assert_eq!(zombies(machine.pid()), Vec::<String>::new());
    // All of these are refused or fine, and at once.
    client.exec(&counter, "true", 5).await.expect_err("it does not run");
    client
        .create(&pod_id, &container(machine, "late", COUNTER))
        .await
        .expect_err("the pod is not ready");
    client.start(&waiting).await.expect_err("it is dead");
    client.stop(&counter, 10).await.expect("StopContainer");
    client.remove(&counter).await.expect("RemoveContainer");
    client.end_pod(&pod_id).await;
    machine.nothing_is_left_since(&before);
    // The name is free, and another pod lives.
    client.warm_up(machine).await;
}

#[test]
fn a_monitor_killed_ends_its_pod() {
    Machine::test("monitor", async |machine| lose_the_monitor(machine, true).await);
}

#[test]
fn a_monitor_killed_while_the_daemon_is_dead_ends_its_pod() {
    Machine::test("monitor-too", async |machine| lose_the_monitor(machine, false).await);
}

#[test]
fn a_pause_killed_makes_the_pod_not_ready_and_its_containers_can_be_stopped() {
    Machine::test("pause", async |machine| {
        let _registry = start(machine).await;
        let client = machine.client();
        client.warm_up(machine).await;
        let before = machine.look();
        for (name, mode, daemon_lives) in [
            ("own-pids", cri::NamespaceMode::Container, true),
            ("pods-pids", cri::NamespaceMode::Pod, true),
            ("own-pids-restart", cri::NamespaceMode::Container, false),
        ] {
            let mut pod_config = pod(machine, name);
            let security = pod_config
                .linux
                .get_or_insert_default()
                .security_context
                .get_or_insert_default();
            security.namespace_options = Some(namespaces(mode));
            let mut config = container(machine, "counter", COUNTER);
            let security = config
                .linux
                .get_or_insert_default()
                .security_context
                .get_or_insert_default();
            security.namespace_options = Some(namespaces(mode));
            let client = machine.client();
            let pod_id = client.run_pod(&pod_config).await.expect("RunPodSandbox");
            let id = client.launch(&pod_id, &config).await;
            let (_, pause) = client.pod_pids(&pod_id).await;
            if !daemon_lives {
                machine.kill();
            }
            kill(pause);
            if !daemon_lives {
                machine.start().await;
            }
            let client = machine.client();
            until("the pod is not ready", async || !client.is_ready(&pod_id).await).await;
            client
                .create(&pod_id, &container(machine, "late", COUNTER))
                .await
                .expect_err("the pod is not ready");
            // Without its pid namespace's first process a container cannot live; with one of its own it can.
            if mode == cri::NamespaceMode::Pod {
                assert_eq!(client.exited(&id).await.exit_code, 137);
            }
            client.stop(&id, 10).await.expect("StopContainer");
            assert_eq!(client.status(&id).await.state(), cri::ContainerState::ContainerExited);
            client.end_pod(&pod_id).await;
        }
        machine.nothing_is_left_since(&before);
    });
}
