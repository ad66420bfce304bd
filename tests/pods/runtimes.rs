//! Runtime handlers: libcontainer and two external OCI runtimes, side by side in one daemon.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use crisp::cri::{self, ContainerState};
use tonic::Code;

use crate::endpoint;
use crate::fixture::{
    Container, OwnWorld, Pod, World, ask, eventually, image, int, is_code, options, resources, says, security, world,
};
use crate::registry::reference;

const EXTERNAL: [(&str, &str); 2] = [("runc", "/usr/sbin/runc"), ("crun", "/usr/bin/crun")];

fn pod_by(world: &'static World, handler: &str, name: &str) -> Pod {
    endpoint::only_crisp("runtime handlers of its settings");
    world
        .try_pod_by(handler, name, |_| {})
        .unwrap_or_else(|error| panic!("pod {name}: {error}"))
}

#[test]
fn status_lists_the_handlers_with_what_each_says_of_itself() {
    endpoint::only_crisp("runtime handlers of its settings");
    let status = ask(world().runtime().status(cri::StatusRequest::default())).unwrap();
    let told: Vec<(String, bool, bool)> = status
        .runtime_handlers
        .into_iter()
        .map(|handler| {
            let features = handler.features.expect("features");
            let (rro, userns) = (features.recursive_read_only_mounts, features.user_namespaces);
            (handler.name, rro, userns)
        })
        .collect();
    assert_eq!(told[0].0, "", "the built-in one is the first");
    assert!(told[0].1);
    for (name, path) in EXTERNAL {
        let asked = Command::new(path).arg("features").output().expect("it is installed");
        let says_rro = asked.status.success() && String::from_utf8_lossy(&asked.stdout).contains("\"rro\"");
        assert!(told.contains(&(name.to_owned(), says_rro, false)), "{name}: {told:?}");
    }
    assert_eq!(told.len(), 3);
}

#[test]
fn an_unknown_handler_is_refused_with_those_that_there_are() {
    let refused = world()
        .try_pod_by("kata", "no-handler", |_| {})
        .err()
        .expect("there is none");
    let all = r#"failed to find runtime handler "kata": configured are ["", "crun", "runc"]"#;
    assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, all));
    let of_kata = || cri::ImageSpec {
        runtime_handler: "kata".into(),
        ..image(&reference("toolbox"))
    };
    let pull = cri::PullImageRequest {
        image: Some(of_kata()),
        ..Default::default()
    };
    assert_eq!(ask(world().images().pull_image(pull)).unwrap_err().message(), all);
    let pod = world().pod("image-handler");
    let mut config = pod.config("c", &["true"]);
    config.image = Some(of_kata());
    assert_eq!(pod.try_create(config).err().expect("there is none").message(), all);
    for (handler, _) in EXTERNAL {
        let pull = cri::PullImageRequest {
            image: Some(cri::ImageSpec {
                runtime_handler: handler.into(),
                ..image(&reference("toolbox"))
            }),
            ..Default::default()
        };
        ask(world().images().pull_image(pull)).unwrap();
    }
}

#[test]
fn an_external_runtime_has_no_user_namespaces() {
    for (handler, _) in EXTERNAL {
        let mapping = || {
            vec![cri::IdMapping {
                host_id: 100_000,
                container_id: 0,
                length: 65_536,
            }]
        };
        let refused = world().try_pod_by(handler, "userns", |config| {
            options(config).userns_options = Some(cri::UserNamespace {
                mode: cri::NamespaceMode::Pod.into(),
                uids: mapping(),
                gids: mapping(),
            });
        });
        let refused = refused.err().expect("it cannot");
        assert!(is_code(&refused, Code::InvalidArgument), "{refused}");
        assert!(says(&refused, "user namespaces"), "{refused}");
    }
}

/// What of a runtime is left in the node's mount table.
fn mounts_of(pod: &Pod) -> Vec<String> {
    let table = fs::read_to_string(format!("/proc/{}/mountinfo", world().daemon_pid())).unwrap();
    let lines = table
        .lines()
        .filter(|line| line.contains(&pod.id) && line.contains("/runtime/"));
    lines.map(str::to_owned).collect()
}

fn parent_of(pid: i64) -> i64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    line.and_then(|pid| pid.trim().parse().ok()).expect("a parent")
}

/// The directory of the pod's run directory that runtimes use.
fn runtime_dir(pod: &Pod) -> PathBuf {
    pod.world.crisps_dir().join("d/run/pods").join(&pod.id).join("runtime")
}

