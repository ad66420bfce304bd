//! A pod's network figures, read from outside: `/proc/<pid>/net/dev` shows the interfaces of that process's network
//! namespace, without entering it.

use std::io;
use std::os::unix::fs::MetadataExt;

use super::NetworkTarget;
use super::container::number;
use crate::cri;

/// The interface that carries the pod's addresses.
const DEFAULT: &str = "eth0";

/// What went in or out through an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Traffic {
    pub(super) bytes: u64,
    pub(super) packets: u64,
    pub(super) errors: u64,
    pub(super) dropped: u64,
}

/// An interface of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Interface {
    pub(super) name: String,
    pub(super) received: Traffic,
    pub(super) transmitted: Traffic,
}

/// The interfaces but loopback; none if the process is gone or is not in the pod's namespace (any more).
pub(super) fn interfaces(target: &NetworkTarget) -> Option<Vec<Interface>> {
    let text = match read(target) {
        Ok(text) => text?,
        Err(error) => {
            tracing::debug!(pid = target.pid, %error, "no network figures");
            return None;
        }
    };
    let found = text.lines().filter_map(parse);
    Some(found.filter(|interface| interface.name != "lo").collect())
}

/// The interfaces' figures in the CRI's words.
pub(super) fn network_usage(target: &NetworkTarget, timestamp: i64) -> Option<cri::NetworkUsage> {
    let (mut default_interface, mut others) = (None, Vec::new());
    for interface in interfaces(target)? {
        let usage = cri::NetworkInterfaceUsage {
            rx_bytes: number(interface.received.bytes),
            rx_errors: number(interface.received.errors),
            tx_bytes: number(interface.transmitted.bytes),
            tx_errors: number(interface.transmitted.errors),
            name: interface.name,
        };
        if usage.name == DEFAULT {
            default_interface = Some(usage);
        } else {
            others.push(usage);
        }
    }
    Some(cri::NetworkUsage {
        timestamp,
        default_interface,
        interfaces: others,
    })
}

fn read(target: &NetworkTarget) -> io::Result<Option<String>> {
    let text = std::fs::read_to_string(format!("/proc/{}/net/dev", target.pid))?;
    // After the reading, so that a pid that changed hands before it is found out.
    let read_from = std::fs::metadata(format!("/proc/{}/ns/net", target.pid))?;
    let wanted = std::fs::metadata(&target.netns)?;
    Ok(((read_from.dev(), read_from.ino()) == (wanted.dev(), wanted.ino())).then_some(text))
}

/// `  eth0: <8 receive columns> <8 transmit columns>`, the first of each bytes, then packets, errors and what was
/// dropped (proc_pid_net(5)).
fn parse(line: &str) -> Option<Interface> {
    let (name, columns) = line.rsplit_once(':')?;
    let values: Vec<u64> = columns
        .split_ascii_whitespace()
        .map_while(|value| value.parse().ok())
        .collect();
    let traffic = |values: &[u64]| Traffic {
        bytes: values[0],
        packets: values[1],
        errors: values[2],
        dropped: values[3],
    };
    Some(Interface {
        name: name.trim().to_owned(),
        received: traffic(values.get(..4)?),
        transmitted: traffic(values.get(8..12)?),
    })
}

#[cfg(test)]
mod tests {
    use super::{Traffic, parse};

    #[test]
    fn the_columns_of_an_interface_are_found() {
        let line = "  eth0: 11 22 33 44 55 66 77 88 111 222 333 444 555 666 777 888";
        let eth0 = parse(line).unwrap();
        let traffic = |bytes, packets, errors, dropped| Traffic {
            bytes,
            packets,
            errors,
            dropped,
        };
        assert_eq!(eth0.received, traffic(11, 22, 33, 44));
        assert_eq!(eth0.transmitted, traffic(111, 222, 333, 444));
        assert!(parse("Inter-|   Receive                                                |  Transmit").is_none());
        assert!(parse(" face |bytes    packets errs drop fifo frame compressed multicast|bytes").is_none());
        assert!(parse("eth0: 1 2 3").is_none());
    }
}
