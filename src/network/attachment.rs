//! What is asked for, what is intended, what came of it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::model::SandboxId;

/// A transport protocol of a host port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// The protocol's number (IANA).
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// A port of the host that leads to a port of the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    pub protocol: Protocol,
    pub container_port: u16,
    /// 0: none is asked for, the entry only documents the container's port.
    pub host_port: u16,
    /// Only at this address of the host. `None`, and the unspecified address for its family, mean every address.
    pub host_ip: Option<IpAddr>,
}

impl PortMapping {
    /// Whether both want the same port of the same protocol at an address that is the same.
    pub(crate) fn collides(&self, other: &Self) -> bool {
        let apart = match (self.host_ip, other.host_ip) {
            (Some(a), Some(b)) => a.is_ipv4() != b.is_ipv4() || (a != b && !a.is_unspecified() && !b.is_unspecified()),
            _ => false,
        };
        self.protocol == other.protocol && self.host_port == other.host_port && !apart
    }
}

impl fmt::Display for PortMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host_ip {
            Some(IpAddr::V6(ip)) => write!(f, "[{ip}]:")?,
            Some(ip) => write!(f, "{ip}:")?,
            None => {}
        }
        write!(f, "{}/{}", self.host_port, self.protocol)
    }
}

/// The pod's resolver configuration, as CNI plugins with the `dns` capability want it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    pub servers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

/// A pod to connect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    pub sandbox_id: SandboxId,
    /// Namespace, name and uid of the pod in Kubernetes.
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// The bind mount that [`super::netns::create`] made.
    pub netns: PathBuf,
    pub ports: Vec<PortMapping>,
    pub dns: Dns,
    pub annotations: BTreeMap<String, String>,
    /// CRI's `cgroup_parent`, for plugins with the `cgroupPath` capability.
    pub cgroup_parent: Option<String>,
}

/// The intent to connect a pod, and all that is needed to disconnect it, whatever the configuration is by then.
/// Written to disk before ADD.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    pub(crate) attachment: Attachment,
    pub(crate) backend: Backend,
}

impl Plan {
    /// The pod's sandbox.
    pub fn sandbox_id(&self) -> &SandboxId {
        &self.attachment.sandbox_id
    }
}

/// Which backend a plan is for, with what that backend must remember.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Backend {
    Embedded,
    Cni {
        network: String,
        /// The network configuration list as it was read, as JSON text.
        conflist: String,
        /// Where plugins are looked for.
        plugin_dirs: Vec<PathBuf>,
        /// The node's pod CIDRs, for plugins with the `ipRanges` capability.
        pod_cidrs: Vec<String>,
    },
}

/// What ADD gave.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attached {
    /// The pod's addresses; the first is the primary one.
    pub ips: Vec<IpAddr>,
    /// The CNI result as the last plugin printed it (the embedded network makes one too).
    pub result: serde_json::Value,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(host_ip: Option<&str>, host_port: u16) -> PortMapping {
        let host_ip = host_ip.map(|ip| ip.parse().unwrap());
        PortMapping {
            protocol: Protocol::Tcp,
            container_port: 1,
            host_port,
            host_ip,
        }
    }

    #[test]
    fn ports_collide_where_their_addresses_meet() {
        let collide = |a, b| port(a, 80).collides(&port(b, 80)) && port(b, 80).collides(&port(a, 80));
        assert!(collide(None, None));
        assert!(collide(None, Some("10.0.0.1")));
        assert!(collide(Some("0.0.0.0"), Some("10.0.0.1")));
        assert!(collide(Some("::"), None));
        assert!(!collide(Some("::"), Some("0.0.0.0")));
        assert!(!collide(Some("10.0.0.2"), Some("10.0.0.1")));
        assert!(!port(None, 80).collides(&port(None, 81)));
        let udp = PortMapping {
            protocol: Protocol::Udp,
            ..port(None, 80)
        };
        assert!(!udp.collides(&port(None, 80)));
        assert_eq!(port(Some("::1"), 80).to_string(), "[::1]:80/tcp");
    }
}
