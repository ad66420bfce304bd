//! The embedded network.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::machine::{Machine, answers, answers_from, port, serve, udp};
use crisp::network::{EmbeddedConfig, Mode, NetworkConfig, NetworkError, PortMapping, Protocol, netns};

fn config(machine: &Machine) -> NetworkConfig {
    NetworkConfig {
        mode: Mode::Embedded,
        ..NetworkConfig::new(machine.run())
    }
}

fn dual(machine: &Machine) -> NetworkConfig {
    let embedded = EmbeddedConfig {
        dual_stack: true,
        ..EmbeddedConfig::default()
    };
    NetworkConfig {
        embedded,
        ..config(machine)
    }
}

fn here() -> std::fs::File {
    std::fs::File::open("/proc/thread-self/ns/net").unwrap()
}

#[test]
fn pods_reach_each_other_and_the_world_and_leave_nothing() {
    Machine::run_test(|machine| {
        let networks = machine.open(config(machine));
        let (a, b) = (machine.pod('a', &[]), machine.pod('b', &[]));
        let first = machine.add(&networks, &a);
        let second = machine.add(&networks, &b);
        assert_eq!(first.ips, ["10.88.0.2".parse::<IpAddr>().unwrap()]);
        assert_eq!(second.ips, ["10.88.0.3".parse::<IpAddr>().unwrap()]);
        assert_eq!(first.result["ips"][0]["gateway"], "10.88.0.1");
        serve(&b, "10.88.0.3:80", "b");
        assert_eq!(answers(&a, "10.88.0.3:80").as_deref(), Some("b"));
        assert_eq!(answers_from(&here(), "10.88.0.3:80").as_deref(), Some("b"));
        let (asked, from) = machine.neighbour_serves("192.0.2.2:80", "the world");
        assert_eq!(answers(&a, "192.0.2.2:80").as_deref(), Some("the world"));
        asked.join().unwrap();
        assert_eq!(
            from.recv().unwrap().to_string(),
            "192.0.2.1",
            "the world sees the host's address"
        );
        machine.del(&networks, &a);
        machine.del(&networks, &a);
        assert_eq!(answers_from(&here(), "10.88.0.3:80").as_deref(), Some("b"));
        machine.del(&networks, &b);
        machine.assert_nothing_left();
        let again = machine.add(&networks, &a);
        assert_eq!(
            again.ips[0].to_string(),
            "10.88.0.4",
            "an address rests before it is given again"
        );
        machine.del(&networks, &a);
        machine.assert_nothing_left();
    });
}

#[test]
fn a_host_port_answers_everywhere_it_should() {
    Machine::run_test(|machine| {
        let networks = machine.open(dual(machine));
        let ports = [port(Protocol::Tcp, 8080, 80), port(Protocol::Tcp, 0, 81)];
        let (web, other) = (machine.pod('a', &ports), machine.pod('b', &[]));
        let ips = machine.add(&networks, &web).ips;
        machine.add(&networks, &other);
        assert!(ips[0].is_ipv4() && ips[1].is_ipv6());
        serve(&web, "[::]:80", "web");
        let web_says = Some("web".to_owned());
        for address in [
            "127.0.0.1:8080",
            "127.1.2.3:8080",
            "192.0.2.1:8080",
            "10.88.0.1:8080",
            "[fd99::1]:8080",
        ] {
            assert_eq!(answers_from(&here(), address), web_says, "the host at {address}");
        }
        for address in ["192.0.2.1:8080", "[fd99::1]:8080"] {
            assert_eq!(
                answers_from(&machine.neighbour(), address),
                web_says,
                "the neighbour at {address}"
            );
            assert_eq!(answers(&other, address), web_says, "another pod at {address}");
            assert_eq!(answers(&web, address), web_says, "the pod itself at {address}");
        }
        assert_eq!(answers_from(&here(), &format!("[{}]:80", ips[1])), web_says);
        assert_eq!(answers_from(&machine.neighbour(), "192.0.2.1:81"), None);
        machine.del(&networks, &web);
        assert_eq!(answers_from(&here(), "127.0.0.1:8080"), None);
        machine.del(&networks, &other);
        machine.assert_nothing_left();
    });
}

