//! Arithmetic on IP networks.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An IP network; bits below the prefix are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Subnet {
    base: IpAddr,
    prefix: u8,
}

impl Subnet {
    /// The network of `address`; `None` if the prefix is longer than the address.
    pub fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        let bits = bits_of(address);
        let mask = mask_of(bits, prefix)?;
        Some(Self {
            base: from_number(address.is_ipv4(), to_number(address) & mask),
            prefix,
        })
    }

    /// The address with all host bits zero.
    pub fn base(&self) -> IpAddr {
        self.base
    }

    /// Bits of the prefix.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether it is IPv4.
    pub fn is_ipv4(&self) -> bool {
        self.base.is_ipv4()
    }

    /// The mask's bytes.
    pub fn mask(&self) -> Vec<u8> {
        let mask = mask_of(bits_of(self.base), self.prefix).expect("checked when it was made");
        octets(from_number(self.is_ipv4(), mask))
    }

    /// Whether both have an address in common.
    pub fn overlaps(&self, other: &Self) -> bool {
        let (wide, narrow) = if self.prefix <= other.prefix {
            (self, other)
        } else {
            (other, self)
        };
        Self::new(narrow.base, wide.prefix).is_some_and(|cut| cut == *wide)
    }

    /// Whether `address` is inside.
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.is_ipv4() && Self::new(address, self.prefix) == Some(*self)
    }

    /// The `n`th address (0 is [`Self::base`]); `None` beyond the end.
    pub fn nth(&self, n: u128) -> Option<IpAddr> {
        (n < self.size()).then(|| from_number(self.is_ipv4(), to_number(self.base) + n))
    }

    /// Where `address` is in it.
    pub fn position(&self, address: IpAddr) -> Option<u128> {
        self.contains(address)
            .then(|| to_number(address) - to_number(self.base))
    }

    /// How many addresses it has (a /0 of IPv6 counts one too few).
    pub fn size(&self) -> u128 {
        1u128
            .checked_shl(u32::from(bits_of(self.base) - self.prefix))
            .unwrap_or(u128::MAX)
    }

    /// The address that the bridge takes: the first after the base.
    pub fn gateway(&self) -> IpAddr {
        self.nth(1).expect("a pod network has more than one address")
    }

    /// Positions that pods may have: past the gateway, before an IPv4 broadcast address.
    pub fn pods(&self) -> std::ops::Range<u128> {
        2..if self.is_ipv4() { self.size() - 1 } else { self.size() }
    }
}

/// The bytes of an address, as the network orders them.
pub fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn bits_of(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn mask_of(bits: u8, prefix: u8) -> Option<u128> {
    let host = bits.checked_sub(prefix)?;
    let all = if bits == 32 { u128::from(u32::MAX) } else { u128::MAX };
    Some(all & u128::MAX.checked_shl(u32::from(host)).unwrap_or(0))
}

fn to_number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(ip) => u32::from(ip).into(),
        IpAddr::V6(ip) => ip.into(),
    }
}

fn from_number(v4: bool, number: u128) -> IpAddr {
    if v4 {
        Ipv4Addr::from(number as u32).into()
    } else {
        Ipv6Addr::from(number).into()
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

/// Text that is no `address/prefix`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an IP network in the form address/prefix")]
pub struct NoSubnet(String);

impl FromStr for Subnet {
    type Err = NoSubnet;

    fn from_str(text: &str) -> Result<Self, NoSubnet> {
        text.split_once('/')
            .and_then(|(address, prefix)| Self::new(address.parse().ok()?, prefix.parse().ok()?))
            .ok_or_else(|| NoSubnet(text.to_owned()))
    }
}

impl TryFrom<String> for Subnet {
    type Error = NoSubnet;

    fn try_from(text: String) -> Result<Self, NoSubnet> {
        text.parse()
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> Self {
        subnet.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str) -> Subnet {
        text.parse().unwrap()
    }

    #[test]
    fn arithmetic_of_both_families() {
        let v4 = subnet("10.88.7.9/16");
        assert_eq!(v4.to_string(), "10.88.0.0/16");
        assert_eq!(v4.gateway().to_string(), "10.88.0.1");
        assert_eq!(v4.pods(), 2..65535);
        assert_eq!(v4.mask(), [255, 255, 0, 0]);
        assert_eq!(v4.nth(65535).unwrap().to_string(), "10.88.255.255");
        assert_eq!(v4.nth(65536), None);
        assert_eq!(v4.position("10.88.1.0".parse().unwrap()), Some(256));
        assert_eq!(v4.position("10.89.1.0".parse().unwrap()), None);
        let v6 = subnet("fd00:1::5/64");
        assert_eq!(v6.gateway().to_string(), "fd00:1::1");
        assert_eq!(v6.mask()[7..9], [255, 0]);
        assert_eq!(subnet("::/0").mask(), [0; 16]);
        assert_eq!(subnet("0.0.0.0/0").size(), 1 << 32);
    }

    #[test]
    fn overlap_is_symmetric_and_within_a_family() {
        for (a, b, expected) in [
            ("10.0.0.0/8", "10.88.0.0/16", true),
            ("10.88.0.0/16", "10.88.1.1/32", true),
            ("10.88.0.0/16", "10.89.0.0/16", false),
            ("0.0.0.0/0", "fd00::/64", false),
        ] {
            assert_eq!(subnet(a).overlaps(&subnet(b)), expected, "{a} {b}");
            assert_eq!(subnet(b).overlaps(&subnet(a)), expected, "{b} {a}");
        }
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for text in ["", "10.0.0.0", "10.0.0.0/33", "::/129", "x/8", "10.0.0.0/-1"] {
            assert!(text.parse::<Subnet>().is_err(), "{text}");
        }
    }
}
