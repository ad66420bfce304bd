//! UpdateRuntimeConfig: new pods get addresses of the node's pod CIDRs, and those that have one keep it (A1-27).

use crisp::cri;
use tonic::{Code, Status};

use crate::fixture::{HOST_ADDRESS, OwnWorld, Pod, World, ask, eventually, is_code, says};

fn update(world: &World, pod_cidr: &str) -> Result<(), Status> {
    let request = cri::UpdateRuntimeConfigRequest {
        runtime_config: Some(cri::RuntimeConfig {
            network_config: Some(cri::NetworkConfig {
                pod_cidr: pod_cidr.to_owned(),
            }),
        }),
    };
    ask(world.runtime().update_runtime_config(request)).map(drop)
}

fn ips(pod: &Pod) -> Vec<String> {
    let network = pod.status().network.expect("a network");
    let others = network.additional_ips.into_iter().map(|other| other.ip);
    std::iter::once(network.ip).chain(others).collect()
}

/// The bridge's addresses, and whether the table translates for a network.
fn host(world: &World) -> String {
    let shown = world.inside(|| {
        let script = "ip -o address show; nft list ruleset";
        let output = std::process::Command::new("sh").args(["-c", script]).output()?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    });
    shown.expect("a shell")
}

#[test]
fn new_pods_move_to_the_pod_cidrs_and_the_old_keep_their_addresses() {
    let own = OwnWorld::new("cidr");
    let world = own.0;
    update(world, "10.201.7.0/24").unwrap();
    let first = world.pod("first");
    assert_eq!(ips(&first), ["10.201.7.2"]);
    let c = first.idle("c", |_| {});
    // Both families, while there is a pod.
    update(world, "10.202.0.0/16,fd77::/64").unwrap();
    let second = world.pod("second");
    assert_eq!(ips(&second), ["10.202.0.2", "fd77::2"]);
    assert_eq!(ips(&first), ["10.201.7.2"]);
    let d = second.idle("d", |_| {});
    for (from, to) in [
        (&c, "10.202.0.2"),
        (&c, HOST_ADDRESS),
        (&d, "10.201.7.2"),
        (&d, HOST_ADDRESS),
        (&d, "fd77::1"),
    ] {
        from.sh(&format!("ping -c 1 -W 10 {to} > /dev/null"));
    }
    // What the kubelet said once holds for the next daemon.
    world.restart();
    let third = world.pod("third");
    assert_eq!(ips(&third), ["10.202.0.3", "fd77::3"]);
    c.sh(&format!("ping -c 1 -W 10 {HOST_ADDRESS} > /dev/null"));
    assert!(host(world).contains("10.201.7.1/24") && host(world).contains("10.201.7.0/24"));
    drop(first);
    eventually("the old network goes with its last pod", || {
        (!host(world).contains("10.201.7.1/24")).then_some(())
    });
    d.sh(&format!("ping -c 1 -W 10 {HOST_ADDRESS} > /dev/null"));
    drop((second, third));
    eventually("bridge and table go after the last pod", || {
        (!host(world).contains("10.202.")).then_some(())
    });
    let last = world.pod("last");
    assert!(ips(&last)[0].starts_with("10.202.0.") && ips(&last)[1].starts_with("fd77::"));
}

#[test]
fn what_is_no_pod_cidr_is_refused_and_changes_nothing() {
    let own = OwnWorld::new("no-cidr");
    let world = own.0;
    update(world, "10.203.0.0/24").unwrap();
    for (wrong, why) in [
        ("10.0.0.0", "not an IP network"),
        ("10.0.0.0/24,10.1.0.0/24", "different families"),
        ("10.0.0.0/24,fd00::/64,fd01::/64", "different families"),
        ("10.0.0.0/31", "no room"),
        ("127.0.0.0/8", "hosts"),
        ("kubernetes", "not an IP network"),
    ] {
        let refusal = update(world, wrong).expect_err(wrong);
        assert!(is_code(&refusal, Code::InvalidArgument), "{refusal:?}");
        assert!(says(&refusal, why) && says(&refusal, wrong), "{refusal:?}");
    }
    // Nothing said is nothing changed.
    update(world, "").unwrap();
    ask(world
        .runtime()
        .update_runtime_config(cri::UpdateRuntimeConfigRequest::default()))
    .unwrap();
    let pod = world.pod("pod");
    assert_eq!(ips(&pod), ["10.203.0.2"]);
}