#[test]
fn a_host_port_at_one_address_answers_only_there() {
    Machine::run_test(|machine| {
        let networks = machine.open(config(machine));
        let at = |ip: &str| PortMapping {
            host_ip: Some(ip.parse().unwrap()),
            ..port(Protocol::Tcp, 8080, 80)
        };
        let (web, other) = (
            machine.pod('a', &[at("192.0.2.1"), at("fd99::1")]),
            machine.pod('b', &[at("127.0.0.1")]),
        );
        machine.add(&networks, &web);
        machine.add(&networks, &other);
        serve(&web, "0.0.0.0:80", "web");
        serve(&other, "0.0.0.0:80", "other");
        assert_eq!(answers_from(&here(), "192.0.2.1:8080").as_deref(), Some("web"));
        assert_eq!(answers(&web, "192.0.2.1:8080").as_deref(), Some("web"));
        assert_eq!(
            answers_from(&machine.neighbour(), "192.0.2.1:8080").as_deref(),
            Some("web")
        );
        assert_eq!(answers_from(&here(), "127.0.0.1:8080").as_deref(), Some("other"));
        assert_eq!(answers_from(&here(), "127.0.0.2:8080"), None);
        machine.del(&networks, &web);
        machine.del(&networks, &other);
        machine.assert_nothing_left();
    });
}

#[test]
fn a_taken_host_port_is_refused_by_name_and_free_again_after_del() {
    Machine::run_test(|machine| {
        let networks = machine.open(config(machine));
        let (first, second) = (
            machine.pod('a', &[port(Protocol::Tcp, 80, 80)]),
            machine.pod('b', &[port(Protocol::Tcp, 80, 8080)]),
        );
        let udp = machine.pod('c', &[port(Protocol::Udp, 80, 80), port(Protocol::Sctp, 80, 80)]);
        let twice = machine.pod('d', &[port(Protocol::Tcp, 81, 80), port(Protocol::Tcp, 81, 82)]);
        machine.add(&networks, &first);
        machine.add(&networks, &udp);
        for (pod, holder) in [(&second, &first), (&twice, &twice)] {
            let error = machine.try_add(&networks, pod).unwrap_err();
            let NetworkError::PortTaken { holder: found, .. } = error else {
                panic!("{error}")
            };
            assert_eq!(found, holder.attachment.sandbox_id.as_str());
        }
        assert_eq!(machine.leases(), 2);
        machine.del(&networks, &first);
        machine.add(&networks, &second);
        machine.del(&networks, &udp);
        machine.del(&networks, &second);
        machine.assert_nothing_left();
    });
}

/// A client that keeps its port would otherwise stick to the pod that is gone.
#[test]
fn udp_clients_follow_a_host_port_to_the_next_pod() {
    Machine::run_test(|machine| {
        let networks = machine.open(config(machine));
        let client = udp(&machine.neighbour(), "192.0.2.2:5000");
        client.connect("192.0.2.1:53").unwrap();
        let _ = client.send(b"too early");
        for digit in ['a', 'b'] {
            let pod = machine.pod(digit, &[port(Protocol::Udp, 53, 5353)]);
            machine.add(&networks, &pod);
            let server = udp(&netns::open(&pod.attachment.netns).unwrap(), "0.0.0.0:5353");
            let mut text = [0; 16];
            let mut heard = None;
            for _ in 0..6 {
                // the first sends report the port unreachable that the kernel answered before
                let _ = client.send(b"hello");
                match server.recv_from(&mut text) {
                    Ok((length, from)) if text[..length] == *b"hello" => {
                        heard = Some(from);
                        break;
                    }
                    _ => {}
                }
            }
            let from = heard.unwrap_or_else(|| panic!("{digit} hears nothing"));
            assert_eq!(
                from.to_string(),
                "192.0.2.2:5000",
                "a host port keeps the client's address"
            );
            machine.del(&networks, &pod);
        }
        machine.assert_nothing_left();
    });
}

