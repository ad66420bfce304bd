//! Port-forward. In a pod on the node's network the tests themselves are what listens there.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Child;
use std::time::{Duration, Instant};

use crisp::cri::NamespaceMode;
use crisp::network::netns;

use crate::node::{Node, eventually, transports};

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
    let node = Node::start();
    let pod = node.pod(NamespaceMode::Node);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let forwarding = Forwarding::new(&node, "spdy", &pod, listener.local_addr().unwrap().port());
    let mut client = forwarding.connect();
    let (mut server, _) = listener.accept().unwrap();
    server.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    client.write_all(b"question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(text(&mut server), "question");
    std::thread::sleep(Duration::from_secs(2));
    for _ in 0..100 {
        server.write_all(&[b'a'; 100_000]).unwrap();
    }
    drop(server);
    assert_eq!(text(&mut client).len(), 10_000_000);
}

#[test]
fn a_reset_ends_one_connection_alone() {
    let node = Node::start();
    let pod = node.pod(NamespaceMode::Node);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut forwarding = Forwarding::new(&node, "spdy", &pod, listener.local_addr().unwrap().port());
    let connect = || {
        let client = forwarding.connect();
        let (server, _) = listener.accept().unwrap();
        server.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        (client, server)
    };
    let (mut client, mut server) = connect();

    // By the pod.
    for _ in 0..5 {
        let (mut other, other_server) = connect();
        reset(other_server);
        let end = other.read(&mut [0]);
        assert!(matches!(end, Ok(0)) || end.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset));
    }
    // By the client, in the middle of things.
    for _ in 0..5 {
        let (mut other, mut other_server) = connect();
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
}

#[test]
fn a_slow_connection_does_not_hold_up_the_others() {
    let node = Node::start();
    let pod = node.pod(NamespaceMode::Node);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let forwarding = Forwarding::new(&node, "spdy", &pod, listener.local_addr().unwrap().port());
    let mut slow = forwarding.connect();
    let (slow_server, _) = listener.accept().unwrap();
    // Nobody reads it at the other end.
    slow.write_all(&[0; 500_000]).unwrap();
    for _ in 0..20 {
        let mut client = forwarding.connect();
        let (mut server, _) = listener.accept().unwrap();
        server.write_all(b"quick").unwrap();
        drop(server);
        assert_eq!(text(&mut client), "quick");
    }
    drop((slow, slow_server));
}

#[test]
fn listeners_of_either_family_in_the_pod_are_reached() {
    let node = Node::start();
    let pod = node.pod(NamespaceMode::Pod);
    let container = node.container(&pod, &["sleep", "1000"], |_| {});
    let network = File::open(format!("/proc/{}/ns/net", node.pid(&container))).unwrap();
    for (address, said) in [("127.0.0.1:80", "four"), ("[::1]:81", "six")] {
        let address: SocketAddr = address.parse().unwrap();
        let listener = netns::run_in(&network, || TcpListener::bind(address)).unwrap();
        for transport in transports() {
            let forwarding = Forwarding::new(&node, transport, &pod, address.port());
            let mut client = forwarding.connect();
            let (mut server, _) = listener.accept().unwrap();
            server.write_all(said.as_bytes()).unwrap();
            drop(server);
            assert_eq!(text(&mut client), said, "{transport}");
        }
    }
}

#[test]
fn a_pod_that_listens_on_ipv6_only_is_reached_and_nobody_listening_is_told() {
    let node = Node::start();
    let pod = node.pod(NamespaceMode::Node);
    let listener = TcpListener::bind("[::1]:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let forwarding = Forwarding::new(&node, "spdy", &pod, port);
    let mut client = forwarding.connect();
    let (mut server, _) = listener.accept().unwrap();
    server.write_all(b"six").unwrap();
    drop(server);
    assert_eq!(text(&mut client), "six");
    drop((listener, client));
    let mut refused = Forwarding::new(&node, "spdy", &pod, port);
    let _ = refused.connect().read(&mut [0]);
    // The client ends the whole forwarding over this, with the reason that it was given.
    let mut said = refused.child.stderr.take().unwrap();
    eventually("crictl gives up", || refused.child.try_wait().unwrap().is_some());
    let mut err = String::new();
    said.read_to_string(&mut err).unwrap();
    assert!(err.contains("refused"), "{err}");
}
