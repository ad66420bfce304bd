//! Clients that go away in the middle of a request.

use std::time::{Duration, Instant};

use tonic::Code;

use crate::daemon::Machine;
use crate::pods::{IDLER, container, pod, start, until};

/// How long the daemon is held in the middle.
const HELD_MS: u64 = 1500;

/// How long the client waits before it goes away.
const WAITS: Duration = Duration::from_millis(500);

// The retry of these tests is the kubelet's: it gives up, and asks for the same again. No test repeats itself.

#[test]
fn a_pod_whose_client_went_away_is_given_to_the_retry() {
    Machine::test("cancel-run", async |machine| {
        let _registry = start(machine).await;
        machine.client().warm_up(machine).await;
        let before = machine.look();
        machine.kill();
        machine.start_with(&format!("sleep@run: pause made={HELD_MS}")).await;
        let client = machine.client();
        let config = pod(machine, "cancelled");
        let begin = Instant::now();
        tokio::time::timeout(WAITS, client.run_pod(&config))
            .await
            .expect_err("it is held");
        let mut other = config.clone();
        other.hostname = "another".to_owned();
        let refusal = client.run_pod(&other).await.expect_err("another request is under way");
        assert_eq!(refusal.code(), Code::AlreadyExists, "{refusal:?}");
        let id = client.run_pod(&config).await.expect("it joins the first");
        assert!(begin.elapsed() >= Duration::from_millis(HELD_MS), "it was not held");
        assert_eq!(client.pods().await, std::slice::from_ref(&id));
        assert!(client.is_ready(&id).await);
        // It has been answered: now the name is taken.
        for config in [&config, &other] {
            let refusal = client.run_pod(config).await.expect_err("the name is taken");
            assert_eq!(refusal.code(), Code::AlreadyExists, "{refusal:?}");
        }
        client.end_pod(&id).await;
        machine.nothing_is_left_since(&before);
    });
}

#[test]
fn a_container_whose_client_went_away_is_given_to_the_retry() {
    Machine::test("cancel-create", async |machine| {
        let _registry = start(machine).await;
        machine.client().warm_up(machine).await;
        let before = machine.look();
        machine.kill();
        machine
            .start_with(&format!("sleep@create: process made={HELD_MS}"))
            .await;
        let client = machine.client();
        let pod_id = client.run_pod(&pod(machine, "cancelled")).await.expect("RunPodSandbox");
        let config = container(machine, "idler", IDLER);
        let begin = Instant::now();
        tokio::time::timeout(WAITS, client.create(&pod_id, &config))
            .await
            .expect_err("it is held");
        let mut other = config.clone();
        other.working_dir = "/tmp".to_owned();
        let refusal = client
            .create(&pod_id, &other)
            .await
            .expect_err("another request is under way");
        assert_eq!(refusal.code(), Code::AlreadyExists, "{refusal:?}");
        let id = client.create(&pod_id, &config).await.expect("it joins the first");
        assert!(begin.elapsed() >= Duration::from_millis(HELD_MS), "it was not held");
        assert_eq!(client.containers().await, std::slice::from_ref(&id));
        for config in [&config, &other] {
            let refusal = client.create(&pod_id, config).await.expect_err("the name is taken");
            assert_eq!(refusal.code(), Code::AlreadyExists, "{refusal:?}");
        }
        client.start(&id).await.expect("StartContainer");
        client.end_pod(&pod_id).await;
        machine.nothing_is_left_since(&before);
    });
}

/// Story: a client that gives up on a stop must not leave a pod half stopped, nor a removal half done.
#[test]
fn an_end_whose_client_went_away_is_finished() {
    Machine::test("cancel-end", async |machine| {
        let _registry = start(machine).await;
        machine.client().warm_up(machine).await;
        let before = machine.look();
        for point in ["stop: containers ended", "remove: recorded"] {
            machine.kill();
            machine.start_with(&format!("sleep@{point}={HELD_MS}")).await;
            let client = machine.client();
            let pod_id = client.run_pod(&pod(machine, "cancelled")).await.expect("RunPodSandbox");
            client.launch(&pod_id, &container(machine, "idler", IDLER)).await;
            tokio::time::timeout(WAITS, client.remove_pod(&pod_id))
                .await
                .expect_err("it is held");
            machine.nothing_is_left_since(&before);
            assert_eq!(client.pods().await, Vec::<String>::new());
        }
    });
}

