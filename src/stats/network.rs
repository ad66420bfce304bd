//! A pod's network figures, read from outside: `/proc/<pid>/net/dev` shows the interfaces of that process's network
//! namespace, without entering it.

use std::io;
use std::os::unix::fs::MetadataExt;

use super::NetworkTarget;
use super::container::number;
use crate::cri;

/// The interface that carries the pod's addresses.
const DEFAULT: &str = "eth0";

/// The interfaces' figures; none if the process is gone or is not in the pod's namespace (any more).
pub(super) fn network_usage(target: &NetworkTarget, timestamp: i64) -> Option<cri::NetworkUsage> {
    let text = match read(target) {
        Ok(text) => text?,
        Err(error) => {
            tracing::debug!(pid = target.pid, %error, "no network figures");
            return None;
        }
    };
    let (mut default_interface, mut interfaces) = (None, Vec::new());
    for interface in text
        .lines()
        .filter_map(parse)
        .filter(|interface| interface.name != "lo")
    {
        if interface.name == DEFAULT {
            default_interface = Some(interface);
        } else {
            interfaces.push(interface);
        }
    }
    Some(cri::NetworkUsage {
        timestamp,
        default_interface,
        interfaces,
    })
}

fn read(target: &NetworkTarget) -> io::Result<Option<String>> {
    let text = std::fs::read_to_string(format!("/proc/{}/net/dev", target.pid))?;
    // After the reading, so that a pid that changed hands before it is found out.
    let read_from = std::fs::metadata(format!("/proc/{}/ns/net", target.pid))?;
    let wanted = std::fs::metadata(&target.netns)?;
    Ok(((read_from.dev(), read_from.ino()) == (wanted.dev(), wanted.ino())).then_some(text))
}

/// `  eth0: <8 receive columns> <8 transmit columns>`, the first of each bytes, the third errors (proc_pid_net(5)).
fn parse(line: &str) -> Option<cri::NetworkInterfaceUsage> {
    let (name, columns) = line.rsplit_once(':')?;
    let mut values = columns.split_ascii_whitespace().map(|value| value.parse::<u64>().ok());
    Some(cri::NetworkInterfaceUsage {
        name: name.trim().to_owned(),
        rx_bytes: number(values.next()??),
        rx_errors: number(values.nth(1)??),
        tx_bytes: number(values.nth(5)??),
        tx_errors: number(values.nth(1)??),
    })
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn the_columns_of_an_interface_are_found() {
        let line = "  eth0: 11 22 33 44 55 66 77 88 111 222 333 444 555 666 777 888";
        let eth0 = parse(line).unwrap();
        let value = |v: Option<crate::cri::UInt64Value>| v.unwrap().value;
        assert_eq!(eth0.name, "eth0");
        assert_eq!((value(eth0.rx_bytes), value(eth0.rx_errors)), (11, 33));
        assert_eq!((value(eth0.tx_bytes), value(eth0.tx_errors)), (111, 333));
        assert!(parse("Inter-|   Receive                                                |  Transmit").is_none());
        assert!(parse(" face |bytes    packets errs drop fifo frame compressed multicast|bytes").is_none());
        assert!(parse("eth0: 1 2 3").is_none());
    }
}
