//! The instance's table: where packets of pods are translated.

use std::io;

use super::super::subnet::{Subnet, octets};
use super::expression::{Expressions, Header, R0};
use super::hostports::{MAPS, Map};
use super::{Batch, INET, absent_is_fine, request};
use crate::sys::netlink::{APPEND, CREATE, EXCL, Socket, errno};

const MAP_FLAG: u32 = libc::NFT_SET_MAP as u32;
// Types as nft numbers them, so that it can show the maps; a concatenation has six bits for each part.
const TYPE_IPV4: u32 = 7;
const TYPE_IPV6: u32 = 8;
const TYPE_PROTOCOL: u32 = 12;
const TYPE_SERVICE: u32 = 13;

const PREROUTING: u32 = libc::NF_INET_PRE_ROUTING as u32;
const OUTPUT: u32 = libc::NF_INET_LOCAL_OUT as u32;
const POSTROUTING: u32 = libc::NF_INET_POST_ROUTING as u32;
const RAW: i32 = -300;
const DSTNAT: i32 = -100;
const SRCNAT: i32 = 100;
const HOSTPORTS: &str = "hostports";

const V4: u8 = libc::NFPROTO_IPV4 as u8;
const V6: u8 = libc::NFPROTO_IPV6 as u8;
/// `IPS_DST_NAT` of linux/netfilter/nf_conntrack_common.h
const STATUS_DST_NAT: u32 = 1 << 5;

