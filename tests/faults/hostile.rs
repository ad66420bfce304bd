//! Containers and commands that do their worst: nothing hangs, nothing is lost, nothing stays.

use std::time::{Duration, Instant};

use crisp::cri;
use serde_json::json;
use tonic::Code;

use crate::daemon::{Client, Machine};
use crate::pods::{COUNTER, IDLER, container, counted, log_lines, logs, pod, pull, start, until};
use crate::registry::busybox;

/// Both streams together, and what names them, fit into one message of this size.
const EXEC_LIMIT: usize = 16 << 20;

async fn pod_and_container(machine: &Machine, script: &str) -> (Client, String, String) {
    let client = machine.client();
    let pod_id = client.run_pod(&pod(machine, "hostile")).await.expect("RunPodSandbox");
    let id = client.launch(&pod_id, &container(machine, "hostile", script)).await;
    (client, pod_id, id)
}

#[test]
fn a_fork_bomb_stays_within_its_limit_and_is_stopped() {
    Machine::test("bomb", async |machine| {
        let _registry = start(machine).await;
        machine.client().warm_up(machine).await;
        let before = machine.look();
        let client = machine.client();
        let pod_id = client.run_pod(&pod(machine, "bomb")).await.expect("RunPodSandbox");
        let mut config = container(
            machine,
            "bomb",
            "trap '' TERM; mkfifo /tmp/f; exec 3<>/tmp/f; b() { while :; do b & done; }; b 2>/dev/null & while :; do read x <&3; done",
        );
        let unified = [("pids.max".to_owned(), "60".to_owned())].into();
        let limit = cri::LinuxContainerResources {
            unified,
            ..Default::default()
        };
        config.linux.get_or_insert_default().resources = Some(limit);
        let id = client.launch(&pod_id, &config).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let begin = Instant::now();
        // There may be no room for one more process; whichever way it goes, it goes soon.
        let _ = client.exec(&id, "true", 5).await;
        assert!(
            begin.elapsed() < Duration::from_secs(15),
            "ExecSync took {:?}",
            begin.elapsed()
        );
        let begin = Instant::now();
        client.stop(&id, 1).await.expect("StopContainer");
        assert!(
            begin.elapsed() < Duration::from_secs(15),
            "StopContainer took {:?}",
            begin.elapsed()
        );
        assert_eq!(client.status(&id).await.exit_code, 137);
        client.end_pod(&pod_id).await;
        machine.nothing_is_left_since(&before);
    });
}

#[test]
fn a_full_disk_or_a_vanished_directory_of_logs_does_not_block_the_application() {
    Machine::test("full-log", async |machine| {
        let _registry = start(machine).await;
        let client = machine.client();
        client.warm_up(machine).await;
        let dir = logs(machine, "full");
        std::fs::create_dir_all(&dir).expect("a directory");
        machine.sh(&format!("mount -t tmpfs -o size=256k none {}", dir.display()));
        let before = machine.look();
        let pod_id = client.run_pod(&pod(machine, "full")).await.expect("RunPodSandbox");
        // 4 MB, sixteen times what there is room for.
        let script = "i=0; while [ $i -lt 40000 ]; do echo $i: ------------------------------------------------------------\
                      -----------------------; i=$((i+1)); done; exit 3";
        let id = client.launch(&pod_id, &container(machine, "writer", script)).await;
        assert_eq!(client.exited(&id).await.exit_code, 3);
        let log = std::fs::metadata(dir.join("writer.log")).expect("the log");
        assert!(log.len() > 100_000, "{} bytes were logged", log.len());
        client.end_pod(&pod_id).await;
        machine.nothing_is_left_since(&before);

        let (client, pod_id, id) = pod_and_container(machine, COUNTER).await;
        let log = logs(machine, "hostile").join("hostile.log");
        until("it counts", async || counted(&log_lines(&log)) > 10).await;
        std::fs::remove_dir_all(logs(machine, "hostile")).expect("it was made");
        client.reopen_log(&id).await.expect("ReopenContainerLog makes it anew");
        until("it counts on", async || log_lines(&log).len() > 10).await;
        let lines: Vec<u64> = log_lines(&log)
            .iter()
            .map(|line| line.parse().expect("a number"))
            .collect();
        assert!(lines.windows(2).all(|pair| pair[1] == pair[0] + 1), "{lines:?}");
        client.stop(&id, 10).await.expect("StopContainer");
        assert_eq!(client.status(&id).await.exit_code, 0);
        client.end_pod(&pod_id).await;
        machine.nothing_is_left_since(&before);
    });
}

