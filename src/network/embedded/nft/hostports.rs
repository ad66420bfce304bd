//! Host ports are entries of maps, (protocol, port) or (address, protocol, port) to (pod address, pod port): one look-up
//! per new connection however many there are. Each entry carries its sandbox's id as its comment.

use std::io;
use std::net::IpAddr;

use super::super::subnet::octets;
use super::{Batch, DATA_VALUE, INET, LIST_ELEM, NFGEN, absent_is_fine, comment, commented, request};
use crate::model::SandboxId;
use crate::network::PortMapping;
use crate::sys::netlink::{Attributes, CREATE, DUMP, EXCL, Message, Reply, Socket, errno};

const ELEM_KEY: u16 = 1;
const ELEM_DATA: u16 = 2;
const ELEM_USERDATA: u16 = 6;

/// The maps, by family and by whether the host's address matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Map {
    pub name: &'static str,
    pub v4: bool,
    pub with_address: bool,
}

pub const MAPS: [Map; 4] = [
    Map {
        name: "ports4",
        v4: true,
        with_address: false,
    },
    Map {
        name: "ports4_at",
        v4: true,
        with_address: true,
    },
    Map {
        name: "ports6",
        v4: false,
        with_address: false,
    },
    Map {
        name: "ports6_at",
        v4: false,
        with_address: true,
    },
];

impl Map {
    /// Bytes of an address of the map's family.
    pub fn address_bytes(&self) -> u32 {
        if self.v4 { 4 } else { 16 }
    }
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub map: &'static str,
    pub sandbox_id: String,
    key: Vec<u8>,
    data: Vec<u8>,
}

impl Entry {
    /// The entry that leads `port` to the pod's address `ip`; `None` if the mapping is for the other family only.
    pub fn new(sandbox_id: &SandboxId, ip: IpAddr, port: &PortMapping) -> Option<Self> {
        let address = match port.host_ip {
            Some(host) if host.is_ipv4() != ip.is_ipv4() => return None,
            Some(host) if !host.is_unspecified() => Some(host),
            _ => None,
        };
        let map = MAPS
            .iter()
            .find(|map| map.v4 == ip.is_ipv4() && map.with_address == address.is_some())?;
        let mut key = address.map(octets).unwrap_or_default();
        key.extend_from_slice(&[port.protocol.number(), 0, 0, 0]);
        key.extend_from_slice(&padded(port.host_port));
        let mut data = octets(ip);
        data.extend_from_slice(&padded(port.container_port));
        Some(Self {
            map: map.name,
            sandbox_id: sandbox_id.as_str().to_owned(),
            key,
            data,
        })
    }

    fn write(&self, message: &mut Message, with_data: bool) {
        message.nest(LIST_ELEM, |m| {
            m.nest(ELEM_KEY, |m| {
                m.attr(DATA_VALUE, &self.key);
            });
            if with_data {
                m.nest(ELEM_DATA, |m| {
                    m.attr(DATA_VALUE, &self.data);
                });
                m.attr(ELEM_USERDATA, &comment(&self.sandbox_id));
            }
        });
    }
}

/// A port as a register holds it: four bytes, the first two in network order.
fn padded(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}

/// Adds the entries, all or none. `AlreadyExists` if a key is taken.
pub fn insert(socket: &mut Socket, table: &str, entries: &[Entry]) -> io::Result<()> {
    change(socket, table, entries, libc::NFT_MSG_NEWSETELEM, CREATE | EXCL)
}

/// Removes every entry of which `doomed` says so by its sandbox id. Fine if the table is gone.
pub fn remove(socket: &mut Socket, table: &str, doomed: impl Fn(&str) -> bool) -> io::Result<()> {
    let mut entries = list(socket, table)?;
    entries.retain(|entry| doomed(&entry.sandbox_id));
    absent_is_fine(change(socket, table, &entries, libc::NFT_MSG_DELSETELEM, 0))
}

fn change(socket: &mut Socket, table: &str, entries: &[Entry], message: libc::c_int, flags: u16) -> io::Result<()> {
    let mut batch = Batch::new(INET);
    for entry in entries {
        batch.add(message, flags, |m| {
            m.text(1, table)
                .text(2, entry.map)
                .nest(3, |m| entry.write(m, message == libc::NFT_MSG_NEWSETELEM));
        });
    }
    if entries.is_empty() {
        Ok(())
    } else {
        batch.commit(socket)
    }
}

/// Every entry of every map; none if the table is gone.
pub fn list(socket: &mut Socket, table: &str) -> io::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for map in &MAPS {
        let mut message = request(INET, libc::NFT_MSG_GETSETELEM, DUMP);
        message.text(1, table).text(2, map.name);
        match socket.dump(&message) {
            Ok(replies) => replies.iter().for_each(|reply| read(map.name, reply, &mut entries)),
            Err(error) if errno(&error) == Some(libc::ENOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(entries)
}

fn read(map: &'static str, reply: &Reply, entries: &mut Vec<Entry>) {
    let Some(list) = reply.attributes(NFGEN).find(3) else {
        return;
    };
    for (_, element) in Attributes::of(list) {
        let element = Attributes::of(element);
        let value = |kind| Attributes::of(element.find(kind)?).find(DATA_VALUE).map(<[u8]>::to_vec);
        let sandbox_id = commented(element.find(ELEM_USERDATA).unwrap_or_default());
        entries.push(Entry {
            map,
            sandbox_id: sandbox_id.to_owned(),
            key: value(ELEM_KEY).unwrap_or_default(),
            data: value(ELEM_DATA).unwrap_or_default(),
        });
    }
}