/// The class of CVE-2020-8558: 127.0.0.0/8 is routed on the bridge for host ports, and must not let a pod in.
#[test]
fn no_pod_reaches_what_listens_on_the_hosts_loopback() {
    Machine::run_test(|machine| {
        let networks = machine.open(config(machine));
        let pod = machine.pod('a', &[]);
        machine.add(&networks, &pod);
        let secret = udp(&here(), "127.0.0.1:9999");
        let attacker = udp(&netns::open(&pod.attachment.netns).unwrap(), "0.0.0.0:0");
        assert_eq!(
            machine.sh("cat /proc/sys/net/ipv4/conf/crisp0/route_localnet").trim(),
            "1"
        );
        let inside = "ip route del local 127.0.0.0/8 table local; ip route del local 127.0.0.1 table local; \
                      ip route add 127.0.0.1 via 10.88.0.1; sysctl -qw net.ipv4.conf.all.route_localnet=1";
        machine.sh(&format!(
            "nsenter --net={} sh -ec '{inside}'",
            pod.attachment.netns.display()
        ));
        let reached = || {
            attacker.send_to(b"x", "127.0.0.1:9999").unwrap();
            secret.recv(&mut [0; 1]).is_ok()
        };
        assert!(!reached(), "a pod's packet reached the host's loopback");
        // without the guard it does, so this test tests something
        machine.sh("nft flush chain inet crisp guard");
        assert!(reached());
        assert_eq!(machine.sh("cat /proc/sys/net/ipv6/conf/crisp0/accept_ra").trim(), "0");
        machine.del(&networks, &pod);
        machine.assert_nothing_left();
    });
}

#[test]
fn a_network_that_the_host_uses_is_not_taken() {
    Machine::run_test(|machine| {
        machine.sh("ip route add 10.88.7.0/24 via 192.0.2.2; ip link set up0 mtu 1400");
        let networks = machine.open(config(machine));
        let pod = machine.pod('a', &[]);
        assert_eq!(machine.add(&networks, &pod).ips[0].to_string(), "10.89.0.2");
        assert!(
            machine.sh("ip link show crisp0").contains("mtu 1400"),
            "the way out decides the MTU"
        );
        machine.sh("ip route del 10.88.7.0/24");
        let next = machine.pod('b', &[]);
        assert_eq!(machine.add(&networks, &next).ips[0].to_string(), "10.89.0.3");
        machine.del(&networks, &pod);
        machine.del(&networks, &next);
        machine.assert_nothing_left();
    });
}

/// Symptom elsewhere: with Docker on the same host, pods reach nothing. Cause: its FORWARD policy.
#[test]
fn a_firewall_that_forwards_nothing_is_opened_for_pods_only_and_closed_again() {
    Machine::run_test(|machine| {
        machine.sh("iptables -P FORWARD DROP; iptables -A FORWARD -j LOG");
        let before = machine.sh("iptables -S FORWARD");
        let networks = machine.open(config(machine));
        let pod = machine.pod('a', &[port(Protocol::Tcp, 8080, 80)]);
        machine.add(&networks, &pod);
        let next = machine.pod('b', &[]);
        machine.add(&networks, &next);
        serve(&pod, "0.0.0.0:80", "pod");
        assert_eq!(
            answers_from(&machine.neighbour(), "192.0.2.1:8080").as_deref(),
            Some("pod")
        );
        let (_, from) = machine.neighbour_serves("192.0.2.2:80", "the world");
        assert_eq!(answers(&pod, "192.0.2.2:80").as_deref(), Some("the world"));
        from.recv().unwrap();
        let rules = machine.sh("iptables -S FORWARD");
        assert_eq!(rules.lines().count(), before.lines().count() + 2, "{rules}");
        machine.del(&networks, &pod);
        machine.del(&networks, &next);
        assert_eq!(machine.sh("iptables -S FORWARD"), before);
        machine.sh("nft delete table ip filter");
        machine.assert_nothing_left();
    });
}

#[test]
fn a_bridge_that_is_somebody_elses_is_neither_used_nor_removed() {
    Machine::run_test(|machine| {
        machine.sh("ip link add crisp0 type bridge");
        let networks = machine.open(config(machine));
        let pod = machine.pod('a', &[]);
        assert!(machine.try_add(&networks, &pod).is_err());
        machine.del(&networks, &pod);
        machine.sh("ip link del crisp0");
        machine.add(&networks, &pod);
        machine.del(&networks, &pod);
        machine.assert_nothing_left();
    });
}

