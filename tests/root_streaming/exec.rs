//! Exec.

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use crisp::cri::NamespaceMode;
use sha2::{Digest, Sha256};

use crate::endpoint;
use crate::node::{Node, eventually, fed, transports};

const SIZE: usize = 100 << 20;

pub fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// How often 100 MiB go through exec: as often as this variable says, which `hack/soak` sets.
fn soak() -> usize {
    std::env::var("CRISP_SOAK").map_or(5, |times| times.parse().expect("CRISP_SOAK is a number"))
}

/// Symptom elsewhere: the end of a long output is missing, now and then, because the status overtakes the data or the
/// connection is closed before the client has read it.
#[test]
fn every_byte_arrives_by_both_transports() {
    let node = Node::start();
    let container = node.container(&node.pod(NamespaceMode::Pod), &["sleep", "1000"], |_| {});
    let wanted = node.sync(
        &container,
        &format!("head -c {SIZE} /dev/urandom > /data; sha256sum < /data | head -c 64"),
    );
    for transport in transports().into_iter().cycle().take(soak()) {
        let done = node
            .crictl(["exec", "-r", transport, &container, "cat", "/data"])
            .output()
            .unwrap();
        assert!(
            done.status.success(),
            "{transport}: {}",
            String::from_utf8_lossy(&done.stderr)
        );
        assert_eq!(
            (done.stdout.len(), hash(&done.stdout)),
            (SIZE, wanted.clone()),
            "{transport}"
        );
    }
    for _ in 0..20 {
        let done = node
            .crictl(["exec", &container, "seq", "1", "100000"])
            .output()
            .unwrap();
        assert!(
            done.stdout.ends_with(b"\n99999\n100000\n"),
            "{} bytes",
            done.stdout.len()
        );
    }
}

/// The pid of the monitor above a container, by its first process.
fn monitor(node: &Node, container: &str) -> i32 {
    endpoint::only_crisp("its own monitor");
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid(container))).unwrap();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap();
    let parent = parent.trim().parse().unwrap();
    let name = std::fs::read_to_string(format!("/proc/{parent}/comm")).unwrap();
    assert_eq!(name.trim(), "crisp-monitor");
    parent
}

#[test]
fn what_goes_through_exec_does_not_go_through_the_monitor() {
    let node = Node::start();
    let container = node.container(&node.pod(NamespaceMode::Pod), &["sleep", "1000"], |_| {});
    let monitor = monitor(&node, &container);
    let moved = || -> u64 {
        // Of its only thread: those of the process hold what its ended children have moved.
        let counts = std::fs::read_to_string(format!("/proc/{monitor}/task/{monitor}/io")).unwrap();
        let count = |line: &str| {
            line.split_once("char: ")
                .map_or(0, |(_, bytes)| bytes.parse::<u64>().unwrap())
        };
        counts.lines().map(count).sum()
    };
    let before = moved();
    for transport in transports() {
        let script = format!("head -c {SIZE} /dev/zero");
        let done = node
            .crictl(["exec", "-r", transport, &container, "sh", "-c", &script])
            .output()
            .unwrap();
        assert_eq!(done.stdout.len(), SIZE);
    }
    let through_monitor = moved() - before;
    assert!(through_monitor < 1 << 20, "{through_monitor} bytes, of {}", 2 * SIZE);
}

#[test]
fn input_reaches_the_command_with_its_end() {
    let node = Node::start();
    let container = node.container(&node.pod(NamespaceMode::Pod), &["sleep", "1000"], |_| {});
    let input: Vec<u8> = (0..20_000_000u32)
        .map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    for transport in transports() {
        let done = fed(
            &mut node.crictl(["exec", "-i", "-r", transport, &container, "sha256sum"]),
            &input,
        );
        let said = String::from_utf8_lossy(&done.stdout).into_owned();
        assert_eq!(said.split(' ').next(), Some(hash(&input).as_str()), "{transport}");
        // A command that does not read must end all the same.
        let done = fed(
            &mut node.crictl(["exec", "-i", "-r", transport, &container, "true"]),
            &input,
        );
        assert!(done.status.success(), "{transport}");
    }
}

