//! The embedded network with real packets. Each test is a machine of its own: a thread in a network namespace made for
//! it, with a neighbour on its wire, so that nothing of the real host is touched.

mod machine;

use std::time::Instant;

use crisp::network::{EmbeddedConfig, Mode, NetworkConfig, Protocol};
use machine::{Machine, answers, port, serve};

fn config(machine: &Machine) -> NetworkConfig {
    NetworkConfig { mode: Mode::Embedded, ..NetworkConfig::new(machine.run()) }
}

#[test]
fn two_pods_reach_each_other_and_the_world() {
    Machine::run_test(|machine| {
        let networks = machine.open(config(machine));
        let (a, b) = (machine.pod('a', &[]), machine.pod('b', &[]));
        let began = Instant::now();
        let first = machine.add(&networks, &a);
        let second = machine.add(&networks, &b);
        println!("two ADDs (the first makes the bridge): {:?}", began.elapsed());
        println!("{}", machine.sh("ip -d a; ip r; nft list ruleset; true"));
        assert_eq!(first.ips[0].to_string(), "10.88.0.2");
        assert_eq!(second.ips[0].to_string(), "10.88.0.3");
        serve(&b, "10.88.0.3:80", "b");
        assert_eq!(answers(&a, "10.88.0.3:80").as_deref(), Some("b"));
        let began = Instant::now();
        machine.del(&networks, &a);
        println!("DEL: {:?}", began.elapsed());
        let began = Instant::now();
        machine.del(&networks, &b);
        println!("last DEL: {:?}", began.elapsed());
        machine.assert_nothing_left();
        let _ = (port(Protocol::Tcp, 1, 1), EmbeddedConfig::default());
    });
}