#[test]
fn a_log_reopened_under_full_load_loses_and_doubles_no_line() {
    Machine::test("reopen", async |machine| {
        let _registry = start(machine).await;
        // As fast as it can, until it is told to stop; then it says elsewhere how far it came.
        let script = "i=0; while [ ! -e /tmp/stop ]; do echo $i; i=$((i+1)); done; echo $i > /tmp/total";
        let (client, pod_id, id) = pod_and_container(machine, script).await;
        let log = logs(machine, "hostile").join("hostile.log");
        let mut rotated = Vec::new();
        for number in 0..12 {
            until("it writes", async || {
                std::fs::metadata(&log).is_ok_and(|log| log.len() > 10_000)
            })
            .await;
            let old = log.with_extension(number.to_string());
            std::fs::rename(&log, &old).expect("the log is there");
            client.reopen_log(&id).await.expect("ReopenContainerLog");
            let size = std::fs::metadata(&old).expect("just renamed").len();
            rotated.push((old, size));
        }
        client.exec(&id, "> /tmp/stop", 10).await.expect("ExecSync");
        assert_eq!(client.exited(&id).await.exit_code, 0);
        for (old, size) in &rotated {
            assert_eq!(
                std::fs::metadata(old).expect("ours").len(),
                *size,
                "written to after it was given up"
            );
        }
        let files = rotated.iter().map(|(old, _)| old).chain([&log]);
        let lines: Vec<String> = files.flat_map(|file| log_lines(file)).collect();
        let container_dir = machine.state_dir().join("lib/pods").join(&pod_id).join(&id);
        let total = std::fs::read_to_string(container_dir.join("upper/tmp/total")).expect("it came to its end");
        assert_eq!(counted(&lines).to_string(), total.trim_end());
        client.end_pod(&pod_id).await;
    });
}

/// An archive of one empty directory.
fn emptiness() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_size(0);
    header.set_mode(0o755);
    builder
        .append_data(&mut header, "nothing/", std::io::empty())
        .expect("in memory");
    builder.into_inner().expect("in memory")
}