#[test]
fn two_instances_on_one_host_do_not_meet() {
    Machine::run_test(|machine| {
        let first = machine.open(config(machine));
        let embedded = EmbeddedConfig {
            instance: "/var/tmp/two".into(),
            ..EmbeddedConfig::default()
        };
        let second = machine.open(NetworkConfig {
            embedded,
            mode: Mode::Embedded,
            ..NetworkConfig::new(machine.dir().join("two"))
        });
        let (a, b) = (machine.pod('a', &[]), machine.pod('b', &[]));
        assert_eq!(machine.add(&first, &a).ips[0].to_string(), "10.88.0.2");
        assert_eq!(machine.add(&second, &b).ips[0].to_string(), "10.89.0.2");
        machine.wait(second.gc(&[])).unwrap();
        serve(&a, "0.0.0.0:80", "a");
        assert_eq!(answers_from(&here(), "10.88.0.2:80").as_deref(), Some("a"));
        machine.del(&first, &a);
        machine.assert_nothing_left();
    });
}

/// A daemon that is killed at any step leaves a recorded plan; its successor's DEL by that plan must free everything.
#[test]
fn what_a_killed_daemon_left_is_freed_by_plan_or_by_gc() {
    Machine::run_test(|machine| {
        let ports = [port(Protocol::Tcp, 8080, 80)];
        let (kept, lost, half) = (machine.pod('a', &ports), machine.pod('b', &[]), machine.pod('c', &[]));
        let networks = machine.open(config(machine));
        let valid = machine.plan(&networks, &kept);
        let ip = machine.add(&networks, &kept).ips[0];
        machine.add(&networks, &lost);
        machine.add(&networks, &half);
        drop(networks);
        // killed between the address file's creation and its content, before the link came
        std::fs::write(machine.run().join("network/ips/10.88.0.9"), "").unwrap();
        machine.sh("ip link del crs-ccccccccccc");
        // an orphan that no file knows
        std::fs::remove_file(machine.run().join("network/ips/10.88.0.3")).unwrap();
        // and somebody flushed the rules meanwhile
        machine.sh("nft flush ruleset");

        let networks = machine.open(config(machine));
        machine.wait(networks.gc(std::slice::from_ref(&valid))).unwrap();
        assert_eq!(machine.leases(), 1);
        let links = machine.sh("ip -br link");
        assert!(
            links.contains("crs-aaaaaaaaaaa") && !links.contains("crs-bbb") && !links.contains("crs-ccc"),
            "{links}"
        );
        serve(&kept, "0.0.0.0:80", "kept");
        assert_eq!(answers_from(&here(), "127.0.0.1:8080").as_deref(), Some("kept"));
        let next = machine.pod('d', &[]);
        assert_ne!(machine.add(&networks, &next).ips[0], ip);
        machine.del(&networks, &half);
        machine.del(&networks, &next);
        machine.wait(networks.gc(&[])).unwrap();
        machine.assert_nothing_left();
    });
}

#[test]
fn a_flushed_firewall_and_a_removed_bridge_come_back_with_the_next_pod() {
    Machine::run_test(|machine| {
        let networks = machine.open(config(machine));
        let web = machine.pod('a', &[port(Protocol::Tcp, 8080, 80)]);
        machine.add(&networks, &web);
        serve(&web, "0.0.0.0:80", "web");
        machine.sh("nft flush ruleset; ip link del crisp0");
        assert_eq!(answers_from(&here(), "127.0.0.1:8080"), None);
        let next = machine.pod('b', &[]);
        machine.add(&networks, &next);
        assert_eq!(answers_from(&here(), "127.0.0.1:8080").as_deref(), Some("web"));
        machine.del(&networks, &web);
        machine.del(&networks, &next);
        machine.assert_nothing_left();
    });
}

#[test]
fn a_failed_add_leaves_nothing_and_the_same_request_then_succeeds() {
    Machine::run_test(|machine| {
        let networks = machine.open(config(machine));
        let pod = machine.pod('a', &[port(Protocol::Tcp, 8080, 80)]);
        let inside = format!("nsenter --net={}", pod.attachment.netns.display());
        machine.sh(&format!("{inside} ip link add eth0 type bridge"));
        assert!(machine.try_add(&networks, &pod).is_err());
        machine.settle(&networks);
        machine.assert_nothing_left();
        machine.sh(&format!("{inside} ip link del eth0"));
        machine.add(&networks, &pod);
        // As a daemon that died before it had recorded the first: ADD again, of the same pod, gives the same.
        machine.add(&networks, &pod);
        assert_eq!(machine.leases(), 1);
        netns::remove(&pod.attachment.netns).unwrap();
        machine.del(&networks, &pod);
        machine.assert_nothing_left();
        assert!(machine.try_add(&networks, &pod).is_err(), "no namespace, no pod");
        machine.settle(&networks);
        machine.assert_nothing_left();
    });
}

