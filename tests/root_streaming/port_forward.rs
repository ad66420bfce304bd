//! Port-forward. The tests themselves are what listens, in the pod's network or on the node's.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Child;
use std::time::{Duration, Instant};

use crisp::cri::NamespaceMode;
use crisp::network::netns;
use crisp::streaming::spdy::frame::Head;

use crate::node::{Node, eventually, transports};
use crate::wire::{Spdy, Tunnel};

/// crictl, forwarding; killed when dropped.
pub struct Forwarding {
    child: Child,
    port: u16,
}

impl Forwarding {
    pub fn new(node: &Node, transport: &str, pod: &str, port: u16) -> Self {
        let mut child = node
            .crictl(["port-forward", "-r", transport, pod, &format!("0:{port}")])
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        let local = line.split(" -> ").next().and_then(|from| from.rsplit(':').next());
        let local = local
            .and_then(|port| port.parse().ok())
            .unwrap_or_else(|| panic!("crictl said {line:?}"));
        // It goes on talking: somebody must listen.
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        Self { child, port: local }
    }

    pub fn connect(&self) -> TcpStream {
        let connection = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        connection.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        connection
    }
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Listens where the pod's own servers would.
pub fn listen(node: &Node, pod: &str, network: NamespaceMode, address: &str) -> TcpListener {
    if network == NamespaceMode::Node {
        return TcpListener::bind(address).unwrap();
    }
    let container = node.container(pod, &["sleep", "1000"], |_| {});
    let network = File::open(format!("/proc/{}/ns/net", node.pid(&container))).unwrap();
    netns::run_in(&network, || TcpListener::bind(address)).unwrap()
}

/// Runs `test` with a listener on `address`, in the pod's network and on the node's, forwarded to by every transport.
fn each_way(address: &str, test: impl Fn(Forwarding, &TcpListener)) {
    for network in [NamespaceMode::Pod, NamespaceMode::Node] {
        let node = Node::start();
        let pod = node.pod(network);
        let listener = listen(&node, &pod, network, address);
        let port = listener.local_addr().unwrap().port();
        for transport in transports() {
            eprintln!("by {transport}, network {network:?}");
            test(Forwarding::new(&node, transport, &pod, port), &listener);
        }
    }
}

/// A connection from its one end to its other.
fn connected(forwarding: &Forwarding, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let client = forwarding.connect();
    let (server, _) = listener.accept().unwrap();
    server.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    (client, server)
}

fn reset(connection: TcpStream) {
    rustix::net::sockopt::set_socket_linger(&connection, Some(Duration::ZERO)).unwrap();
}

pub fn text(connection: &mut TcpStream) -> String {
    let mut text = String::new();
    connection.read_to_string(&mut text).unwrap();
    text
}

/// Symptom elsewhere: a protocol that ends its request by a FIN gets no answer that takes longer than a second.
#[test]
fn an_answer_arrives_five_seconds_after_the_end_of_the_request() {
    let node = Node::start();
    let pod = node.pod(NamespaceMode::Pod);
    let server = "nc -ll -p 80 -e sh -c 'cat > /got; sleep 5; wc -c < /got'";
    node.container(&pod, &["sh", "-c", server], |_| {});
    for transport in transports() {
        let forwarding = Forwarding::new(&node, transport, &pod, 80);
        let mut connection = forwarding.connect();
        connection.write_all(&vec![b'x'; 1_000_000]).unwrap();
        connection.shutdown(Shutdown::Write).unwrap();
        let began = Instant::now();
        assert_eq!(text(&mut connection).trim(), "1000000", "{transport}");
        assert!(began.elapsed() > Duration::from_secs(4));
    }
}

#[test]
fn an_end_in_one_direction_leaves_the_other() {
    each_way("127.0.0.1:0", |forwarding, listener| {
        let (mut client, mut server) = connected(&forwarding, listener);
        client.write_all(b"question").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(text(&mut server), "question");
        for _ in 0..100 {
            server.write_all(&[b'a'; 100_000]).unwrap();
        }
        drop(server);
        assert_eq!(text(&mut client).len(), 10_000_000);
    });
}

/// The data that comes to the end of its stream, and the same client's answer to that.
fn hears_and_answers<C: Read + Write>(mut client: Spdy<C>, answer: &[u8]) -> (Vec<u8>, Spdy<C>) {
    let mut heard = Vec::new();
    loop {
        match client.frame().expect("it goes on") {
            (Head::Data { stream: 3, fin, .. }, bytes) => {
                heard.extend(bytes);
                if fin {
                    break;
                }
            }
            (Head::Data { .. }, said) => panic!("{}", String::from_utf8_lossy(&said)),
            (Head::Control { .. }, _) => {}
        }
    }
    client.send(3, false, answer);
    client.send(3, true, b"");
    (heard, client)
}

/// crictl, and kubectl, end both directions then: this is by a client of our own.
#[test]
fn a_pod_that_has_no_more_to_say_hears_on() {
    for network in [NamespaceMode::Pod, NamespaceMode::Node] {
        let node = Node::start();
        let pod = node.pod(network);
        let listener = listen(&node, &pod, network, "127.0.0.1:0");
        let port = listener.local_addr().unwrap().port();
        let ends = || {
            let (mut server, _) = listener.accept().unwrap();
            server.write_all(b"all that there is").unwrap();
            server.shutdown(Shutdown::Write).unwrap();
            server
        };
        let url = || node.forward_url(&pod, port);
        let client = Spdy::forward(&url(), port);
        let mut server = ends();
        let (heard, _client) = hears_and_answers(client, b"thanks");
        assert_eq!(
            (heard.as_slice(), text(&mut server).as_str()),
            (&b"all that there is"[..], "thanks")
        );
        // The tunnel is younger than the CRI.
        if transports().contains(&"websocket") {
            let client = Spdy::forward_by(Tunnel::open(&node, &url()), port);
            let mut server = ends();
            let (heard, _client) = hears_and_answers(client, b"thanks");
            assert_eq!(
                (heard.as_slice(), text(&mut server).as_str()),
                (&b"all that there is"[..], "thanks")
            );
        }
    }
}

#[test]
fn a_reset_ends_one_connection_alone() {
    each_way("127.0.0.1:0", |mut forwarding, listener| {
        let (mut client, mut server) = connected(&forwarding, listener);
        // By the pod.
        for _ in 0..5 {
            let (mut other, other_server) = connected(&forwarding, listener);
            reset(other_server);
            let end = other.read(&mut [0]);
            assert!(matches!(end, Ok(0)) || end.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset));
        }
        // By the client, in the middle of things.
        for _ in 0..5 {
            let (mut other, mut other_server) = connected(&forwarding, listener);
            other.write_all(b"x").unwrap();
            other_server.read_exact(&mut [0]).unwrap();
            reset(other);
            let end = other_server.read(&mut [0]);
            assert!(matches!(end, Ok(0)) || end.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset));
        }
        client.write_all(b"still there").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(text(&mut server), "still there");
        server.write_all(b"so am I").unwrap();
        drop(server);
        assert_eq!(text(&mut client), "so am I");
        assert!(forwarding.child.try_wait().unwrap().is_none(), "crictl goes on");
    });
}