/// Whether the table is there.
pub fn exists(socket: &mut Socket, table: &str) -> io::Result<bool> {
    let mut message = request(INET, libc::NFT_MSG_GETTABLE, 0);
    message.text(1, table);
    match socket.get(message) {
        Ok(_) => Ok(true),
        Err(error) if errno(&error) == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes the table and all in it. Fine if there is none.
pub fn remove(socket: &mut Socket, table: &str) -> io::Result<()> {
    let mut batch = Batch::new(INET);
    batch.add(libc::NFT_MSG_DELTABLE, 0, |m| {
        m.text(1, table);
    });
    absent_is_fine(batch.commit(socket))
}

/// Makes the table for pods of `subnets` behind `bridge`, with empty maps.
pub fn create(socket: &mut Socket, table: &str, bridge: &str, subnets: &[Subnet]) -> io::Result<()> {
    let mut build = Build {
        batch: Batch::new(INET),
        table,
    };
    build.batch.add(libc::NFT_MSG_NEWTABLE, CREATE | EXCL, |m| {
        m.text(1, table);
    });
    for (id, map) in (1..).zip(&MAPS) {
        build.map(map, id);
    }
    build.chain("guard", Some(("filter", PREROUTING, RAW)));
    build.chain(HOSTPORTS, None);
    build.chain("prerouting", Some(("nat", PREROUTING, DSTNAT)));
    build.chain("output", Some(("nat", OUTPUT, DSTNAT)));
    build.chain("postrouting", Some(("nat", POSTROUTING, SRCNAT)));
    guard(&mut build, bridge);
    for chain in ["prerouting", "output"] {
        build.rule(chain, |e| {
            e.destined_here().jump(HOSTPORTS);
        });
    }
    for map in &MAPS {
        translate(&mut build, map);
    }
    for subnet in subnets {
        leave(&mut build, subnet, bridge);
        for map in MAPS.iter().filter(|map| map.v4 == subnet.is_ipv4()) {
            come_back(&mut build, map, subnet, bridge);
        }
    }
    build.rule("postrouting", |e| {
        from_loopback(e.family(V4).link(libc::NFT_META_OIFNAME, bridge, true)).masquerade();
    });
    build.batch.commit(socket)
}

/// The bridge routes 127.0.0.0/8 so that host ports answer at 127.0.0.1. No pod may use that to reach what listens on
/// the host's own loopback, or pose as it (the class of CVE-2020-8558).
fn guard(build: &mut Build<'_>, bridge: &str) {
    build.rule("guard", |e| {
        from_loopback(e.family(V4).link(libc::NFT_META_IIFNAME, bridge, true)).drop();
    });
    build.rule("guard", |e| {
        e.family(V4).link(libc::NFT_META_IIFNAME, bridge, true);
        e.payload(Header::Network, 16, 4, R0)
            .mask(R0, &[255, 0, 0, 0])
            .equals(R0, &[127, 0, 0, 0])
            .drop();
    });
}

fn from_loopback<'a, 'b>(e: &'a mut Expressions<'b>) -> &'a mut Expressions<'b> {
    e.payload(Header::Network, 12, 4, R0)
        .mask(R0, &[255, 0, 0, 0])
        .equals(R0, &[127, 0, 0, 0])
}

/// Offsets of source and destination address in the header of the family.
fn offsets(v4: bool) -> (u32, u32) {
    if v4 { (12, 16) } else { (8, 24) }
}

/// To a host port: to the pod.
fn translate(build: &mut Build<'_>, map: &Map) {
    let family = if map.v4 { V4 } else { V6 };
    let length = map.address_bytes();
    build.rule(HOSTPORTS, |e| {
        e.family(family);
        let protocol = if map.with_address {
            e.payload(Header::Network, offsets(map.v4).1, length, R0);
            R0 + length / 4
        } else {
            R0
        };
        e.meta(libc::NFT_META_L4PROTO, protocol)
            .payload(Header::Transport, 2, 2, protocol + 1);
        e.lookup(map.name, R0).dnat(family, R0, R0 + length / 4);
    });
}

/// From a pod to elsewhere: with the host's address.
fn leave(build: &mut Build<'_>, subnet: &Subnet, bridge: &str) {
    build.rule("postrouting", |e| {
        from_subnet(e, subnet);
        let length = if subnet.is_ipv4() { 4 } else { 16 };
        e.payload(Header::Network, offsets(subnet.is_ipv4()).1, length, R0);
        e.mask(R0, &subnet.mask()).differs(R0, &octets(subnet.base()));
        e.link(libc::NFT_META_OIFNAME, bridge, false).masquerade();
    });
}

fn from_subnet(e: &mut Expressions<'_>, subnet: &Subnet) {
    let (family, length) = if subnet.is_ipv4() { (V4, 4) } else { (V6, 16) };
    e.family(family)
        .payload(Header::Network, offsets(subnet.is_ipv4()).0, length, R0);
    e.mask(R0, &subnet.mask()).equals(R0, &octets(subnet.base()));
}

/// From a pod through a host port to a pod (itself, too): with the bridge's address, or the answer would go straight
/// over the bridge and nobody would translate it back. Recognised by the connection's original destination, so no
/// packet mark is used that someone else may be using.
fn come_back(build: &mut Build<'_>, map: &Map, subnet: &Subnet, bridge: &str) {
    let length = map.address_bytes();
    build.rule("postrouting", |e| {
        from_subnet(e, subnet);
        e.link(libc::NFT_META_OIFNAME, bridge, true);
        let wanted = STATUS_DST_NAT.to_ne_bytes();
        e.ct(libc::NFT_CT_STATUS as u32, R0)
            .mask(R0, &wanted)
            .equals(R0, &wanted);
        let protocol = if map.with_address {
            e.ct_original(if map.v4 { CT_DST_IP } else { CT_DST_IP6 }, R0);
            R0 + length / 4
        } else {
            R0
        };
        e.meta(libc::NFT_META_L4PROTO, protocol)
            .ct_original(libc::NFT_CT_PROTO_DST as u32, protocol + 1);
        e.known(map.name, R0).masquerade();
    });
}

const CT_DST_IP: u32 = 20;
const CT_DST_IP6: u32 = 22;

struct Build<'a> {
    batch: Batch,
    table: &'a str,
}

impl Build<'_> {
    fn map(&mut self, map: &Map, id: u32) {
        let address = if map.v4 { TYPE_IPV4 } else { TYPE_IPV6 };
        let length = map.address_bytes();
        let (mut key_type, mut key_bytes) = (TYPE_PROTOCOL << 6 | TYPE_SERVICE, 8);
        if map.with_address {
            key_type |= address << 12;
            key_bytes += length;
        }
        self.batch.add(libc::NFT_MSG_NEWSET, CREATE, |m| {
            m.text(1, self.table).text(2, map.name).be32(3, MAP_FLAG);
            m.be32(4, key_type)
                .be32(5, key_bytes)
                .be32(6, address << 6 | TYPE_SERVICE)
                .be32(7, length + 4)
                .be32(10, id);
        });
    }

    fn chain(&mut self, name: &str, hook: Option<(&str, u32, i32)>) {
        self.batch.add(libc::NFT_MSG_NEWCHAIN, CREATE, |m| {
            m.text(1, self.table).text(3, name);
            if let Some((kind, hook, priority)) = hook {
                m.nest(4, |m| {
                    m.be32(1, hook).be32(2, priority as u32);
                });
                m.text(7, kind);
            }
        });
    }

    fn rule(&mut self, chain: &str, fill: impl FnOnce(&mut Expressions<'_>)) {
        self.batch.add(libc::NFT_MSG_NEWRULE, CREATE | APPEND, |m| {
            m.text(1, self.table)
                .text(2, chain)
                .nest(4, |m| fill(&mut Expressions(m)));
        });
    }
}