#[test]
fn many_at_once_are_quick_and_no_address_is_lost() {
    const PODS: usize = 40;
    Machine::run_test(|machine| {
        let networks = machine.open(config(machine));
        let ports = |n: usize| [port(Protocol::Tcp, 10_000 + n as u16, 80)];
        let pods: Vec<_> = (0..PODS).map(|n| machine.numbered_pod(n, &ports(n))).collect();
        let plans: Vec<_> = pods.iter().map(|pod| machine.plan(&networks, pod)).collect();
        let began = Instant::now();
        let mut ips = machine.wait(async {
            let adds: Vec<_> = plans.iter().map(|plan| networks.add(plan)).collect();
            futures_util::future::join_all(adds)
                .await
                .into_iter()
                .map(|added| added.unwrap().ips[0])
                .collect::<Vec<_>>()
        });
        let added = began.elapsed();
        ips.sort();
        ips.dedup();
        assert_eq!(ips.len(), PODS);
        let began = Instant::now();
        machine.wait(async {
            let dels: Vec<_> = plans.iter().map(|plan| networks.del(plan, None)).collect();
            futures_util::future::join_all(dels)
                .await
                .into_iter()
                .for_each(|deleted| deleted.unwrap());
        });
        machine.settle(&networks);
        println!(
            "{PODS} pods: ADD {:?} each, DEL {:?} each",
            added / PODS as u32,
            began.elapsed() / PODS as u32
        );
        assert!(added < Duration::from_millis(20) * PODS as u32, "{added:?}");
        machine.assert_nothing_left();
    });
}

/// The usual end of a pod: its namespace goes, the kernel takes the link along, and the address comes free by itself.
#[test]
fn a_link_goes_with_its_namespace_and_a_held_namespace_does_not_hold_it() {
    Machine::run_test(|machine| {
        let networks = machine.open(config(machine));
        let (gone, held) = (machine.pod('a', &[]), machine.pod('b', &[]));
        for pod in [&gone, &held] {
            machine.add(&networks, pod);
        }
        for pod in [&gone, &held] {
            let plan = machine.plan(&networks, pod);
            machine.wait(networks.del(&plan, None)).unwrap();
        }
        assert_eq!(machine.leases(), 2, "an address rests while its link may be there");
        drop(gone);
        let deadline = Instant::now() + Duration::from_secs(20);
        while machine.leases() > 0
            || ["crs", "crisp"]
                .iter()
                .any(|ours| machine.sh("ip -br link").contains(ours))
            || !machine.sh("nft list ruleset").is_empty()
        {
            assert!(
                Instant::now() < deadline,
                "{}",
                machine.sh("ip -br link; nft list ruleset")
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        machine.assert_nothing_left();
        drop(held);
    });
}

/// Pods come while the last one goes: the bridge is taken down and made again under them.
#[test]
fn coming_and_going_at_once_leaves_nothing() {
    Machine::run_test(|machine| {
        let networks = machine.open(dual(machine));
        let pods: Vec<_> = (0..6)
            .map(|n| machine.numbered_pod(n, &[port(Protocol::Tcp, 10_000 + n as u16, 80)]))
            .collect();
        let plans: Vec<_> = pods.iter().map(|pod| machine.plan(&networks, pod)).collect();
        machine.wait(async {
            let lives = plans.iter().map(|plan| async {
                for _ in 0..8 {
                    let attached = networks
                        .add(plan)
                        .await
                        .unwrap_or_else(|e| panic!("{}", crate::machine::chain(&e)));
                    assert_eq!(attached.ips.len(), 2);
                    networks.del(plan, Some(&attached)).await.unwrap();
                }
            });
            futures_util::future::join_all(lives).await;
        });
        machine.settle(&networks);
        machine.assert_nothing_left();
    });
}
