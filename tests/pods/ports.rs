//! Ports of the host that lead into a pod.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use crisp::cri::{PortMapping, Protocol};
use crisp::network::netns;

use crate::fixture::{HOST_ADDRESS, Pod, eventually, says, world};

const PATIENCE: Duration = Duration::from_secs(2);

fn mapping(protocol: Protocol, host_port: i32, container_port: i32, host_ip: &str) -> PortMapping {
    PortMapping {
        protocol: protocol.into(),
        host_port,
        container_port,
        host_ip: host_ip.to_owned(),
    }
}

/// What the server at `address` says, asked from the host.
fn tcp(address: &str) -> io::Result<String> {
    let address: SocketAddr = address.parse().unwrap();
    world().inside(|| {
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.shutdown(Shutdown::Write)?;
        let mut said = String::new();
        stream.read_to_string(&mut said)?;
        Ok(said.trim().to_owned())
    })
}

/// What comes back for "ping".
fn udp(address: &str) -> io::Result<String> {
    world().inside(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect(address)?;
        socket.send(b"ping")?;
        let mut said = [0; 64];
        let length = socket.recv(&mut said)?;
        Ok(String::from_utf8_lossy(&said[..length]).into_owned())
    })
}

fn pod_with_ports(name: &str, ports: Vec<PortMapping>) -> Pod {
    world().pod_with(name, |config| config.port_mappings = ports)
}

/// A container that tells everyone who connects who it is.
fn serve(pod: &Pod, port: i32) {
    let says = pod.config.hostname.clone();
    pod.start(
        "server",
        &["nc", "-ll", "-p", &port.to_string(), "-e", "/bin/hostname"],
        |_| {},
    );
    let address = format!("{}:{port}", pod.ip());
    eventually("the server listens", || tcp(&address).ok().filter(|said| *said == says));
}

#[test]
fn tcp_from_loopback_and_from_the_hosts_address() {
    let pod = pod_with_ports(
        "tcp",
        vec![
            mapping(Protocol::Tcp, 20080, 80, ""),
            mapping(Protocol::Tcp, 20081, 80, ""),
        ],
    );
    serve(&pod, 80);
    for address in [
        "127.0.0.1:20080",
        "127.0.0.1:20081",
        &format!("{HOST_ADDRESS}:20080"),
        "127.0.0.2:20081",
    ] {
        assert_eq!(tcp(address).ok().as_deref(), Some("tcp"), "{address}");
    }
    // From another pod, to the node's address; and the pod itself, to its own host port.
    let other = world().pod("tcp-other");
    let client = other.idle("client", |_| {});
    assert_eq!(client.sh(&format!("nc -w 2 {HOST_ADDRESS} 20080 < /dev/null")), "tcp");
    let itself = pod.idle("itself", |_| {});
    assert_eq!(itself.sh(&format!("nc -w 2 {HOST_ADDRESS} 20080 < /dev/null")), "tcp");
    assert_eq!(
        client.sh(&format!("nc -w 2 {} 80 < /dev/null", pod.ip())),
        "tcp",
        "pods do not reach each other"
    );
}

#[test]
fn udp_and_tcp_of_one_number() {
    let ports = vec![
        mapping(Protocol::Udp, 20053, 53, ""),
        mapping(Protocol::Tcp, 20053, 5353, ""),
    ];
    let pod = pod_with_ports("udp", ports);
    serve(&pod, 5353);
    let inside = std::fs::File::open(format!("/proc/{}/ns/net", pod.pid())).unwrap();
    let socket = netns::run_in(&inside, || UdpSocket::bind("0.0.0.0:53")).unwrap();
    std::thread::spawn(move || {
        let mut heard = [0; 64];
        while let Ok((_, from)) = socket.recv_from(&mut heard) {
            let _ = socket.send_to(b"pong", from);
        }
    });
    for host in ["127.0.0.1", HOST_ADDRESS] {
        assert_eq!(udp(&format!("{host}:20053")).ok().as_deref(), Some("pong"), "{host}");
        assert_eq!(tcp(&format!("{host}:20053")).ok().as_deref(), Some("udp"), "{host}");
    }
}

#[test]
fn a_port_on_one_address_of_the_host() {
    let one = pod_with_ports("one-address", vec![mapping(Protocol::Tcp, 20090, 80, "127.0.0.1")]);
    let two = pod_with_ports("other-address", vec![mapping(Protocol::Tcp, 20090, 80, HOST_ADDRESS)]);
    serve(&one, 80);
    serve(&two, 80);
    assert_eq!(tcp("127.0.0.1:20090").unwrap(), "one-address");
    assert_eq!(tcp(&format!("{HOST_ADDRESS}:20090")).unwrap(), "other-address");
}

#[test]
fn a_port_that_another_pod_has_is_refused_until_that_one_stops() {
    let first = pod_with_ports("port-first", vec![mapping(Protocol::Tcp, 20100, 80, "")]);
    serve(&first, 80);
    let again = || {
        world().try_pod("port-second", |config| {
            config.port_mappings = vec![mapping(Protocol::Tcp, 20100, 80, "")]
        })
    };
    let refused = again().err().expect("the port is taken");
    assert!(says(&refused, "20100"), "{refused}");
    assert_eq!(tcp("127.0.0.1:20100").unwrap(), "port-first");
    first.try_stop().unwrap();
    assert!(
        tcp("127.0.0.1:20100").is_err(),
        "a stopped pod's port still leads somewhere"
    );
    let second = again().expect("the port is free again");
    serve(&second, 80);
    assert_eq!(tcp("127.0.0.1:20100").unwrap(), "port-second");
    drop(second);
    // Nothing is in the way of a program of the host's own.
    let listener = world().inside(|| TcpListener::bind("127.0.0.1:20100")).unwrap();
    std::thread::spawn(move || {
        listener
            .accept()
            .and_then(|(mut stream, _)| stream.write_all(b"the host"))
    });
    assert_eq!(tcp("127.0.0.1:20100").unwrap(), "the host");
}
