//! What happens while no daemon is there is known to the next one, and containers live on.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crisp::cri;
use rustix::process::{Pid, Signal, kill_process};

use crate::daemon::Machine;
use crate::pods::{COUNTER, IDLER, STUBBORN, container, counted, log_lines, logs, pod, start, until};

fn now_ns() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970")
        .as_nanos()
        .try_into()
        .expect("before 2262")
}

fn lives(pid: i32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn exits_while_the_daemon_is_dead_are_told_with_their_code_and_time() {
    Machine::test("exits", async |machine| {
        let _registry = start(machine).await;
        let client = machine.client();
        client.warm_up(machine).await;
        let before = machine.look();
        let pod_id = client.run_pod(&pod(machine, "exits")).await.expect("RunPodSandbox");
        let mut ids = Vec::new();
        // They wait for the daemon's death, however long that takes.
        let wait = "until [ -e /go ]; do sleep 0.1; done;";
        let [zero, seven, hog] = ["exit 0", "exit 7", "exec dd if=/dev/zero of=/dev/null bs=200M count=1"]
            .map(|end| format!("{wait} {end}"));
        let scripts = [
            ("zero", zero.as_str()),
            ("seven", &seven),
            ("killed", STUBBORN),
            ("hog", &hog),
        ];
        for (name, script) in scripts {
            let mut config = container(machine, name, script);
            if name == "hog" {
                let limit = cri::LinuxContainerResources {
                    memory_limit_in_bytes: 32 << 20,
                    ..Default::default()
                };
                config.linux.get_or_insert_default().resources = Some(limit);
            }
            ids.push(client.launch(&pod_id, &config).await);
        }
        let mut pids = Vec::new();
        for id in &ids {
            pids.push(client.container_pid(id).await);
        }
        let victim = pids[2];
        machine.kill();
        let dead_since = now_ns();
        for pid in [pids[0], pids[1], pids[3]] {
            std::fs::write(format!("/proc/{pid}/root/go"), "").expect("it waits");
        }
        kill_process(Pid::from_raw(victim).expect("a pid"), Signal::KILL).expect("it lives");
        let exits = machine.state_dir().join("run/pods").join(&pod_id).join("exits");
        until("all have exited", async || {
            std::fs::read_dir(&exits).expect("the pod's").count() == ids.len()
        })
        .await;
        // The daemon comes much later than the ends.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let until_ns = now_ns() - 200_000_000;
        machine.start().await;
        let client = machine.client();
        let expected = [(0, "Completed"), (7, "Error"), (137, "Error"), (137, "OOMKilled")];
        for ((id, (name, _)), (code, reason)) in ids.iter().zip(scripts).zip(expected) {
            let status = client.status(id).await;
            assert_eq!(status.state(), cri::ContainerState::ContainerExited, "{name}");
            assert_eq!((status.exit_code, status.reason.as_str()), (code, reason), "{name}");
            assert!(
                status.finished_at > dead_since && status.finished_at < until_ns,
                "{name}: {}",
                status.finished_at
            );
            assert!(status.started_at > 0 && status.started_at < dead_since, "{name}");
        }
        assert!(client.is_ready(&pod_id).await);
        client.end_pod(&pod_id).await;
        machine.nothing_is_left_since(&before);
    });
}

#[test]
fn a_command_whose_daemon_died_ends_and_the_next_command_runs() {
    Machine::test("exec", async |machine| {
        let _registry = start(machine).await;
        let client = machine.client();
        let pod_id = client.run_pod(&pod(machine, "exec")).await.expect("RunPodSandbox");
        let id = client.launch(&pod_id, &container(machine, "idler", IDLER)).await;
        // What a command that has ended left running is the container's.
        client
            .exec(&id, "sleep 4711 > /dev/null 2>&1 &", 10)
            .await
            .expect("ExecSync");
        let before = machine.look();
        let (client, at) = (machine.client(), id.clone());
        let hanging = tokio::spawn(async move { client.exec(&at, "sleep 1000 & sleep 1000", 500).await });
        let two = "test $(ps | grep -c '[s]leep 1000') = 2";
        until("the command runs", async || {
            machine
                .client()
                .exec(&id, two, 10)
                .await
                .is_ok_and(|r| r.exit_code == 0)
        })
        .await;
        machine.kill();
        assert!(hanging.await.expect("no panic").is_err());
        machine.start().await;
        for _ in 0..3 {
            assert_eq!(
                machine
                    .client()
                    .exec(&id, "echo alive", 10)
                    .await
                    .expect("ExecSync")
                    .stdout,
                b"alive\n"
            );
        }
        machine.nothing_is_left_since(&before);
    });
}

#[test]
fn term_ends_the_daemon_and_no_container() {
    Machine::test("term", async |machine| {
        let _registry = start(machine).await;
        let client = machine.client();
        client.warm_up(machine).await;
        let before = machine.look();
        let pod_id = client.run_pod(&pod(machine, "term")).await.expect("RunPodSandbox");
        let id = client.launch(&pod_id, &container(machine, "counter", COUNTER)).await;
        let pids = [
            client.container_pid(&id).await,
            client.pod_pids(&pod_id).await.0,
            client.pod_pids(&pod_id).await.1,
        ];
        let status = machine.terminate().await;
        assert!(status.success(), "{status}");
        let log = logs(machine, "term").join("counter.log");
        let (so_far, pace) = (counted(&log_lines(&log)), 20);
        until("it counts on", async || counted(&log_lines(&log)) >= so_far + pace).await;
        assert!(pids.into_iter().all(lives));
        machine.start().await;
        let client = machine.client();
        assert!(client.is_ready(&pod_id).await);
        assert_eq!(client.container_pid(&id).await, pids[0]);
        client.stop(&id, 10).await.expect("StopContainer");
        assert_eq!(client.status(&id).await.exit_code, 0);
        counted(&log_lines(&log));
        client.end_pod(&pod_id).await;
        machine.nothing_is_left_since(&before);
    });
}

#[test]
fn a_second_daemon_on_the_directory_is_refused_and_harms_nothing() {
    Machine::test("second", async |machine| {
        let _registry = start(machine).await;
        let client = machine.client();
        let pod_id = client.run_pod(&pod(machine, "second")).await.expect("RunPodSandbox");
        let id = client.launch(&pod_id, &container(machine, "idler", IDLER)).await;
        let mut second = machine.command("").spawn().expect("crispd is executable");
        until("the second ends", async || {
            second.try_wait().expect("our child").is_some()
        })
        .await;
        let status = second.wait().expect("our child");
        assert!(status.code() == Some(1) && status.signal().is_none(), "{status}");
        let told = std::fs::read_to_string(machine.log()).expect("a log");
        assert!(told.contains("another crispd serves"), "it does not say why");
        assert_eq!(
            client.exec(&id, "echo alive", 10).await.expect("ExecSync").stdout,
            b"alive\n"
        );
        assert!(client.is_ready(&pod_id).await);
    });
}

/// Story: a daemon that came back with too few descriptors could not ask every monitor, took those for dead and killed
/// their pods.
#[test]
fn a_daemon_short_of_descriptors_kills_no_pod() {
    const PODS: usize = 24;
    Machine::test("few-descriptors", async |machine| {
        let _registry = start(machine).await;
        machine.client().warm_up(machine).await;
        let before = machine.look();
        let client = machine.client();
        let (mut pods, mut processes) = (Vec::new(), Vec::new());
        for n in 0..PODS {
            let mut config = pod(machine, &format!("pod-{n}"));
            config.port_mappings.clear();
            let id = client.run_pod(&config).await.expect("RunPodSandbox");
            processes.push(client.pod_pids(&id).await);
            pods.push(id);
        }
        // One that has made pods has more descriptors than one that came back to them.
        machine.kill();
        machine.start().await;
        let needed = std::fs::read_dir(format!("/proc/{}/fd", machine.pid()))
            .expect("it runs")
            .count();
        machine.kill();
        machine.descriptors = Some((needed - PODS / 2) as u64);
        let mut child = machine.command("").spawn().expect("crispd is executable");
        until("it is short of descriptors", async || {
            let log = std::fs::read_to_string(machine.log()).expect("a log");
            log.contains("Too many open files")
        })
        .await;
        // What it makes of that it does in this time, if it does not end of it.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let _ = child.kill();
        child.wait().expect("our child");
        machine.descriptors = None;
        machine.start().await;
        let client = machine.client();
        for (id, processes) in pods.iter().zip(processes) {
            assert!(client.is_ready(id).await, "its monitor was taken for dead");
            assert_eq!(client.pod_pids(id).await, processes);
            client.end_pod(id).await;
        }
        machine.nothing_is_left_since(&before);
    });
}
