//! Something hangs: a CNI plugin, a registry, a file system, a monitor. Lists and statuses answer all the same.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crisp::cri;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::daemon::{Client, Machine};
use crate::fuse::{HungFileSystem, LOOKUP, OPENDIR};
use crate::pods::{COUNTER, IDLER, container, granted, namespaces, pod, start, until};
use crate::registry::{Conduct, busybox};

/// Far below what hangs takes, far above what an answer takes on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(5);

/// Lists and statuses answer, while whatever hangs does.
async fn all_answer(client: &Client, pod_id: &str, id: &str) {
    let begin = Instant::now();
    let looks = async {
        let mut runtime = client.runtime.clone();
        granted(runtime.status(cri::StatusRequest { verbose: true })).await;
        assert!(client.pods().await.contains(&pod_id.to_owned()));
        assert!(client.containers().await.contains(&id.to_owned()));
        assert!(client.is_ready(pod_id).await);
        assert_eq!(client.status(id).await.state(), cri::ContainerState::ContainerRunning);
        let mut runtime = client.runtime.clone();
        granted(runtime.list_container_stats(cri::ListContainerStatsRequest::default())).await;
        granted(runtime.list_pod_sandbox_stats(cri::ListPodSandboxStatsRequest::default())).await;
        let mut images = client.images.clone();
        granted(images.list_images(cri::ListImagesRequest::default())).await;
    };
    tokio::time::timeout(AT_ONCE, looks).await.expect("all answer at once");
    eprintln!("eight answers in {:?}", begin.elapsed());
}

/// A plugin that does nothing, and waits with that while it is told to.
struct Sleepy {
    dir: PathBuf,
}

impl Sleepy {
    fn install(machine: &mut Machine) -> Self {
        let dir = machine.dir().join("cni");
        std::fs::create_dir_all(dir.join("net.d")).expect("a directory");
        let here = dir.display();
        let script = format!(
            "#!/bin/sh\n\
             : > {here}/asked-$CNI_COMMAND; while test -e {here}/wait-$CNI_COMMAND; do sleep 0.05; done\n\
             test -e {here}/fail-$CNI_COMMAND && echo '{{\"cniVersion\":\"1.0.0\",\"code\":11,\"msg\":\"told to fail\"}}' && exit 1\n\
             test $CNI_COMMAND != ADD || echo '{{\"cniVersion\":\"1.0.0\",\"ips\":[{{\"address\":\"10.89.0.2/24\"}}]}}'\n"
        );
        std::fs::write(dir.join("sleepy"), script).expect("a script");
        std::fs::set_permissions(dir.join("sleepy"), std::fs::Permissions::from_mode(0o755)).expect("a script");
        let conf = json!({"cniVersion": "1.1.0", "name": "sleepy", "plugins": [{"type": "sleepy"}]});
        std::fs::write(dir.join("net.d/10-sleepy.conflist"), conf.to_string()).expect("a file");
        let confs = dir.join("net.d").display().to_string();
        let words = [
            "--network",
            "cni",
            "--cni-conf-dir",
            &confs,
            "--cni-bin-dir",
            &here.to_string(),
        ];
        machine.arguments = words.map(str::to_owned).to_vec();
        Self { dir }
    }

    fn tell(&self, what: &str, command: &str) {
        std::fs::write(self.dir.join(format!("{what}-{command}")), "").expect("a file");
    }

    fn go_on(&self, command: &str) {
        std::fs::remove_file(self.dir.join(format!("wait-{command}"))).expect("it waited");
    }

    fn was_asked(&self, command: &str) -> bool {
        self.dir.join(format!("asked-{command}")).exists()
    }
}

/// A pod on the node's network, for which no plugin is asked.
fn on_the_nodes_network(machine: &Machine, name: &str) -> cri::PodSandboxConfig {
    let mut config = pod(machine, name);
    let linux = config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().namespace_options = Some(cri::NamespaceOption {
        network: cri::NamespaceMode::Node.into(),
        ..namespaces(cri::NamespaceMode::Container)
    });
    config.port_mappings.clear();
    config
}

fn without_ports(machine: &Machine, name: &str) -> cri::PodSandboxConfig {
    cri::PodSandboxConfig {
        port_mappings: Vec::new(),
        ..pod(machine, name)
    }
}