fn born_and_looked_at(handler: &str) {
    let name = format!("looked-at-{}", if handler.is_empty() { "built-in" } else { handler });
    let pod = pod_by(world(), handler, &name);
    assert_eq!(pod.status().runtime_handler, handler);
    assert_eq!(pod.info()["runtimeHandler"], handler);
    let dir = world().directory(&format!("ro-{handler}"));
    fs::write(dir.join("note"), "of the host\n").unwrap();
    let c = pod.idle("c", |config| {
        config.mounts = vec![cri::Mount {
            host_path: dir.display().to_string(),
            container_path: "/ro".into(),
            readonly: true,
            ..Default::default()
        }];
        security(config).run_as_user = int(1000);
        security(config).run_as_group = int(50);
        security(config).no_new_privs = true;
        security(config).seccomp = Some(cri::SecurityProfile::default());
        resources(config).memory_limit_in_bytes = 64 << 20;
        resources(config).memory_swap_limit_in_bytes = 64 << 20;
    });
    assert_eq!(parent_of(c.pid()), pod.info()["monitorPid"].as_i64().unwrap());
    assert_eq!(
        c.sh("cat /ro/note; id -u; id -g; hostname"),
        format!("of the host\n1000\n50\n{name}")
    );
    assert_ne!(c.exec(&["touch", "/ro/x"]).code, 0);
    let status = "sed -n 's/^\\(Seccomp\\|NoNewPrivs\\):[[:space:]]*//p' /proc";
    assert_eq!(c.sh(&format!("{status}/1/status; {status}/self/status")), "1\n2\n1\n2");
    let limit = ["memory/memory.limit_in_bytes", "memory.max"].map(|file| format!("/sys/fs/cgroup/{file}"));
    assert_eq!(
        c.sh(&format!("cat {} {} 2>/dev/null; true", limit[0], limit[1])),
        (64 << 20).to_string()
    );
    assert_eq!(c.exec(&["sh", "-c", "exit 42"]).code, 42);
    assert_eq!(mounts_of(&pod), Vec::<String>::new());
    assert_eq!(runtime_dir(&pod).exists(), !handler.is_empty());
    c.remove().unwrap();
    assert_left(&pod, handler, &c);
}

/// Of a removed container there is nothing in the runtime's directories.
fn assert_left(pod: &Pod, handler: &str, c: &Container) {
    if !handler.is_empty() {
        let state = runtime_dir(pod).join("state");
        assert_eq!(
            fs::read_dir(&state).unwrap().count(),
            0,
            "{handler} still knows containers"
        );
        assert!(!runtime_dir(pod).join(&c.id).exists());
    }
}

fn ends_in_every_way(handler: &str) {
    let pod = pod_by(world(), handler, &format!("ends-{handler}"));
    let c = pod.start("code", &["sh", "-c", "echo out; echo err >&2; exit 7"], |_| {});
    assert_eq!((c.exited().exit_code, c.status().reason.as_str()), (7, "Error"));
    assert_eq!(c.log().len(), 2, "{:?}", c.log());
    let c = pod.start("oom", &["tail", "/dev/zero"], |config| {
        resources(config).memory_limit_in_bytes = 32 << 20;
    });
    assert_eq!((c.exited().exit_code, c.status().reason.as_str()), (137, "OOMKilled"));
    let polite = "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.05; done";
    let c = pod.start("polite", &["sh", "-c", polite], |_| {});
    c.logged("ready");
    c.stop(20).unwrap();
    assert_eq!(c.status().exit_code, 3);
    assert!(c.log().contains(&"stdout F bye".to_owned()), "{:?}", c.log());
    let c = pod.start(
        "deaf",
        &["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done"],
        |_| {},
    );
    c.logged("ready");
    c.stop(1).unwrap();
    assert_eq!((c.status().exit_code, c.status().reason.as_str()), (137, "Error"));
    // Never started.
    let c = pod.create("waiting", &["true"], |_| {});
    c.stop(10).unwrap();
    assert_eq!(c.status().state(), ContainerState::ContainerExited);
}

fn outlives_its_daemon(handler: &str) {
    let own = OwnWorld::new(&format!("daemon-{handler}"));
    {
        let pod = pod_by(own.0, handler, "outlives");
        let counts = "n=0; while :; do echo $n; n=$((n+1)); sleep 0.05; done";
        let c = pod.start("c", &["sh", "-c", counts], |_| {});
        let waiting = pod.create("waiting", &["sh", "-c", "echo started"], |_| {});
        c.logged("5");
        let pid = c.pid();
        own.0.restart();
        assert_eq!(c.pid(), pid);
        assert_eq!(c.sh("echo alive"), "alive");
        waiting.start().unwrap();
        assert_eq!(waiting.exited().exit_code, 0);
        waiting.logged("started");
        c.stop(0).unwrap();
        let numbers: Vec<String> = c
            .log()
            .iter()
            .map(|line| line.trim_start_matches("stdout F ").to_owned())
            .collect();
        let all: Vec<String> = (0..numbers.len()).map(|n| n.to_string()).collect();
        assert_eq!(numbers, all);
        c.remove().unwrap();
        waiting.remove().unwrap();
        assert_left(&pod, handler, &c);
    }
    assert!(!own.0.crisps_dir().join("d/run/pods").read_dir().unwrap().any(|_| true));
}

#[test]
fn born_and_looked_at_by_libcontainer() {
    born_and_looked_at("");
}

#[test]
fn born_and_looked_at_by_runc() {
    born_and_looked_at("runc");
}

#[test]
fn born_and_looked_at_by_crun() {
    born_and_looked_at("crun");
}