/// Story: an image's /dev was a link to a directory of the node's, and a volume at /proc had ordinary directories where the
/// way there led through the kernel's own links: the links that every container has below /dev were made there. So they
/// were if a link of the image's led a volume with such a /dev over the root.
#[test]
fn no_link_of_an_image_or_a_volume_has_anything_made_on_the_node() {
    Machine::test("dev-link", async |machine| {
        let registry = start(machine).await;
        let client = machine.client();
        client.warm_up(machine).await;
        let outside = machine.dir().join("outside");
        std::fs::create_dir(&outside).expect("a directory");
        // This process stands for the node's first: not every machine lets its root look into that.
        let target = format!("/proc/{}/root{}", std::process::id(), outside.display());
        let volume = machine.dir().join("volume");
        std::fs::create_dir_all(volume.join(target.trim_start_matches("/proc/"))).expect("directories");
        std::os::unix::fs::symlink(&target, volume.join("dev")).expect("a link");
        std::os::unix::fs::symlink("/", volume.join("top")).expect("a link");
        let image = async |name: &str, link: &str, target: &str| {
            let mut builder = tar::Builder::new(Vec::new());
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            builder.append_link(&mut header, link, target).expect("in memory");
            let layers = [busybox(), builder.into_inner().expect("in memory")];
            let reference = registry.offer(name, &layers, json!({"Env": ["PATH=/bin"]}));
            pull(&client, &reference).await.expect("an honest registry");
            reference
        };
        let dev = image("dev", "dev", &target).await;
        let deep = image("deep", "x/y/z/w", "/").await;
        let proc = image("proc", "x/y/z/w", "../../../proc").await;
        let before = machine.look();
        let pod_id = client.run_pod(&pod(machine, "dev-link")).await.expect("RunPodSandbox");
        let mut config = container(machine, "idler", IDLER);
        for (image, places, words) in [
            (&dev, vec![], "symbolic link"),
            (&dev, vec!["/proc"], "symbolic link"),
            (&deep, vec!["/x/y/z/w"], "over the root file system"),
            // By way of another volume, which libcontainer mounts, too.
            (
                &deep,
                vec!["/dev/volume", "/dev/volume/top"],
                "over the root file system",
            ),
            (&deep, vec!["/x/y/z/w/proc"], "not a proc file system"),
            (&proc, vec!["/x/y/z/w"], "not a proc file system"),
        ] {
            config.image.as_mut().expect("set by us").image = image.clone();
            let at = |place: &str| cri::Mount {
                container_path: place.to_owned(),
                host_path: volume.display().to_string(),
                ..Default::default()
            };
            config.mounts = places.iter().map(|place| at(place)).collect();
            let made = client.create(&pod_id, &config).await;
            assert_eq!(
                std::fs::read_dir(&outside).expect("it is there").count(),
                0,
                "{places:?} made something on the node"
            );
            match made {
                Err(refusal) if !crate::handlers::is_external() => {
                    assert!(refusal.message().contains(words), "{places:?}: {refusal:?}");
                }
                Err(_) => {}
                Ok(_) => assert!(crate::handlers::is_external(), "{places:?} is not refused"),
            }
        }
        client.end_pod(&pod_id).await;
        machine.nothing_is_left_since(&before);
    });
}

#[test]
fn a_program_that_is_not_there_is_told_by_the_start_and_by_the_status() {
    Machine::test("emptiness", async |machine| {
        let registry = start(machine).await;
        let client = machine.client();
        client.warm_up(machine).await;
        let reference = registry.offer("empty", &[emptiness()], json!({}));
        pull(&client, &reference).await.expect("an honest registry");
        let before = machine.look();
        let pod_id = client.run_pod(&pod(machine, "empty")).await.expect("RunPodSandbox");
        let mut config = container(machine, "empty", "true");
        config.image = Some(cri::ImageSpec {
            image: reference,
            ..Default::default()
        });
        if crate::handlers::is_external() {
            // An OCI runtime looks for the program when it makes the container.
            let refusal = client.create(&pod_id, &config).await.expect_err("there is no shell");
            assert!(refusal.message().contains("/bin/sh"), "{refusal:?}");
            client.end_pod(&pod_id).await;
            machine.nothing_is_left_since(&before);
            return;
        }
        let id = client.create(&pod_id, &config).await.expect("CreateContainer");
        let refusal = client.start(&id).await.expect_err("there is no shell");
        assert!(refusal.message().contains("/bin/sh"), "{refusal:?}");
        let status = client.status(&id).await;
        assert_eq!(status.state(), cri::ContainerState::ContainerExited);
        assert!([127, 128].contains(&status.exit_code), "{status:?}");
        assert_eq!(status.reason, "StartError");
        assert!(status.message.contains("/bin/sh"), "{status:?}");
        client.stop(&id, 1).await.expect("StopContainer");
        client.remove(&id).await.expect("RemoveContainer");
        client.end_pod(&pod_id).await;
        machine.nothing_is_left_since(&before);
    });
}

