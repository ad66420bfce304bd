//! The pod CIDRs that the kubelet gives a node: what they may be, and the record of them.

use std::path::Path;

use super::record::RecordFile;
use super::{NetworkError, Subnet};

/// Reads one network, or two of different families: `10.1.2.0/24,fd00::/64`.
pub fn parse(text: &str) -> Result<Vec<Subnet>, NetworkError> {
    let refuse = |why: String| NetworkError::PodCidr {
        text: text.to_owned(),
        why,
    };
    let mut subnets = Vec::new();
    for part in text.split(',') {
        let subnet: Subnet = part.trim().parse().map_err(|error| refuse(format!("{error}")))?;
        check(&subnet).map_err(|why| refuse(format!("{subnet} {why}")))?;
        subnets.push(subnet);
    }
    match subnets[..] {
        [_] => Ok(subnets),
        [a, b] if a.is_ipv4() != b.is_ipv4() => Ok(subnets),
        _ => Err(refuse(
            "one network, or two of different families, are needed".to_owned(),
        )),
    }
}

/// A pod network has a gateway and room for pods, and addresses that others may have.
fn check(subnet: &Subnet) -> Result<(), &'static str> {
    if subnet.pods().is_empty() {
        return Err("has no room for a gateway and a pod");
    }
    let base = subnet.base();
    let link_local = match base {
        std::net::IpAddr::V4(ip) => ip.is_link_local(),
        std::net::IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    if base.is_unspecified() || base.is_loopback() || base.is_multicast() || link_local {
        return Err("is not a network that hosts can be in");
    }
    Ok(())
}

/// The file that holds them, so that a restart of the daemon keeps them.
#[derive(Debug)]
pub struct PodCidrFile(RecordFile);

impl PodCidrFile {
    /// The file in `dir`.
    pub fn new(dir: &Path) -> Self {
        Self(RecordFile::new(dir.join("pod-cidrs")))
    }

    /// Reads it; empty if there is none, or none that makes sense.
    pub fn read(&self) -> Result<Vec<Subnet>, NetworkError> {
        let Some(content) = self.0.read()? else {
            return Ok(Vec::new());
        };
        let text = String::from_utf8_lossy(&content);
        Ok(parse(text.trim()).unwrap_or_else(|error| {
            let path = self.0.path().display();
            tracing::warn!(%path, %error, "recorded pod CIDRs make no sense: ignoring them");
            Vec::new()
        }))
    }

    /// Replaces it.
    pub fn write(&self, subnets: &[Subnet]) -> Result<(), NetworkError> {
        let text = subnets.iter().map(Subnet::to_string).collect::<Vec<_>>().join(",");
        self.0.write(text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_network_or_one_of_each_family() {
        let parsed = |text: &str| parse(text).map(|found| found.iter().map(Subnet::to_string).collect::<Vec<_>>());
        assert_eq!(parsed("10.1.2.3/24").unwrap(), ["10.1.2.0/24"]);
        assert_eq!(
            parsed("fd00:1::/64, 10.1.0.0/16").unwrap(),
            ["fd00:1::/64", "10.1.0.0/16"]
        );
        for (text, why) in [
            ("", "not an IP network"),
            ("10.1.2.0", "not an IP network"),
            ("10.1.2.0/33", "not an IP network"),
            ("10.1.2.0/24,", "not an IP network"),
            ("10.1.0.0/24,10.2.0.0/24", "different families"),
            ("10.1.0.0/24,fd00::/64,10.2.0.0/24", "different families"),
            ("10.1.2.0/31", "no room"),
            ("fd00::/127", "no room"),
            ("127.0.0.0/8", "not a network that hosts"),
            ("0.0.0.0/0", "not a network that hosts"),
            ("224.0.0.0/8", "not a network that hosts"),
            ("fe80::/64", "not a network that hosts"),
        ] {
            let told = parse(text).expect_err(text).to_string();
            assert!(told.contains(why), "{told}");
        }
    }

    #[test]
    fn what_is_recorded_is_read_and_nonsense_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let file = PodCidrFile::new(dir.path());
        assert_eq!(file.read().unwrap(), []);
        let both = parse("10.1.0.0/16,fd00::/64").unwrap();
        file.write(&both).unwrap();
        assert_eq!(file.read().unwrap(), both);
        std::fs::write(dir.path().join("pod-cidrs"), "junk").unwrap();
        assert_eq!(file.read().unwrap(), []);
    }
}