#[test]
fn a_cni_plugin_hangs() {
    Machine::test("hang-cni", async |machine| {
        let plugin = Sleepy::install(machine);
        for command in ["ADD", "STATUS"] {
            plugin.tell("wait", command);
            plugin.tell("fail", command);
        }
        let _registry = start(machine).await;
        let client = machine.client();
        let config = on_the_nodes_network(machine, "there");
        let pod_id = client.run_pod(&config).await.expect("RunPodSandbox");
        let id = client.launch(&pod_id, &container(machine, "idler", IDLER)).await;
        let (other, hanging) = (machine.client(), without_ports(machine, "hanging"));
        let running = tokio::spawn(async move { other.run_pod(&hanging).await });
        until("the plugin hangs", async || plugin.was_asked("ADD")).await;
        all_answer(&client, &pod_id, &id).await;
        assert!(plugin.was_asked("STATUS"), "nobody asked for its status");
        assert!(!running.is_finished(), "it did not hang");
        plugin.go_on("ADD");
        plugin.go_on("STATUS");
        running.await.expect("no panic").expect_err("the plugin failed");
        client.end_pod(&pod_id).await;
    });
}

/// The end of a pod waits for its DEL; nothing else does, not even other pods of that network.
#[test]
fn a_cni_plugin_hangs_while_a_pod_ends() {
    Machine::test("hang-del", async |machine| {
        let plugin = Sleepy::install(machine);
        let _registry = start(machine).await;
        let client = machine.client();
        client
            .end_pod(
                &client
                    .run_pod(&without_ports(machine, "first"))
                    .await
                    .expect("RunPodSandbox"),
            )
            .await;
        let before = machine.look();
        let pod_id = client
            .run_pod(&without_ports(machine, "there"))
            .await
            .expect("RunPodSandbox");
        let id = client.launch(&pod_id, &container(machine, "idler", IDLER)).await;
        let leaving = client
            .run_pod(&without_ports(machine, "leaving"))
            .await
            .expect("RunPodSandbox");
        let in_leaving = client.launch(&leaving, &container(machine, "counter", COUNTER)).await;
        std::fs::remove_file(plugin.dir.join("asked-DEL")).expect("the first pod's");
        plugin.tell("wait", "DEL");
        let (other, at) = (machine.client(), leaving.clone());
        let stopping = tokio::spawn(async move { other.stop_pod(&at).await });
        until("the plugin hangs", async || plugin.was_asked("DEL")).await;
        all_answer(&client, &pod_id, &id).await;
        // What is told of the pod that leaves is true.
        assert!(client.pods().await.contains(&leaving) && !client.is_ready(&leaving).await);
        let status = client.status(&in_leaving).await;
        assert_eq!(status.state(), cri::ContainerState::ContainerExited);
        // Others come meanwhile, and get an address.
        let coming = client
            .run_pod(&without_ports(machine, "coming"))
            .await
            .expect("RunPodSandbox");
        let in_coming = client.launch(&coming, &container(machine, "idler", IDLER)).await;
        client.stop(&in_coming, 10).await.expect("StopContainer");
        all_answer(&client, &pod_id, &id).await;
        assert!(!stopping.is_finished(), "it did not hang");
        plugin.go_on("DEL");
        stopping.await.expect("no panic").expect("StopPodSandbox");
        for pod_id in [&leaving, &coming, &pod_id] {
            client.end_pod(pod_id).await;
        }
        machine.nothing_is_left_since(&before);
    });
}

#[test]
fn a_registry_hangs() {
    Machine::test("hang-pull", async |machine| {
        let registry = start(machine).await;
        let client = machine.client();
        let pod_id = client.run_pod(&pod(machine, "there")).await.expect("RunPodSandbox");
        let id = client.launch(&pod_id, &container(machine, "idler", IDLER)).await;
        let reference = registry.offer("slow", &[busybox(), vec![0; 100 << 10]], json!({}));
        registry.conduct(Conduct::Hang(1000));
        let mut images = client.images.clone();
        let pulling = tokio::spawn(async move {
            let image = Some(cri::ImageSpec {
                image: reference,
                ..Default::default()
            });
            let request = cri::PullImageRequest {
                image,
                ..Default::default()
            };
            images.pull_image(request).await
        });
        until("the registry hangs", async || registry.hanging() > 0).await;
        all_answer(&client, &pod_id, &id).await;
        assert!(!pulling.is_finished(), "it did not hang");
        pulling.abort();
        client.end_pod(&pod_id).await;
    });
}