#[test]
fn a_command_ends_when_its_process_does_or_its_time_is_over() {
    Machine::test("commands", async |machine| {
        let _registry = start(machine).await;
        let (client, pod_id, id) = pod_and_container(machine, IDLER).await;
        client.exec(&id, "true", 5).await.expect("ExecSync");
        let before = machine.look();

        // Somebody else holds the output open.
        let begin = Instant::now();
        let output = client
            .exec(&id, "sleep 4711 & echo said; exit 5", 60)
            .await
            .expect("ExecSync");
        assert_eq!((output.stdout.as_slice(), output.exit_code), (b"said\n".as_slice(), 5));
        assert!(
            begin.elapsed() < Duration::from_secs(5),
            "it took {:?}",
            begin.elapsed()
        );
        client
            .exec(
                &id,
                "kill $(ps | grep '[s]leep 4711' | { read pid rest; echo $pid; })",
                5,
            )
            .await
            .expect("ExecSync");
        machine.nothing_is_left_since(&before);

        // A family, of which some have left the session.
        let begin = Instant::now();
        let script = "setsid sleep 1000 & setsid sh -c 'trap \"\" TERM; sleep 1000 & sleep 1000' & sleep 1000";
        let refusal = client.exec(&id, script, 1).await.expect_err("its time is over");
        assert_eq!(refusal.code(), Code::DeadlineExceeded, "{refusal:?}");
        assert!(
            begin.elapsed() < Duration::from_secs(5),
            "it took {:?}",
            begin.elapsed()
        );
        machine.nothing_is_left_since(&before);

        // The client goes away.
        let gone = tokio::time::timeout(Duration::from_millis(300), client.exec(&id, script, 60)).await;
        gone.expect_err("it sleeps");
        machine.nothing_is_left_since(&before);

        let nearly = |limit: usize, len: usize| len <= limit && len > limit - 4096;
        let script = "head -c 20000000 /dev/zero; exit 8";
        let output = client.exec(&id, script, 60).await.expect("ExecSync");
        assert!(nearly(EXEC_LIMIT, output.stdout.len()), "{} bytes", output.stdout.len());
        assert_eq!((output.stderr.len(), output.exit_code), (0, 8));
        let script = "head -c 20000000 /dev/zero; head -c 20000000 /dev/zero >&2; exit 9";
        let output = client.exec(&id, script, 60).await.expect("ExecSync");
        assert!(nearly(EXEC_LIMIT, output.stdout.len() + output.stderr.len()));
        assert!(
            nearly(EXEC_LIMIT / 2, output.stderr.len()) && output.exit_code == 9,
            "{}",
            output.stderr.len()
        );
        machine.nothing_is_left_since(&before);
        client.end_pod(&pod_id).await;
    });
}

/// Story: in a pod whose containers share one pid namespace the end of a container's first process ends no other. One
/// that is told to be over must not run on.
#[test]
fn nothing_of_a_container_outlives_it_in_a_shared_pid_namespace() {
    Machine::test("shared", async |machine| {
        let _registry = start(machine).await;
        let client = machine.client();
        client.warm_up(machine).await;
        let shared = |linux: Option<&mut cri::NamespaceOption>| {
            linux.expect("set by us").pid = cri::NamespaceMode::Pod as i32;
        };
        let mut config = pod(machine, "shared");
        let linux = config.linux.as_mut().and_then(|linux| linux.security_context.as_mut());
        shared(linux.and_then(|security| security.namespace_options.as_mut()));
        let pod_id = client.run_pod(&config).await.expect("RunPodSandbox");
        let mut config = container(machine, "parent", "setsid sleep 4711 & sleep 0.2; exit 0");
        let linux = config.linux.as_mut().and_then(|linux| linux.security_context.as_mut());
        shared(linux.and_then(|security| security.namespace_options.as_mut()));
        let before = machine.look();
        let id = client.launch(&pod_id, &config).await;
        client.exited(&id).await;
        client.stop(&id, 10).await.expect("StopContainer");
        assert!(!sleeps("4711"), "it outlives the stop");
        client.remove(&id).await.expect("RemoveContainer");
        machine.nothing_is_left_since(&before);
        // One that nobody stops is started anew beside it.
        config.command[2] = config.command[2].replace("4711", "4712");
        let id = client.launch(&pod_id, &config).await;
        client.exited(&id).await;
        until("what it left has ended", async || !sleeps("4712")).await;
        client.end_pod(&pod_id).await;
    });
}

/// Whether any process on the machine is `sleep seconds`.
fn sleeps(seconds: &str) -> bool {
    let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
    let command = format!("sleep\0{seconds}\0");
    processes
        .filter_map(|process| std::fs::read_to_string(process.path().join("cmdline")).ok())
        .any(|line| line == command)
}
