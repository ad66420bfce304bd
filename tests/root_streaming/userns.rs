//! Streams into pods with a user namespace: to whoever is inside they are as in any other pod.

use std::fs::{self, File};
use std::io::Write;
use std::net::{Shutdown, SocketAddr, TcpListener};

use crisp::cri::{
    ContainerConfig, IdMapping, Int64Value, LinuxContainerSecurityContext, NamespaceMode, NamespaceOption,
    UserNamespace,
};
use crisp::network::netns;

use crate::attach::{Attached, SOON};
use crate::endpoint;
use crate::exec::{hash, typing};
use crate::node::{Node, eventually, fed};
use crate::port_forward::{Forwarding, text};

const TRANSPORTS: [&str; 2] = ["spdy", "websocket"];

const FIRST: u32 = 524_288;

/// A pod whose root is `FIRST` on the node.
fn pod(node: &Node, network: NamespaceMode) -> String {
    endpoint::only_crisp("user namespaces");
    let ids = vec![IdMapping {
        host_id: FIRST,
        container_id: 0,
        length: 65_536,
    }];
    node.pod_with(NamespaceOption {
        network: network.into(),
        userns_options: Some(UserNamespace {
            mode: NamespaceMode::Pod.into(),
            uids: ids.clone(),
            gids: ids,
        }),
        ..NamespaceOption::default()
    })
}

/// A container that is one of the pod's users, number `attempt` of its pod.
fn user(uid: i64, attempt: u32) -> impl FnOnce(&mut ContainerConfig) {
    move |config| {
        config.metadata.as_mut().unwrap().attempt = attempt;
        config.linux.get_or_insert_default().security_context = Some(LinuxContainerSecurityContext {
            run_as_user: Some(Int64Value { value: uid }),
            ..Default::default()
        });
    }
}

/// Fails unless the container's first process is this user of the pod, and not the node's of that number.
fn runs_as(node: &Node, container: &str, uid: u32) {
    let status = fs::read_to_string(format!("/proc/{}/status", node.pid(container))).unwrap();
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
    assert_eq!(ids.split_whitespace().next(), Some((FIRST + uid).to_string().as_str()));
}

#[test]
fn exec_carries_input_output_and_exit_code() {
    let node = Node::start();
    let pod = pod(&node, NamespaceMode::Pod);
    let input: Vec<u8> = (0..10_000_000u32)
        .map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    for uid in [0, 1000] {
        let container = node.container(&pod, &["sleep", "1000"], user(uid.into(), uid));
        runs_as(&node, &container, uid);
        for transport in TRANSPORTS {
            let exec = |script| node.crictl(["exec", "-i", "-r", transport, &container, "sh", "-c", script]);
            let done = fed(&mut exec("cat; id -u >&2; cat /proc/self/uid_map >&2; exit 3"), &input);
            assert_eq!(hash(&done.stdout), hash(&input), "{transport}");
            let err = String::from_utf8_lossy(&done.stderr).into_owned();
            let said: Vec<&str> = err.split_whitespace().take(4).collect();
            assert_eq!(said, [uid.to_string().as_str(), "0", "524288", "65536"], "{transport}");
            assert!(!done.status.success() && err.contains("exit code 3"), "{err}");
            // The streams are the command's own, to be opened again by their names as well.
            let done = fed(
                &mut exec("cat /dev/stdin > /dev/stdout; echo err > /dev/stderr"),
                b"by name",
            );
            assert_eq!(String::from_utf8_lossy(&done.stdout), "by name", "{transport}");
            assert_eq!(String::from_utf8_lossy(&done.stderr), "err\n", "{transport}");
        }
    }
}