#[test]
fn streams_stay_apart_and_the_exit_code_is_told() {
    let node = Node::start();
    let container = node.container(&node.pod(NamespaceMode::Pod), &["sleep", "1000"], |_| {});
    for transport in transports() {
        let script = "echo out; echo err >&2; exit 3";
        let done = node
            .crictl(["exec", "-r", transport, &container, "sh", "-c", script])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&done.stdout), "out\n");
        let err = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(err.starts_with("err\n") && err.contains("exit code 3"), "{err}");
        assert!(!done.status.success());
        let done = node
            .crictl(["exec", "-r", transport, &container, "nothing-is-called-so"])
            .output()
            .unwrap();
        let err = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(!done.status.success() && err.contains("nothing-is-called-so"), "{err}");
    }
    eventually("no command's cgroup remains", || {
        let pattern = format!("*{container}/exec-*");
        let found = Command::new("find")
            .args(["/sys/fs/cgroup", "-path", &pattern, "-type", "d"])
            .output();
        found.unwrap().stdout.is_empty()
    });
}

/// `crictl` on a terminal of its own, by script(1), for a minute.
fn on_terminal(crictl: &Command, before: &str) -> Command {
    let words = std::iter::once(crictl.get_program()).chain(crictl.get_args());
    let words: Vec<String> = words.map(|word| format!("'{}'", word.to_str().unwrap())).collect();
    let bounded = format!("{before}; exec timeout --foreground 60 {}", words.join(" "));
    let mut script = Command::new("script");
    script.args(["-qec", &bounded, "/dev/null"]);
    script
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    script
}

/// What `crictl` says on a terminal of 33 rows and 77 columns, where `typed` is typed once `sign` is to be seen.
pub fn typing(crictl: &Command, sign: &str, typed: &[u8]) -> String {
    let mut child = on_terminal(crictl, "stty rows 33 cols 77").spawn().unwrap();
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let (mut said, mut typed, mut part) = (String::new(), Some(typed), [0; 1024]);
    loop {
        let length = stdout.read(&mut part).unwrap();
        if length == 0 {
            break;
        }
        said += std::str::from_utf8(&part[..length]).expect("ASCII");
        if let Some(typed) = typed.take_if(|_| said.contains(sign)) {
            stdin.write_all(typed).unwrap();
        }
    }
    child.wait().unwrap();
    said
}

#[test]
fn a_terminal_has_the_client_s_size_and_hangs_up_when_the_client_is_killed() {
    let node = Node::start();
    let container = node.container(&node.pod(NamespaceMode::Pod), &["sleep", "1000"], |_| {});
    for transport in transports() {
        let script = "tty; sleep 1; stty size; echo now; cat; exit 4";
        let words = ["exec", "-it", "-r", transport, &container, "sh", "-c", script];
        let said = typing(&node.crictl(words), "now", b"typed\r\x04");
        for part in ["/dev/pts/", "33 77", "typed\r\ntyped", "exit code 4"] {
            assert!(said.contains(part), "{transport}: no {part:?} in {said:?}");
        }
    }
    let mut killed = on_terminal(&node.crictl(["exec", "-it", &container, "sleep", "777"]), "true")
        .spawn()
        .unwrap();
    let sleeps = || node.sync(&container, "ps | grep -c '[s]leep 777' || true") == "1";
    eventually("the command runs", sleeps);
    killed.kill().unwrap();
    killed.wait().unwrap();
    eventually("the command is hung up", || !sleeps());
}

#[test]
fn a_command_without_terminal_outlives_its_client() {
    let node = Node::start();
    let container = node.container(&node.pod(NamespaceMode::Pod), &["sleep", "1000"], |_| {});
    let script = "echo here; cat; echo still; seq 1 100000; touch /done; sleep 1000";
    let mut client = node
        .crictl(["exec", "-i", &container, "sh", "-c", script])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = client.stdout.take().unwrap();
    let mut here = [0; 5];
    stdout.read_exact(&mut here).unwrap();
    client.kill().unwrap();
    client.wait().unwrap();
    // Its input ended, and its output neither blocks nor fails.
    eventually("the command went on", || {
        node.sync(&container, "[ -e /done ] && echo yes || echo no") == "yes"
    });
}
