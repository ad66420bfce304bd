//! What a container must not get hold of: the classes of known escapes.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use tonic::Code;

use crate::endpoint;
use crate::fixture::{Container, eventually, sandbox_security, security, world};
use crate::handlers;

/// The open descriptors of a process, by number and what they are.
fn descriptors(pid: i64) -> Vec<(i32, String)> {
    let mut found: Vec<_> = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let target = fs::read_link(entry.path()).unwrap().display().to_string();
            (entry.file_name().into_string().unwrap().parse().unwrap(), target)
        })
        .collect();
    found.sort();
    found
}

#[test]
fn no_descriptor_but_the_three() {
    let pod = world().pod("descriptors");
    let c = pod.idle("c", |_| {});
    let first = descriptors(c.pid());
    assert_eq!(
        first.iter().map(|(number, _)| *number).collect::<Vec<_>>(),
        [0, 1, 2],
        "{first:?}"
    );
    // `ls` has one more: the directory that it reads.
    let exec = c.exec(&["ls", "-l", "/proc/self/fd"]).stdout;
    let numbers: Vec<&str> = exec
        .lines()
        .skip(1)
        .filter_map(|line| line.split(" -> ").next()?.rsplit(' ').next())
        .collect();
    assert_eq!(numbers, ["0", "1", "2", "3"], "{exec}");
    // It closes that one before it asks where it leads.
    assert_eq!(exec.matches(" -> ").count(), 3, "{exec}");
    // Pause and a container that waits to be started hold nothing of a container's file system or the host's.
    let waiting = pod.create("waiting", &["true"], |_| {});
    for (what, pid) in [("pause", pod.pid()), ("a created container", waiting.pid())] {
        for (number, target) in descriptors(pid) {
            // crun's log and runc's FIFO, by a path of the node that only says where they are.
            let runtimes = handlers::is_external() && (target == "/log" || target.ends_with("/exec.fifo"));
            let known = ["pipe:", "socket:", "/dev/null", "anon_inode:"]
                .iter()
                .any(|kind| target.starts_with(kind));
            assert!(known || runtimes, "{what} holds {number} -> {target}");
        }
    }
}

/// CVE-2024-21626: a working directory that is a leaked descriptor of the runtime.
#[test]
fn a_working_directory_cannot_be_a_descriptor() {
    let pod = world().pod("cwd");
    for number in 0..24 {
        let mut config = pod.config(
            &format!("c{number}"),
            &["sh", "-c", "cd ../../../../../../..; ls; sleep 1000"],
        );
        config.working_dir = format!("/proc/self/fd/{number}");
        let Ok(c) = pod.try_create(config) else { continue };
        if c.start().is_ok() {
            let seen = eventually("its listing", || {
                Some(c.log()).filter(|log| log.len() > 3 || c.try_status().unwrap().state == 2)
            });
            assert!(
                !seen.iter().any(|line| line.contains("boot") || line.contains("stage")),
                "{number}: {seen:?}"
            );
            let cwd = fs::read_link(format!("/proc/{}/cwd", c.pid())).unwrap();
            assert_eq!(cwd, std::path::Path::new("/"), "{number}");
        }
    }
    // By a link that the image brings, too.
    let c = pod.idle("maker", |_| {});
    c.sh("ln -s /proc/self/fd/9 /tmp/link");
    let dir = world().directory("cwd");
    std::os::unix::fs::symlink("/proc/self/fd/8", dir.join("link")).unwrap();
    let mut config = pod.config("by-link", &["sh", "-c", "ls; sleep 1000"]);
    config.mounts = vec![crisp::cri::Mount {
        host_path: dir.display().to_string(),
        container_path: "/v".into(),
        ..Default::default()
    }];
    config.working_dir = "/v/link".into();
    if let Ok(c) = pod.try_create(config) {
        assert!(c.start().is_err(), "{:?}", c.log());
    }
}

