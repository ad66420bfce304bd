//! How fast pods on the embedded network may receive and send.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crisp::network::{Mode, NetworkConfig, netns};

use crate::machine::{Machine, Pod};

/// How long `bytes` take, sent by the host to the pod, or to the host by the pod.
fn transfer(pod: &Pod, address: &str, bytes: usize, to_pod: bool) -> Duration {
    let address: SocketAddr = address.parse().unwrap();
    let netns = netns::open(&pod.attachment.netns).unwrap();
    let listener = netns::run_in(&netns, || TcpListener::bind(address)).unwrap();
    let began = Instant::now();
    let in_pod = std::thread::spawn(move || send_or_take(listener.accept().unwrap().0, bytes, !to_pod));
    send_or_take(TcpStream::connect(address).unwrap(), bytes, to_pod);
    in_pod.join().unwrap();
    began.elapsed()
}

/// Whoever sends waits until the other has everything.
fn send_or_take(mut stream: TcpStream, bytes: usize, send: bool) {
    if send {
        stream.write_all(&vec![7; bytes]).unwrap();
        stream.read_exact(&mut [0]).unwrap();
    } else {
        stream.read_exact(&mut vec![0; bytes]).unwrap();
        stream.write_all(&[0]).unwrap();
    }
}

#[test]
fn annotations_limit_what_a_pod_receives_and_sends() {
    const BYTES: usize = 1_500_000;
    Machine::run_test(|machine| {
        let networks = machine.open(NetworkConfig {
            mode: Mode::Embedded,
            ..NetworkConfig::new(machine.run())
        });
        let with = |digit, rates: [(&str, &str); 2]| {
            let mut pod = machine.pod(digit, &[]);
            let annotation = |(way, rate): (&str, &str)| (format!("kubernetes.io/{way}-bandwidth"), rate.to_owned());
            pod.attachment.annotations = rates.map(annotation).into();
            machine.add(&networks, &pod);
            pod
        };
        // Half a megabyte a second, of which a burst of 128 KiB costs nothing.
        let slow = Duration::from_secs(2);
        let receives_slowly = with('a', [("ingress", "4M"), ("egress", "100G")]);
        assert!(transfer(&receives_slowly, "10.88.0.2:80", BYTES, true) > slow);
        assert!(transfer(&receives_slowly, "10.88.0.2:81", BYTES, false) < slow);
        let sends_slowly = with('b', [("ingress", "nonsense"), ("egress", "4M")]);
        assert!(transfer(&sends_slowly, "10.88.0.3:80", BYTES, false) > slow);
        assert!(transfer(&sends_slowly, "10.88.0.3:81", BYTES, true) < slow);
        machine.del(&networks, &receives_slowly);
        machine.del(&networks, &sends_slowly);
        machine.assert_nothing_left();
    });
}