/// Story: a client that gave up on a start found its container running and its start refused; a start whose daemon died
/// was refused in the same way.
#[test]
fn a_start_whose_client_went_away_is_answered_to_the_retry_and_only_to_that() {
    Machine::test("cancel-start", async |machine| {
        let _registry = start(machine).await;
        machine.client().warm_up(machine).await;
        let before = machine.look();
        machine.kill();
        machine.start_with(&format!("sleep@start: executed={HELD_MS}")).await;
        let client = machine.client();
        let pod_id = client.run_pod(&pod(machine, "cancelled")).await.expect("RunPodSandbox");
        let config = container(machine, "idler", IDLER);
        let id = client.create(&pod_id, &config).await.expect("CreateContainer");
        tokio::time::timeout(WAITS, client.start(&id))
            .await
            .expect_err("it is held");
        client.start(&id).await.expect("it joins the first");
        let is_running = async |client: &crate::daemon::Client| {
            client.status(&id).await.state() == crisp::cri::ContainerState::ContainerRunning
        };
        assert!(is_running(&client).await);
        let refusal = client.start(&id).await.expect_err("it was answered for");
        assert_eq!(refusal.code(), Code::FailedPrecondition, "{refusal:?}");
        // Of an answer before a restart nobody can know whether it arrived.
        machine.kill();
        machine.start().await;
        let client = machine.client();
        client.start(&id).await.expect("it runs");
        assert!(is_running(&client).await);
        let refusal = client.start(&id).await.expect_err("it was answered for");
        assert_eq!(refusal.code(), Code::FailedPrecondition, "{refusal:?}");
        client.end_pod(&pod_id).await;
        machine.nothing_is_left_since(&before);
    });
}

/// Story: a creation that failed, and whose undoing failed, left its cgroup behind until the pod went.
#[test]
fn a_failed_creation_whose_undoing_fails_is_undone_later_and_the_name_is_free() {
    Machine::test("undo-create", async |machine| {
        let _registry = start(machine).await;
        machine.client().warm_up(machine).await;
        let empty = machine.look();
        machine.kill();
        machine.start_with("error@create: cgroup unmade").await;
        let client = machine.client();
        let pod_id = client.run_pod(&pod(machine, "undone")).await.expect("RunPodSandbox");
        let before = machine.look();
        let mut config = container(machine, "idler", IDLER);
        // Found out when the cgroup is there already.
        config.mounts = vec![crisp::cri::Mount {
            host_path: "/dev/null/no".into(),
            container_path: "/mnt".into(),
            ..Default::default()
        }];
        client.create(&pod_id, &config).await.expect_err("it cannot be mounted");
        machine.nothing_is_left_since(&before);
        assert_eq!(client.containers().await, Vec::<String>::new());
        config.mounts.clear();
        let id = client.launch(&pod_id, &config).await;
        client.remove(&id).await.expect("RemoveContainer");
        machine.nothing_is_left_since(&before);
        let log = std::fs::read_to_string(machine.log()).expect("a log");
        assert!(log.contains("could not undo"), "the fault did not strike");
        client.end_pod(&pod_id).await;
        machine.nothing_is_left_since(&empty);
    });
}

/// Story: a pod that is deleted while its container is made. The container came when the stop had looked for it; nobody
/// followed it, and no removal succeeded any more.
#[test]
fn a_container_that_is_made_while_its_pod_ends_ends_with_it() {
    Machine::test("create-end", async |machine| {
        let _registry = start(machine).await;
        machine.client().warm_up(machine).await;
        let before = machine.look();
        for end in ["stop", "remove", "the monitor is lost"] {
            machine.kill();
            machine
                .start_with(&format!("sleep@create: process made={HELD_MS}"))
                .await;
            let client = machine.client();
            let pod_id = client.run_pod(&pod(machine, "ended")).await.expect("RunPodSandbox");
            let config = container(machine, "idler", IDLER);
            tokio::time::timeout(WAITS, client.create(&pod_id, &config))
                .await
                .expect_err("it is held");
            match end {
                "stop" => client.stop_pod(&pod_id).await.expect("StopPodSandbox"),
                "remove" => client.remove_pod(&pod_id).await.expect("RemovePodSandbox"),
                _ => {
                    let (monitor, _) = client.pod_pids(&pod_id).await;
                    nix::sys::signal::kill(nix::unistd::Pid::from_raw(monitor), nix::sys::signal::SIGKILL)
                        .expect("the monitor is there");
                    until("the pod is not ready", async || !client.is_ready(&pod_id).await).await;
                }
            }
            client.end_pod(&pod_id).await;
            assert_eq!(client.containers().await, Vec::<String>::new(), "{end}");
            machine.nothing_is_left_since(&before);
        }
    });
}
