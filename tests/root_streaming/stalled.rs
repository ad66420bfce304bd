//! Clients that take nothing, or nothing for long: the daemon's memory, the limits, the timeouts.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crisp::cri::{AttachRequest, ExecRequest, NamespaceMode};
use futures_util::{SinkExt, StreamExt};
use rustix::process::{Pid, Signal, kill_process};
use tokio_tungstenite::tungstenite::Message;
use tonic::Code;

use crate::node::{Node, eventually, eventually_within};
use crate::port_forward::{Forwarding, listen};
use crate::wire::{Spdy, Tunnel, WebSocket, connect, upgrade};

/// What a stalled session may cost the daemon: what waits in it, and the kernel's buffers are not even counted there.
const SESSION_KIB: u64 = 2 << 10;

/// What the daemon's memory may grow by for other reasons.
const SLACK_KIB: u64 = 24 << 10;

const GIGABYTE: &str = "dd if=/dev/zero bs=65536 count=16384; touch /done";

/// How long a gigabyte may take to be read and dropped.
const LONG: Duration = Duration::from_secs(180);

fn done(node: &Node, container: &str) -> bool {
    node.sync(container, "[ -e /done ] && echo yes || echo no") == "yes"
}

/// Fails if the daemon's memory goes beyond `limit_kib` within a while.
fn stays_below(node: &Node, limit_kib: u64) {
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until {
        let now = node.resident_kib();
        assert!(now < limit_kib, "{now} KiB are resident, of {limit_kib}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_gigabyte_for_clients_that_never_read_stays_where_it_is() {
    const CLIENTS: usize = 8;
    let node = Node::start();
    let container = node.container(&node.pod(NamespaceMode::Pod), &["sleep", "1000"], |_| {});
    let before = node.resident_kib();
    let gigabyte = ["sh", "-c", GIGABYTE];
    let more = ["head", "-c", "33554432", "/dev/zero"];
    // One of each kind has a gigabyte coming, the others more than may wait.
    let commands = || std::iter::once(&gigabyte[..]).chain(std::iter::repeat_n(&more[..], CLIENTS - 1));
    let spdy: Vec<Spdy> = commands()
        .map(|command| Spdy::open(&node.exec_url(&container, command, |_| {}), &["error", "stdout"]))
        .collect();
    let websocket: Vec<WebSocket> = commands()
        .map(|command| node.exec_url(&container, command, |_| {}))
        .map(|url| node.wait(WebSocket::open(&url, "v5.channel.k8s.io")))
        .collect();
    stays_below(&node, before + 2 * CLIENTS as u64 * SESSION_KIB + SLACK_KIB);
    assert!(!done(&node, &container), "the commands wait for their clients");
    drop((spdy, websocket));
    // Without a client the output has nowhere to go, and the commands run to their ends.
    eventually_within(LONG, "the commands have ended", || done(&node, &container));
}

#[test]
fn input_for_a_command_that_never_reads_stays_with_the_client() {
    let node = Node::start();
    let container = node.container(&node.pod(NamespaceMode::Pod), &["sleep", "1000"], |_| {});
    let before = node.resident_kib();
    let mut clients = Vec::new();
    for transport in ["spdy", "websocket", "spdy", "websocket"] {
        let zeros = std::fs::File::open("/dev/zero").unwrap();
        let mut client = node.crictl(["exec", "-i", "-r", transport, &container, "sleep", "1000"]);
        clients.push(
            client
                .stdin(zeros)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap(),
        );
    }
    stays_below(&node, before + 4 * 2 * SESSION_KIB + SLACK_KIB);
    for mut client in clients {
        assert!(client.try_wait().unwrap().is_none(), "it waits");
        client.kill().unwrap();
        client.wait().unwrap();
    }
}

/// An application does not wait for those who watch it: who falls behind sees no more.
#[test]
fn output_for_those_who_attached_and_never_read_is_neither_kept_nor_waited_for() {
    const CLIENTS: usize = 4;
    let node = Node::start_with(&format!("max_sessions = {}", 2 * CLIENTS));
    let script = format!("until [ -e /go ]; do echo here; sleep 0.1; done; {GIGABYTE}; exec sleep 1000");
    let container = node.container(&node.pod(NamespaceMode::Pod), &["sh", "-c", &script], |_| {});
    let before = node.resident_kib();
    let url = || {
        let request = AttachRequest {
            container_id: container.clone(),
            stdout: true,
            ..AttachRequest::default()
        };
        let answer = node.wait(async { node.client().await.attach(request).await });
        answer.unwrap().into_inner().url
    };
    let spdy = [(); CLIENTS].map(|()| {
        let mut client = Spdy::open(&url(), &["error", "stdout"]);
        client.frame().expect("it is attached");
        client
    });
    let websocket = [(); CLIENTS].map(|()| {
        let mut client = node.wait(WebSocket::open(&url(), "v5.channel.k8s.io"));
        node.wait(client.sees(1, "here"));
        client
    });
    node.sync(&container, "touch /go");
    stays_below(&node, before + 2 * CLIENTS as u64 * SESSION_KIB + SLACK_KIB);
    eventually_within(LONG, "the application has gone on", || done(&node, &container));
    stays_below(&node, before + 2 * CLIENTS as u64 * SESSION_KIB + SLACK_KIB);
    drop((spdy, websocket));
    let request = ExecRequest {
        container_id: container.clone(),
        cmd: vec!["true".to_owned()],
        stdout: true,
        ..ExecRequest::default()
    };
    eventually("their sessions are over", || {
        let answer = node.wait(async { node.client().await.exec(request.clone()).await });
        answer.is_ok()
    });
    assert!(node.is_running(&container));
}

/// Somebody who sends zeros until the connection takes no more of them for good.
struct Pouring {
    sent_bytes: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Pouring {
    fn into(mut connection: TcpStream) -> Self {
        let sent_bytes = Arc::new(AtomicU64::new(0));
        let counter = sent_bytes.clone();
        let thread = std::thread::spawn(move || {
            while let Ok(sent) = connection.write(&[0; 65_536]) {
                counter.fetch_add(sent as u64, Ordering::Relaxed);
            }
        });
        Self { sent_bytes, thread }
    }
}

#[test]
fn what_comes_through_a_forwarded_port_for_nobody_stays_with_its_sender() {
    /// More than all buffers on the way hold together.
    const MUCH: u64 = 100 << 20;
    let node = Node::start_with("");
    let pod = node.pod(NamespaceMode::Pod);
    let listener = listen(&node, &pod, NamespaceMode::Pod, "127.0.0.1:0");
    let port = listener.local_addr().unwrap().port();
    let before = node.resident_kib();
    // By the pod, for clients that read nothing: of SPDY, its tunnel, and the channels of WebSocket.
    let spdy = Spdy::forward(&node.forward_url(&pod, port), port);
    let tunnel = Tunnel::open(&node, &node.forward_url(&pod, port));
    let tunnel = Spdy::forward_by(tunnel, port);
    let channels = node.wait(WebSocket::open(&node.forward_url(&pod, port), "v4.channel.k8s.io"));
    // By clients, for a pod that reads nothing.
    let forwardings = ["spdy", "websocket"].map(|transport| Forwarding::new(&node, transport, &pod, port));
    let clients = forwardings.each_ref().map(Forwarding::connect);
    let servers = [(); 5].map(|()| listener.accept().unwrap().0);
    let senders: Vec<Pouring> = servers.into_iter().chain(clients).map(Pouring::into).collect();
    stays_below(&node, before + 5 * SESSION_KIB + SLACK_KIB);
    for sender in &senders {
        assert!(sender.sent_bytes.load(Ordering::Relaxed) < MUCH, "it waits");
    }
    // The end of each is told to the other side.
    drop((spdy, tunnel, channels, forwardings));
    for sender in senders {
        sender.thread.join().unwrap();
    }
}

#[test]
fn a_stalled_client_is_let_go_of_whatever_it_says_meanwhile() {
    let node = Node::start_with("idle_timeout_seconds = 3");
    let container = node.container(&node.pod(NamespaceMode::Pod), &["sleep", "1000"], |_| {});
    let command = ["sh", "-c", GIGABYTE];
    let stalled = Spdy::open(&node.exec_url(&container, &command, |_| {}), &["error", "stdout"]);
    eventually_within(LONG, "the command is done although nobody reads", || {
        done(&node, &container)
    });
    drop(stalled);
    node.sync(&container, "rm /done");

    // Pings are no sign that anything is taken.
    let url = node.exec_url(&container, &command, |_| {});
    let client = node.wait(WebSocket::open(&url, "v5.channel.k8s.io"));
    let (mut sink, unread) = client.socket.split();
    node.wait(async {
        let pings = async {
            while sink.send(Message::Ping(b"x".as_slice().into())).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), pings)
            .await
            .expect("let go of");
    });
    drop(unread);
    eventually_within(LONG, "the command is done", || done(&node, &container));
    node.sync(&container, "rm /done");

    // A real client that is stopped.
    let mut crictl = node.crictl(["exec", &container, "sh", "-c", GIGABYTE]);
    let mut crictl = crictl.spawn().unwrap();
    crictl.stdout.as_mut().unwrap().read_exact(&mut [0; 4096]).unwrap();
    kill_process(Pid::from_child(&crictl), Signal::STOP).unwrap();
    eventually_within(LONG, "the command is done", || done(&node, &container));
    crictl.kill().unwrap();
    crictl.wait().unwrap();
}

#[test]
fn a_session_on_which_nothing_moves_ends() {
    let node = Node::start_with("idle_timeout_seconds = 2");
    let pod = node.pod(NamespaceMode::Pod);
    let container = node.container(&pod, &["cat"], |config| config.stdin = true);
    let attach = AttachRequest {
        container_id: container.clone(),
        stdin: true,
        stdout: true,
        ..AttachRequest::default()
    };
    let attach = node.wait(async { node.client().await.attach(attach).await });
    for url in [
        node.exec_url(&container, &["sleep", "1000"], |request| request.stdin = true),
        attach.unwrap().into_inner().url,
    ] {
        let began = Instant::now();
        let mut idle = Spdy::open(&url, &["error", "stdin", "stdout"]);
        while idle.frame().is_some() {}
        let took = began.elapsed();
        assert!((2..30).contains(&took.as_secs()), "{took:?}");
    }
    // What moves, however little, keeps it.
    let url = node.exec_url(&container, &["cat"], |request| request.stdin = true);
    let mut busy = Spdy::open(&url, &["error", "stdin", "stdout"]);
    for _ in 0..8 {
        std::thread::sleep(Duration::from_millis(500));
        busy.send(3, false, b"x");
        assert_eq!(busy.frame().expect("it goes on").1, b"x");
    }
    assert!(node.is_running(&container));
}

#[test]
fn a_client_that_does_not_go_on_is_not_waited_for() {
    let node = Node::start_with("creation_timeout_seconds = 2");
    let container = node.container(&node.pod(NamespaceMode::Pod), &["sleep", "1000"], |_| {});
    let url = || node.exec_url(&container, &["touch", "/started"], |_| {});
    let ends = |mut connection: std::net::TcpStream| {
        let began = Instant::now();
        let _ = connection.read_to_end(&mut Vec::new());
        let took = began.elapsed();
        assert!((1..30).contains(&took.as_secs()), "{took:?}");
    };
    let (silent, _, _) = connect(&url());
    ends(silent);
    let (mut slow, _, _) = connect(&url());
    slow.write_all(b"GET /exec HTTP/1.1\r\nHo").unwrap();
    ends(slow);
    let (status, no_streams) = upgrade(&url());
    assert!(status.contains("101"));
    ends(no_streams);
    assert_eq!(node.sync(&container, "[ -e /started ] && echo yes || echo no"), "no");
}

#[test]
fn so_many_sessions_and_the_next_is_told() {
    let node = Node::start_with("max_sessions = 2");
    let container = node.container(&node.pod(NamespaceMode::Pod), &["sleep", "1000"], |_| {});
    let open = || {
        Spdy::open(
            &node.exec_url(&container, &["sleep", "1000"], |_| {}),
            &["error", "stdout"],
        )
    };
    let first = open();
    let early = node.exec_url(&container, &["true"], |_| {});
    let _second = open();
    let request = ExecRequest {
        container_id: container.clone(),
        cmd: vec!["true".to_owned()],
        stdout: true,
        ..ExecRequest::default()
    };
    let refused = node
        .wait(async { node.client().await.exec(request).await })
        .unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    assert!(refused.message().contains("2 streaming sessions"), "{refused:?}");
    assert!(upgrade(&early).0.contains("503"), "by a URL from before");
    drop(first);
    eventually("there is room again", || upgrade(&early).0.contains("101"));
}

#[test]
fn a_url_that_waited_too_long_is_of_no_use() {
    let node = Node::start_with("url_lifetime_seconds = 1");
    let container = node.container(&node.pod(NamespaceMode::Pod), &["sleep", "1000"], |_| {});
    let url = node.exec_url(&container, &["true"], |_| {});
    std::thread::sleep(Duration::from_millis(1200));
    assert!(upgrade(&url).0.contains("404"));
    assert!(upgrade(&node.exec_url(&container, &["true"], |_| {})).0.contains("101"));
}