#[test]
fn a_terminal_is_the_users_own() {
    let node = Node::start();
    let pod = pod(&node, NamespaceMode::Pod);
    for uid in [0, 1000] {
        let container = node.container(&pod, &["sleep", "1000"], user(uid.into(), uid));
        for transport in TRANSPORTS {
            let script = "sleep 1; stty size; stat -c of=%u $(tty); echo now > /dev/tty; cat; exit 4";
            let words = ["exec", "-it", "-r", transport, &container, "sh", "-c", script];
            let said = typing(&node.crictl(words), "now", b"typed\r\x04");
            let owner = format!("of={uid}\r\n");
            for part in ["33 77", &owner, "typed\r\ntyped", "exit code 4"] {
                assert!(said.contains(part), "{transport}: no {part:?} in {said:?}");
            }
        }
    }
}

#[test]
fn attach_reaches_the_first_process_and_leaves_it() {
    let node = Node::start();
    let pod = pod(&node, NamespaceMode::Pod);
    for uid in [0, 1000] {
        let container = node.container(&pod, &["sh"], |config| {
            user(uid.into(), uid)(config);
            config.stdin = true;
        });
        runs_as(&node, &container, uid);
        let mut attached = TRANSPORTS.map(|transport| Attached::new(&node, transport, &container));
        for (one, word) in attached.iter_mut().zip(["one", "two"]) {
            one.ready(word);
        }
        let [first, second] = &mut attached;
        assert!(first.sees("two", SOON), "both see everything");
        first.say("id -u\n");
        assert!(second.sees(&uid.to_string(), SOON), "and it is who it is");
        first.child.kill().unwrap();
        first.child.wait().unwrap();
        second.say("echo after; exit 5\n");
        assert!(second.sees("after", SOON), "the other goes on");
        assert!(second.child.wait().unwrap().success());
        eventually("the container has exited", || !node.is_running(&container));
    }
}

#[test]
fn attach_reaches_a_terminal() {
    let node = Node::start();
    let pod = pod(&node, NamespaceMode::Pod);
    for (attempt, transport) in (0..).zip(TRANSPORTS) {
        let script = "until read -t 1 line; do echo waiting; done; sleep 1; stty size; stat -c of=%u $(tty)";
        let container = node.container(&pod, &["sh", "-c", script], |config| {
            user(1000, attempt)(config);
            (config.stdin, config.tty) = (true, true);
        });
        let crictl = node.crictl(["attach", "-it", "-r", transport, &container]);
        let said = typing(&crictl, "waiting", b"\r");
        for part in ["33 77", "of=1000\r\n"] {
            assert!(said.contains(part), "{transport}: no {part:?} in {said:?}");
        }
    }
}

#[test]
fn port_forward_reaches_what_listens_in_the_pod() {
    let node = Node::start();
    let pod = pod(&node, NamespaceMode::Pod);
    let server = "nc -ll -p 80 -e sh -c 'cat | wc -c; id -u'";
    let container = node.container(&pod, &["sh", "-c", server], user(1000, 0));
    runs_as(&node, &container, 1000);
    let network = File::open(format!("/proc/{}/ns/net", node.pid(&container))).unwrap();
    let six: SocketAddr = "[::1]:81".parse().unwrap();
    let listener = netns::run_in(&network, || TcpListener::bind(six)).unwrap();
    for transport in TRANSPORTS {
        let forwarding = Forwarding::new(&node, transport, &pod, 80);
        let mut connection = forwarding.connect();
        connection.write_all(&vec![b'x'; 1_000_000]).unwrap();
        connection.shutdown(Shutdown::Write).unwrap();
        assert_eq!(text(&mut connection), "1000000\n1000\n", "{transport}");
        let forwarding = Forwarding::new(&node, transport, &pod, 81);
        let mut client = forwarding.connect();
        listener.accept().unwrap().0.write_all(b"six").unwrap();
        assert_eq!(text(&mut client), "six", "{transport}");
    }
}

#[test]
fn port_forward_reaches_the_nodes_network_where_the_pod_has_it() {
    let node = Node::start();
    let pod = pod(&node, NamespaceMode::Node);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    for transport in TRANSPORTS {
        let forwarding = Forwarding::new(&node, transport, &pod, port);
        let mut client = forwarding.connect();
        listener.accept().unwrap().0.write_all(b"node").unwrap();
        assert_eq!(text(&mut client), "node", "{transport}");
    }
}