/// CVE-2019-5736: a program that is `#!/proc/self/exe` makes the runtime run itself inside, and another process then
/// writes to it through /proc/<pid>/exe.
#[test]
fn the_runtimes_own_program_cannot_be_written_to() {
    let before = monitor_digest();
    let pod = world().pod("exe");
    let watch = r#"
        touch /tmp/seen; echo ready
        while :; do
            for p in /proc/[0-9]*; do
                e=$(readlink $p/exe) || continue
                case $e in /bin/busybox) continue;; esac
                echo "$e" >> /tmp/seen
                (echo overwritten > $p/exe) 2>> /tmp/refusals && echo "WRITTEN $e" >> /tmp/seen
            done
        done"#;
    let c = pod.start("c", &["sh", "-c", watch], |_| {});
    c.logged("ready");
    for _ in 0..40 {
        // It may fail in any way; it must not hang, and not give itself away.
        let _ = c.try_exec(&["/bin/itself", "--version"], 5);
        assert_eq!(c.exec(&["true"]).code, 0);
    }
    assert!(!c.sh("cat /tmp/seen").contains("WRITTEN"), "{}", c.sh("cat /tmp/seen"));
    // As the first process, too.
    let c = pod.create("d", &["/bin/itself"], |_| {});
    let _ = c.start();
    assert_eq!(monitor_digest(), before);
    assert_eq!(pod.idle("after", |_| {}).sh("echo fine"), "fine");
}

fn monitor_digest() -> String {
    let bin = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bin/crisp-monitor");
    crate::registry::sha256(&fs::read(bin).unwrap())
}

/// The monitor and pause on the host: where they run and what can be done to them.
#[test]
fn the_monitor_is_neither_seen_nor_writable() {
    endpoint::only_crisp("its own monitor");
    let pod = world().pod("monitor");
    let c = pod.idle("c", |_| {});
    assert!(!c.sh("ps -o comm,args").contains("crisp"), "{}", c.sh("ps"));
    // Privileged and among the node's processes it is seen, but its program cannot be written to.
    let pod = world().pod_with("monitor-node", |config| {
        sandbox_security(config).privileged = true;
        crate::fixture::options(config).pid = crisp::cri::NamespaceMode::Node.into();
    });
    let c = pod.idle("c", |config| {
        security(config).privileged = true;
        security(config).namespace_options.as_mut().unwrap().pid = crisp::cri::NamespaceMode::Node.into();
    });
    let monitor = pod.info()["monitorPid"].as_i64().unwrap();
    for pid in [monitor, pod.pid()] {
        let done = c.exec(&["sh", "-c", &format!("echo overwritten > /proc/{pid}/exe")]);
        assert!(done.code != 0 && !done.stderr.is_empty(), "{pid}: {done:?}");
    }
    // In a shared pid namespace the containers' own user cannot signal or trace the monitor: it is not there at all.
    let pod = world().pod_with("monitor-shared", |config| {
        crate::fixture::options(config).pid = crisp::cri::NamespaceMode::Pod.into()
    });
    let c = pod.idle("c", |config| {
        security(config).namespace_options = Some(Default::default())
    });
    let seen = c.sh("ps -o pid,comm");
    assert!(!seen.contains("monitor"), "{seen}");
    assert_ne!(
        c.exec(&["sh", "-c", "cat /proc/1/environ /proc/1/mem"]).code,
        0,
        "pause can be read"
    );
    assert_eq!(
        Container {
            id: pod.id.clone(),
            ..c
        }
        .try_status()
        .unwrap_err()
        .code(),
        Code::NotFound
    );
}

#[test]
fn the_sockets_and_directories_are_roots_alone() {
    let run = world().crisps_dir().join("d/run");
    let pod = world().pod("modes");
    let socket = fs::metadata(&world().socket).unwrap();
    assert_eq!((socket.permissions().mode() & 0o777, socket.uid()), (0o600, 0));
    let monitor = fs::metadata(run.join("pods").join(&pod.id).join("monitor.sock")).unwrap();
    assert_eq!(
        monitor.permissions().mode() & 0o077,
        0,
        "{:o}",
        monitor.permissions().mode()
    );
    // Nobody but root comes near the files of containers.
    let mut path = world().crisps_dir().join("d/lib/pods").join(&pod.id);
    let mut closed = false;
    while path.starts_with(world().crisps_dir().join("d")) {
        closed |= fs::metadata(&path).unwrap().permissions().mode() & 0o001 == 0;
        path.pop();
    }
    assert!(closed, "others can walk into a pod's directory");
}
