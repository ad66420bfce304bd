//! Names and networks: which ones this instance takes, and the record of it.

use std::path::Path;
use std::time::Duration;

use rand::Rng;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::subnet::Subnet;
use crate::model::SandboxId;
use crate::network::NetworkError;
use crate::network::record::RecordFile;

/// Settings of the embedded network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EmbeddedConfig {
    /// Tells instances on one host apart; empty for the usual one. Names of the bridge and the table come from it.
    pub instance: String,
    /// The bridge's name, at most 15 bytes; `crisp0` for the usual instance.
    pub bridge: Option<String>,
    /// The pod networks, at most one of each family; empty: one that overlaps no route of the host is chosen.
    pub subnets: Vec<Subnet>,
    /// With no `subnets`: choose an IPv6 network, too.
    pub dual_stack: bool,
    /// How long bridge and table stay without pods.
    pub idle: Duration,
}

/// What the instance uses: written before anything is made by it, so that a later daemon, configured otherwise, still
/// finds and removes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    pub bridge: String,
    pub table: String,
    /// New pods get an address of each.
    pub subnets: Vec<Subnet>,
    /// Those that new pods got before; some still have their addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retired: Vec<Subnet>,
    /// The networks have changed, and not everything in the kernel has followed yet.
    #[serde(default)]
    pub unsettled: bool,
}

impl Layout {
    /// Every network that a pod may have an address of.
    pub fn all(&self) -> impl Iterator<Item = &Subnet> {
        self.subnets.iter().chain(&self.retired)
    }
}

/// IPv4 networks to try, in this order. None of Kubernetes' usual ones (10.96.0.0/12, 10.244.0.0/16) is among them.
const CANDIDATES: [&str; 10] = [
    "10.88.0.0/16",
    "10.89.0.0/16",
    "10.90.0.0/16",
    "10.91.0.0/16",
    "10.92.0.0/16",
    "10.93.0.0/16",
    "10.94.0.0/16",
    "10.95.0.0/16",
    "172.30.0.0/16",
    "192.168.188.0/24",
];

const NAME_BYTES: usize = libc::IFNAMSIZ - 1;

impl EmbeddedConfig {
    /// Bridge and table.
    pub fn names(&self) -> (String, String) {
        let (bridge, table) = if self.instance.is_empty() {
            ("crisp0".to_owned(), "crisp".to_owned())
        } else {
            let suffix = short(&self.instance);
            (format!("crisp-{suffix}"), format!("crisp_{suffix}"))
        };
        (
            self.bridge.clone().filter(|name| is_link_name(name)).unwrap_or(bridge),
            table,
        )
    }

    /// Networks for a layout made now. `used` are the host's routes; `previous` is kept if it is still free.
    pub fn choose(
        &self,
        node: &[Subnet],
        used: &[Subnet],
        previous: Option<&Layout>,
    ) -> Result<Vec<Subnet>, NetworkError> {
        for given in [&self.subnets[..], node] {
            if !given.is_empty() {
                return Ok(given.to_vec());
            }
        }
        let free = |subnet: &Subnet| !used.iter().any(|other| other.overlaps(subnet));
        let previous = previous.map_or(&[][..], |layout| &layout.subnets);
        let mut chosen = vec![
            previous
                .iter()
                .copied()
                .filter(Subnet::is_ipv4)
                .chain(CANDIDATES.iter().map(|text| text.parse().expect("a literal network")))
                .find(free)
                .ok_or_else(|| NetworkError::NoSubnet {
                    tried: CANDIDATES.join(", "),
                })?,
        ];
        if self.dual_stack {
            let kept = previous.iter().copied().filter(|subnet| !subnet.is_ipv4()).find(free);
            chosen.push(kept.unwrap_or_else(unique_local));
        }
        Ok(chosen)
    }
}

/// A random unique local /64 (RFC 4193): nobody else's, with all the certainty that forty random bits give.
fn unique_local() -> Subnet {
    let mut bytes = [0u8; 16];
    bytes[0] = 0xfd;
    rand::rng().fill(&mut bytes[1..6]);
    Subnet::new(bytes.into(), 64).expect("64 is a prefix")
}