/// A container with `path` as a volume.
fn with_volume(mut config: cri::ContainerConfig, path: &Path) -> cri::ContainerConfig {
    config.mounts = vec![cri::Mount {
        host_path: path.display().to_string(),
        container_path: "/volume".into(),
        ..Default::default()
    }];
    config
}

#[test]
fn a_file_system_hangs() {
    Machine::test("hang-mount", async |machine| {
        let hung = HungFileSystem::mount(machine, false);
        let _registry = start(machine).await;
        let client = machine.client();
        client.warm_up(machine).await;
        let empty = machine.look();
        let pod_id = client.run_pod(&pod(machine, "there")).await.expect("RunPodSandbox");
        let id = client.launch(&pod_id, &container(machine, "idler", IDLER)).await;
        client.exec(&id, "true", 5).await.expect("ExecSync");
        // Who has asked for figures has cgroups opened, which stay open.
        all_answer(&client, &pod_id, &id).await;
        let before = machine.look();
        let config = with_volume(container(machine, "hanging", IDLER), &hung.dir.join("volume"));
        let (other, at) = (machine.client(), pod_id.clone());
        let creating = tokio::spawn(async move { other.create(&at, &config).await });
        until("the file system is asked", async || hung.was_asked(LOOKUP)).await;
        all_answer(&client, &pod_id, &id).await;
        assert_eq!(
            client.containers().await,
            [id.clone()],
            "of what is not made nothing is told"
        );
        // Others come and go meanwhile, in this pod and in one of their own.
        let second = client.launch(&pod_id, &container(machine, "second", IDLER)).await;
        client.remove(&second).await.expect("RemoveContainer");
        client.warm_up(machine).await;
        all_answer(&client, &pod_id, &id).await;
        assert!(!creating.is_finished(), "it did not hang");
        drop(hung);
        creating.await.expect("no panic").expect_err("the file system is gone");
        machine.nothing_is_left_since(&before);
        client.end_pod(&pod_id).await;
        machine.nothing_is_left_since(&empty);
    });
}

/// A process that waits for a file system that has taken its request cannot be killed, and keeps its mounts: its container's end
/// waits for it, and so does its pod's.
#[test]
fn a_file_system_hangs_under_a_container() {
    Machine::test("hang-inside", async |machine| {
        let hung = HungFileSystem::mount(machine, true);
        let _registry = start(machine).await;
        let client = machine.client();
        client.warm_up(machine).await;
        let before = machine.look();
        let pod_id = client.run_pod(&pod(machine, "there")).await.expect("RunPodSandbox");
        let id = client.launch(&pod_id, &container(machine, "idler", IDLER)).await;
        let stuck_pod = client.run_pod(&pod(machine, "stuck")).await.expect("RunPodSandbox");
        let config = with_volume(container(machine, "lister", "exec ls /volume"), &hung.dir);
        let stuck = client.launch(&stuck_pod, &config).await;
        until("the file system is asked", async || hung.was_asked(OPENDIR)).await;
        let pid = client.container_pid(&stuck).await;
        let requests = [
            tokio::spawn({
                let (other, stuck) = (machine.client(), stuck.clone());
                async move { other.stop(&stuck, 0).await }
            }),
            tokio::spawn({
                let (other, stuck_pod) = (machine.client(), stuck_pod.clone());
                async move { other.stop_pod(&stuck_pod).await }
            }),
        ];
        until("it is killed", async || {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
            let pending = status.lines().find_map(|line| line.strip_prefix("SigPnd:"));
            let pending = pending.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
            let shared = status.lines().find_map(|line| line.strip_prefix("ShdPnd:"));
            let shared = shared.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
            (pending.unwrap_or(0) | shared.unwrap_or(0)) & 1 << 8 != 0
        })
        .await;
        all_answer(&client, &pod_id, &id).await;
        let state = client.status(&stuck).await.state();
        assert_eq!(state, cri::ContainerState::ContainerRunning, "it has not ended");
        client.warm_up(machine).await;
        let second = client.launch(&pod_id, &container(machine, "second", IDLER)).await;
        client.remove(&second).await.expect("RemoveContainer");
        all_answer(&client, &pod_id, &id).await;
        drop(hung);
        assert_eq!(client.exited(&stuck).await.exit_code, 137);
        for request in requests {
            // Late enough, each of them has succeeded; else it says what stood in its way.
            if let Err(refusal) = request.await.expect("no panic") {
                assert!(refusal.message().contains(&stuck), "{refusal:?}");
            }
        }
        client.end_pod(&stuck_pod).await;
        client.end_pod(&pod_id).await;
        machine.nothing_is_left_since(&before);
    });
}

fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).expect("a pid"), signal).expect("it lives");
}

/// Story: recovery greeted all monitors and waited for the slowest: one that was stopped kept the daemon from serving
/// for half a minute, on a node whose other pods were fine.
#[test]
fn a_stopped_monitor_delays_neither_the_daemon_nor_other_pods_and_joins_later() {
    Machine::test("silent", async |machine| {
        let _registry = start(machine).await;
        let client = machine.client();
        client.warm_up(machine).await;
        let before = machine.look();
        let mut pods = Vec::new();
        for name in ["silent", "fine", "doomed"] {
            let pod_id = client.run_pod(&pod(machine, name)).await.expect("RunPodSandbox");
            let id = client.launch(&pod_id, &container(machine, name, COUNTER)).await;
            let (monitor, pid) = (client.pod_pids(&pod_id).await.0, client.container_pid(&id).await);
            pods.push((pod_id, id, monitor, pid));
        }
        let [
            (silent, in_silent, silent_monitor, pid),
            (fine, in_fine, ..),
            (doomed, in_doomed, doomed_monitor, _),
        ] = &pods[..]
        else {
            panic!("three pods");
        };
        let waiting = client
            .create(silent, &container(machine, "waiting", IDLER))
            .await
            .expect("CreateContainer");
        machine.kill();
        signal(*silent_monitor, Signal::STOP);
        signal(*doomed_monitor, Signal::STOP);
        let begin = Instant::now();
        machine.start().await;
        assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
        let client = machine.client();
        for (pod_id, id) in [(silent, in_silent), (fine, in_fine), (doomed, in_doomed)] {
            all_answer(&client, pod_id, id).await;
        }
        assert_eq!(client.container_pid(in_silent).await, *pid);
        assert_eq!(
            client.status(&waiting).await.state(),
            cri::ContainerState::ContainerCreated
        );
        // The other pod does everything.
        assert_eq!(
            client.exec(in_fine, "echo alive", 10).await.expect("ExecSync").stdout,
            b"alive\n"
        );
        let more = client.launch(fine, &container(machine, "more", IDLER)).await;
        client.remove(&more).await.expect("RemoveContainer");
        // What a stopped monitor cannot do is done without it.
        client.end_pod(doomed).await;
        let its = PathBuf::from(format!("/proc/{doomed_monitor}/fd"));
        until("its monitor is gone", async || std::fs::read_dir(&its).is_err()).await;
        // An end that nobody tells is seen.
        let mortal = client.container_pid(&waiting).await;
        signal(mortal, Signal::KILL);
        assert_eq!(client.exited(&waiting).await.exit_code, 137);
        // A request waits for a monitor that comes back in time.
        let (other, at) = (machine.client(), in_silent.clone());
        let executing = tokio::spawn(async move { other.exec(&at, "echo back", 10).await });
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!executing.is_finished(), "nobody could have run it");
        signal(*silent_monitor, Signal::CONT);
        assert_eq!(executing.await.expect("no panic").expect("ExecSync").stdout, b"back\n");
        assert_eq!(client.status(&waiting).await.exit_code, 137);
        client.stop(in_silent, 10).await.expect("StopContainer");
        assert_eq!(client.status(in_silent).await.exit_code, 0);
        client.end_pod(silent).await;
        client.end_pod(fine).await;
        machine.nothing_is_left_since(&before);
    });
}