#[test]
fn ends_in_every_way_by_libcontainer() {
    ends_in_every_way("");
}

#[test]
fn ends_in_every_way_by_runc() {
    ends_in_every_way("runc");
}

#[test]
fn ends_in_every_way_by_crun() {
    ends_in_every_way("crun");
}

#[test]
fn outlives_its_daemon_by_libcontainer() {
    outlives_its_daemon("");
}

#[test]
fn outlives_its_daemon_by_runc() {
    outlives_its_daemon("runc");
}

#[test]
fn outlives_its_daemon_by_crun() {
    outlives_its_daemon("crun");
}

#[test]
fn a_runtime_that_fails_says_why_and_leaves_nothing() {
    for (handler, _) in EXTERNAL {
        let pod = pod_by(world(), handler, &format!("fails-{handler}"));
        let refused = pod
            .try_create(pod.config("c", &["/no/such"]))
            .err()
            .expect("it cannot run");
        assert!(says(&refused, &format!("{handler} create: ")), "{refused}");
        assert!(says(&refused, "/no/such"), "{refused}");
        let left: Vec<_> = fs::read_dir(runtime_dir(&pod))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(left, ["state"]);
        assert_eq!(fs::read_dir(runtime_dir(&pod).join("state")).unwrap().count(), 0);
        // The same name again.
        assert_eq!(pod.start("c", &["true"], |_| {}).exited().exit_code, 0);
    }
}

#[test]
fn a_runtime_is_told_the_annotations_that_its_settings_name() {
    let of = |names: &[&str], value: &str| {
        names
            .iter()
            .map(|name| ((*name).to_owned(), value.to_owned()))
            .collect()
    };
    let pod = world().try_pod_by("runc", "annotations", |config| {
        config.annotations = of(
            &["example.org/pod", "example.org/both", "exactly", "example.net/other"],
            "pod",
        );
    });
    let pod = pod.unwrap();
    let c = pod.create("c", &["true"], |config| {
        config.annotations = of(&["example.org/both", "exactly-not"], "container");
    });
    let bundle = fs::read_to_string(runtime_dir(&pod).join(&c.id).join("config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&bundle).unwrap();
    let told = serde_json::json!({ "example.org/pod": "pod", "example.org/both": "container", "exactly": "pod" });
    assert_eq!(config["annotations"], told);
}

/// Story: exec probes by a runtime that takes long. It neither counts in the container's limits nor outlives its
/// command, whoever goes first.
#[test]
fn a_runtime_is_no_guest_of_the_container_and_ends_with_its_command() {
    let own = OwnWorld::new("slow-runtime");
    let dir = own.0.crisps_dir();
    let (program, seconds) = (dir.join("slow-runtime"), format!("77{:07}", std::process::id()));
    let script = format!(
        "#!/bin/sh\ncase \" $* \" in *\" exec \"*) sleep {seconds} & sleep {seconds};; esac\nexec /usr/sbin/runc \"$@\"\n"
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let settings = format!("[runtimes.slow]\npath = {program:?}\n");
    fs::write(dir.join("own-settings.toml"), settings).unwrap();
    own.0.restart();
    {
        let pod = pod_by(own.0, "slow", "slow");
        let c = pod.idle("c", |config| resources(config).memory_limit_in_bytes = 64 << 20);
        let sleeping = || pids_of(&["sleep", &seconds]);
        assert_eq!(c.try_exec(&["true"], 1).unwrap_err().code(), Code::DeadlineExceeded);
        assert_eq!(sleeping(), Vec::<i32>::new());
        std::thread::scope(|scope| {
            let lost = scope.spawn(|| c.try_exec(&["true"], 1000).unwrap_err());
            let both = || Some(sleeping()).filter(|pids| pids.len() == 2);
            for pid in eventually("the runtime is at work", both) {
                assert!(!counts_in(pid, &c), "the runtime's {pid} counts in the container");
            }
            own.0.kill_and_restart();
            lost.join().unwrap();
        });
        eventually("it has ended with its daemon", || sleeping().is_empty().then_some(()));
        eventually("no command's cgroup remains", || {
            let pattern = format!("*/exec-*{}*", c.id);
            let below = format!("*/{}/exec-*", c.id);
            let found = Command::new("find")
                .args(["/sys/fs/cgroup", "-path", &pattern, "-o", "-path", &below])
                .output();
            found.unwrap().stdout.is_empty().then_some(())
        });
        assert_eq!(c.status().state(), ContainerState::ContainerRunning);
    }
}

/// Processes with exactly these arguments.
fn pids_of(arguments: &[&str]) -> Vec<i32> {
    let line = arguments.join("\0") + "\0";
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let has_it = |pid: &i32| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|found| found == line.as_bytes());
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(has_it)
        .collect()
}

/// Whether a process is where the container's memory is counted.
fn counts_in(pid: i32, c: &Container) -> bool {
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("it lives");
    let line = |start: &str| cgroups.lines().find(|line| line.contains(start));
    let line = line(":memory:").or_else(|| line("0::")).expect("a cgroup");
    format!("{line}/").contains(&format!("/{}/", c.id))
}
