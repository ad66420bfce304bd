//! Something hangs: a CNI plugin, a registry, a file system, a monitor. Lists and statuses answer all the same.

use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crisp::cri;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::daemon::{Client, Machine};
use crate::pods::{COUNTER, IDLER, container, granted, pod, start, until};
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
        let mut images = client.images.clone();
        granted(images.list_images(cri::ListImagesRequest::default())).await;
    };
    tokio::time::timeout(AT_ONCE, looks).await.expect("all answer at once");
    eprintln!("seven answers in {:?}", begin.elapsed());
}

#[test]
fn a_cni_plugin_hangs() {
    Machine::test("hang-cni", async |machine| {
        let dir = machine.dir().join("cni");
        std::fs::create_dir_all(dir.join("net.d")).expect("a directory");
        let here = dir.display();
        let script = format!(
            "#!/bin/sh\n\
             test $CNI_COMMAND = ADD -o $CNI_COMMAND = STATUS || exit 0\n\
             : > {here}/hangs-$CNI_COMMAND; while ! test -e {here}/go; do sleep 0.05; done\n\
             echo '{{\"cniVersion\":\"1.0.0\",\"code\":11,\"msg\":\"told to fail\"}}'; exit 1\n"
        );
        std::fs::write(dir.join("sleepy"), script).expect("a script");
        std::fs::set_permissions(dir.join("sleepy"), std::fs::Permissions::from_mode(0o755)).expect("a script");
        let conf = json!({"cniVersion": "1.1.0", "name": "sleepy", "plugins": [{"type": "sleepy"}]});
        std::fs::write(dir.join("net.d/10-sleepy.conflist"), conf.to_string()).expect("a file");
        let words = ["--network", "cni", "--cni-conf-dir", "", "--cni-bin-dir", ""].map(str::to_owned);
        machine.arguments = words.to_vec();
        machine.arguments[3] = dir.join("net.d").display().to_string();
        machine.arguments[5] = dir.display().to_string();
        let _registry = start(machine).await;
        let client = machine.client();
        // On the node's network, for which no plugin is asked.
        let mut config = pod(machine, "there");
        let security = config
            .linux
            .get_or_insert_default()
            .security_context
            .get_or_insert_default();
        security.namespace_options = Some(cri::NamespaceOption {
            network: cri::NamespaceMode::Node.into(),
            pid: cri::NamespaceMode::Container.into(),
            ..Default::default()
        });
        config.port_mappings.clear();
        let pod_id = client.run_pod(&config).await.expect("RunPodSandbox");
        let id = client.launch(&pod_id, &container(machine, "idler", IDLER)).await;
        let (other, hanging) = (machine.client(), pod(machine, "hanging"));
        let running = tokio::spawn(async move { other.run_pod(&hanging).await });
        until("the plugin hangs", async || dir.join("hangs-ADD").exists()).await;
        all_answer(&client, &pod_id, &id).await;
        assert!(dir.join("hangs-STATUS").exists(), "nobody asked for its status");
        assert!(!running.is_finished(), "it did not hang");
        std::fs::write(dir.join("go"), "").expect("a file");
        running.await.expect("no panic").expect_err("the plugin failed");
        client.end_pod(&pod_id).await;
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

/// A file system that never answers, until it is dropped.
struct HungFileSystem {
    _device: std::fs::File,
    dir: PathBuf,
}

impl HungFileSystem {
    fn mount(machine: &Machine) -> Self {
        use std::os::fd::AsRawFd;
        let dir = machine.dir().join("hung");
        std::fs::create_dir(&dir).expect("a directory");
        let mut options = std::fs::OpenOptions::new();
        let device = options
            .read(true)
            .write(true)
            .custom_flags(libc::O_CLOEXEC)
            .open("/dev/fuse");
        let device = device.expect("the kernel has FUSE");
        let data = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,allow_other",
            device.as_raw_fd()
        );
        let data = std::ffi::CString::new(data).expect("no NUL");
        rustix::mount::mount(
            "hung",
            &dir,
            "fuse",
            rustix::mount::MountFlags::empty(),
            data.as_c_str(),
        )
        .expect("root may mount it");
        Self { _device: device, dir }
    }
}

#[test]
fn a_file_system_hangs() {
    Machine::test("hang-mount", async |machine| {
        let hung = HungFileSystem::mount(machine);
        let _registry = start(machine).await;
        let client = machine.client();
        let pod_id = client.run_pod(&pod(machine, "there")).await.expect("RunPodSandbox");
        let id = client.launch(&pod_id, &container(machine, "idler", IDLER)).await;
        let mut config = container(machine, "hanging", IDLER);
        config.mounts = vec![cri::Mount {
            host_path: hung.dir.join("volume").display().to_string(),
            container_path: "/volume".into(),
            ..Default::default()
        }];
        let (other, at) = (machine.client(), pod_id.clone());
        let creating = tokio::spawn(async move { other.create(&at, &config).await });
        tokio::time::sleep(Duration::from_millis(300)).await;
        all_answer(&client, &pod_id, &id).await;
        assert!(!creating.is_finished(), "it did not hang");
        // Others come and go meanwhile.
        let second = client.launch(&pod_id, &container(machine, "second", IDLER)).await;
        client.stop(&second, 10).await.expect("StopContainer");
        drop(hung);
        creating.await.expect("no panic").expect_err("the file system is gone");
        client.end_pod(&pod_id).await;
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