fn is_link_name(name: &str) -> bool {
    (1..=NAME_BYTES).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

/// `instance` itself if it is short and plain, else eight digits made from it.
fn short(instance: &str) -> String {
    if instance.len() <= NAME_BYTES - "crisp-".len() && instance.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return instance.to_owned();
    }
    Sha256::digest(instance)[..4]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// The host's end of a pod's veth pair.
pub fn veth_name(sandbox_id: &SandboxId) -> String {
    format!("{VETH}{}", &sandbox_id.as_str()[..NAME_BYTES - VETH.len()])
}

const VETH: &str = "crs-";

/// Whether a link may be one that [`veth_name`] named.
pub fn is_veth_name(name: &str) -> bool {
    name.starts_with(VETH)
}

/// The file that holds the [`Layout`].
#[derive(Debug)]
pub struct LayoutFile(RecordFile);

impl LayoutFile {
    /// The file in `dir`.
    pub fn new(dir: &Path) -> Self {
        Self(RecordFile::new(dir.join("subnet")))
    }

    /// Reads it; `None` if there is none that makes sense.
    pub fn read(&self) -> Result<Option<Layout>, NetworkError> {
        let layout = self.0.read()?.and_then(|text| serde_json::from_slice(&text).ok());
        Ok(layout.filter(|layout: &Layout| !layout.subnets.is_empty()))
    }

    /// Replaces it.
    pub fn write(&self, layout: &Layout) -> Result<(), NetworkError> {
        self.0
            .write(&serde_json::to_vec(layout).expect("a layout is plain data"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_have_names_of_their_own() {
        let names = |instance: &str| {
            EmbeddedConfig {
                instance: instance.into(),
                ..Default::default()
            }
            .names()
        };
        assert_eq!(names(""), ("crisp0".into(), "crisp".into()));
        assert_eq!(names("two"), ("crisp-two".into(), "crisp_two".into()));
        let (long, _) = names("/var/tmp/somewhere/else");
        assert!(
            long.len() <= NAME_BYTES && long != names("/var/tmp/somewhere/other").0,
            "{long}"
        );
        let bridge = Some("../etc".to_owned());
        assert_eq!(
            EmbeddedConfig {
                bridge,
                ..Default::default()
            }
            .names()
            .0,
            "crisp0"
        );
    }

    #[test]
    fn a_network_overlaps_no_route_and_stays_while_it_can() {
        let subnet = |text: &str| text.parse::<Subnet>().unwrap();
        let config = EmbeddedConfig::default();
        let chosen = |used: &[&str], previous: Option<&Layout>| {
            let used: Vec<Subnet> = used.iter().map(|text| subnet(text)).collect();
            config
                .choose(&[], &used, previous)
                .map(|subnets| subnets[0].to_string())
        };
        assert_eq!(chosen(&[], None).unwrap(), "10.88.0.0/16");
        assert_eq!(chosen(&["10.88.3.0/24", "10.89.0.0/17"], None).unwrap(), "10.90.0.0/16");
        assert_eq!(chosen(&["10.0.0.0/8"], None).unwrap(), "172.30.0.0/16");
        assert!(matches!(
            chosen(&["0.0.0.0/1", "128.0.0.0/1"], None),
            Err(NetworkError::NoSubnet { .. })
        ));
        let previous = Layout {
            bridge: "b".into(),
            table: "t".into(),
            subnets: vec![subnet("10.93.0.0/16")],
            retired: Vec::new(),
            unsettled: false,
        };
        assert_eq!(chosen(&[], Some(&previous)).unwrap(), "10.93.0.0/16");
        assert_eq!(chosen(&["10.93.0.0/24"], Some(&previous)).unwrap(), "10.88.0.0/16");
        let dual = EmbeddedConfig {
            dual_stack: true,
            ..Default::default()
        };
        let both = dual.choose(&[], &[], None).unwrap();
        assert!(both[1].to_string().starts_with("fd") && both[1].prefix() == 64);
        assert_eq!(
            dual.choose(&[subnet("10.1.0.0/24")], &[], None).unwrap(),
            [subnet("10.1.0.0/24")]
        );
    }
}