#[test]
fn a_slow_connection_does_not_hold_up_the_others() {
    each_way("127.0.0.1:0", |forwarding, listener| {
        let (mut slow, _unread) = connected(&forwarding, listener);
        // Nobody reads it at the other end.
        slow.write_all(&[0; 500_000]).unwrap();
        for _ in 0..20 {
            let (mut client, mut server) = connected(&forwarding, listener);
            server.write_all(b"quick").unwrap();
            drop(server);
            assert_eq!(text(&mut client), "quick");
        }
    });
}

#[test]
fn listeners_of_either_family_are_reached() {
    for (address, said) in [("127.0.0.1:0", "four"), ("[::1]:0", "six")] {
        each_way(address, |forwarding, listener| {
            let (mut client, mut server) = connected(&forwarding, listener);
            server.write_all(said.as_bytes()).unwrap();
            drop(server);
            assert_eq!(text(&mut client), said);
        });
    }
}

#[test]
fn that_nobody_listens_is_told() {
    for network in [NamespaceMode::Pod, NamespaceMode::Node] {
        let node = Node::start();
        let pod = node.pod(network);
        let port = listen(&node, &pod, network, "127.0.0.1:0").local_addr().unwrap().port();
        for transport in transports() {
            let mut refused = Forwarding::new(&node, transport, &pod, port);
            let _ = refused.connect().read(&mut [0]);
            // The client ends the whole forwarding over this, with the reason that it was given.
            let mut said = refused.child.stderr.take().unwrap();
            eventually("crictl gives up", || refused.child.try_wait().unwrap().is_some());
            let mut err = String::new();
            said.read_to_string(&mut err).unwrap();
            assert!(err.contains("refused"), "{transport}, {network:?}: {err}");
        }
    }
}
