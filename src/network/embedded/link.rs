//! Links and addresses through rtnetlink(7): the bridge, and a veth pair per pod.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::subnet::{Subnet, octets};
use crate::sys::netlink::{ACK, CREATE, DUMP, EXCL, Message, REPLACE, Reply, Socket, errno};

// linux/if_link.h and linux/veth.h, where libc has no name for them
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const IFLA_BR_MCAST_SNOOPING: u16 = 23;
const IFLA_BRPORT_MODE: u16 = 4;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
const VETH_INFO_PEER: u16 = 1;
const IFINFO: usize = 16;

/// A link of the socket's network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub mtu: u32,
    pub master: Option<u32>,
    pub alias: Option<String>,
}

/// `struct ifinfomsg`
fn ifinfo(family: u8, index: u32, flags: u32) -> [u8; IFINFO] {
    let mut bytes = [0; IFINFO];
    bytes[0] = family;
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes[8..12].copy_from_slice(&flags.to_ne_bytes());
    bytes[12..16].copy_from_slice(&flags.to_ne_bytes());
    bytes
}

fn read(reply: &Reply) -> Option<Link> {
    let index = u32::from_ne_bytes(reply.body.get(4..8)?.try_into().ok()?);
    let attributes = reply.attributes(IFINFO);
    Some(Link {
        index,
        name: attributes.text(libc::IFLA_IFNAME)?.to_owned(),
        mtu: attributes.u32(libc::IFLA_MTU).unwrap_or(1500),
        master: attributes.u32(libc::IFLA_MASTER),
        alias: attributes.text(libc::IFLA_IFALIAS).map(str::to_owned),
    })
}

/// The link called `name`, if there is one.
pub fn find(socket: &mut Socket, name: &str) -> io::Result<Option<Link>> {
    let mut message = Message::new(libc::RTM_GETLINK, 0, &ifinfo(0, 0, 0));
    message.text(libc::IFLA_IFNAME, name);
    match socket.get(message) {
        Ok(reply) => Ok(read(&reply)),
        Err(error) if errno(&error) == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether the calling thread's namespace has a link called `name`. Unlike the netlink requests this waits for nobody
/// who changes links.
pub fn exists(name: &str) -> io::Result<bool> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice::name_to_index, socket_with};
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
    match name_to_index(&socket, name) {
        Ok(_) => Ok(true),
        Err(rustix::io::Errno::NODEV) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The link with the index `index`.
pub fn by_index(socket: &mut Socket, index: u32) -> io::Result<Option<Link>> {
    Ok(read(&socket.get(Message::new(
        libc::RTM_GETLINK,
        0,
        &ifinfo(0, index, 0),
    ))?))
}

/// Every link.
pub fn list(socket: &mut Socket) -> io::Result<Vec<Link>> {
    let replies = socket.dump(&Message::new(libc::RTM_GETLINK, DUMP, &ifinfo(0, 0, 0)))?;
    Ok(replies.iter().filter_map(read).collect())
}

/// A bridge to make.
pub struct Bridge<'a> {
    pub name: &'a str,
    /// Tells whose it is.
    pub alias: &'a str,
    pub mtu: u32,
    /// Fixed: otherwise it would take the lowest of its ports' and change whenever a pod comes or goes.
    pub address: [u8; 6],
    /// Whether it has an IPv6 address of its own.
    pub ipv6: bool,
}

/// Makes a bridge, still down.
pub fn create_bridge(socket: &mut Socket, bridge: &Bridge<'_>) -> io::Result<Link> {
    let mut create = Message::new(libc::RTM_NEWLINK, ACK | CREATE | EXCL, &ifinfo(0, 0, 0));
    create
        .text(libc::IFLA_IFNAME, bridge.name)
        .u32(libc::IFLA_MTU, bridge.mtu);
    create.attr(libc::IFLA_ADDRESS, &bridge.address);
    create.nest(libc::IFLA_LINKINFO, |m| {
        m.text(IFLA_INFO_KIND, "bridge").nest(IFLA_INFO_DATA, |m| {
            m.attr(IFLA_BR_MCAST_SNOOPING, &[0]);
        });
    });
    socket.send(&mut [create])?;
    let mut name = Message::new(libc::RTM_SETLINK, ACK, &ifinfo(0, 0, 0));
    name.text(libc::IFLA_IFNAME, bridge.name)
        .text(libc::IFLA_IFALIAS, bridge.alias);
    socket.send(&mut [name])?;
    if !bridge.ipv6 {
        no_link_local(socket, bridge.name)?;
    }
    find(socket, bridge.name)?.ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Brings a link up.
pub fn up(socket: &mut Socket, index: u32) -> io::Result<()> {
    socket
        .send(&mut [Message::new(
            libc::RTM_SETLINK,
            ACK,
            &ifinfo(0, index, libc::IFF_UP as u32),
        )])
        .map(drop)
}

/// Keeps the kernel from giving the link a link-local IPv6 address, with all the packets that this brings.
pub fn no_link_local(socket: &mut Socket, name: &str) -> io::Result<()> {
    let mut message = Message::new(libc::RTM_SETLINK, ACK, &ifinfo(0, 0, 0));
    message.text(libc::IFLA_IFNAME, name);
    addr_gen_none(&mut message);
    match socket.send(&mut [message]) {
        // a kernel without IPv6
        Err(error) if errno(&error) == Some(libc::EAFNOSUPPORT) => Ok(()),
        other => other.map(drop),
    }
}

fn addr_gen_none(message: &mut Message) {
    message.nest(libc::IFLA_AF_SPEC, |m| {
        m.nest(libc::AF_INET6 as u16, |m| {
            m.attr(IFLA_INET6_ADDR_GEN_MODE, &[IN6_ADDR_GEN_MODE_NONE]);
        });
    });
}

/// The two ends of a pod's connection.
pub struct Veth<'a> {
    pub host_name: &'a str,
    pub pod_name: &'a str,
    pub pod_address: [u8; 6],
    pub pod_netns: BorrowedFd<'a>,
    pub bridge: &'a Link,
    /// Shown by `ip link` at the host's end.
    pub alias: &'a str,
}

/// Makes the pair: the pod's end, still down, directly inside the pod's namespace; the host's end up, on the bridge,
/// in hairpin mode (a pod may reach itself by way of the host) and without addresses of its own.
pub fn create_veth(socket: &mut Socket, veth: &Veth<'_>) -> io::Result<()> {
    let mut create = Message::new(
        libc::RTM_NEWLINK,
        ACK | CREATE | EXCL,
        &ifinfo(0, 0, libc::IFF_UP as u32),
    );
    create.text(libc::IFLA_IFNAME, veth.host_name);
    create
        .u32(libc::IFLA_MTU, veth.bridge.mtu)
        .u32(libc::IFLA_MASTER, veth.bridge.index);
    create.nest(libc::IFLA_LINKINFO, |m| {
        m.text(IFLA_INFO_KIND, "veth").nest(IFLA_INFO_DATA, |m| {
            m.nest(VETH_INFO_PEER, |m| {
                m.raw(&ifinfo(0, 0, 0))
                    .text(libc::IFLA_IFNAME, veth.pod_name)
                    .u32(libc::IFLA_MTU, veth.bridge.mtu);
                m.attr(libc::IFLA_ADDRESS, &veth.pod_address);
                m.attr(libc::IFLA_NET_NS_FD, &veth.pod_netns.as_raw_fd().to_ne_bytes());
            });
        });
    });
    let mut port = Message::new(libc::RTM_NEWLINK, ACK, &ifinfo(0, 0, 0));
    port.text(libc::IFLA_IFNAME, veth.host_name)
        .text(libc::IFLA_IFALIAS, veth.alias);
    hairpin(&mut port);
    socket.send(&mut [create, port])?;
    no_link_local(socket, veth.host_name)
}

fn hairpin(message: &mut Message) {
    message.nest(libc::IFLA_LINKINFO, |m| {
        m.text(IFLA_INFO_SLAVE_KIND, "bridge").nest(IFLA_INFO_SLAVE_DATA, |m| {
            m.attr(IFLA_BRPORT_MODE, &[1]);
        });
    });
}

/// Puts an existing link onto the bridge again. `false`: there is no such link.
pub fn reattach(socket: &mut Socket, name: &str, bridge: &Link) -> io::Result<bool> {
    let mut master = Message::new(libc::RTM_NEWLINK, ACK, &ifinfo(0, 0, 0));
    master
        .text(libc::IFLA_IFNAME, name)
        .u32(libc::IFLA_MASTER, bridge.index);
    let mut port = Message::new(libc::RTM_NEWLINK, ACK, &ifinfo(0, 0, 0));
    port.text(libc::IFLA_IFNAME, name);
    hairpin(&mut port);
    match socket.send(&mut [master, port]) {
        Err(error) if errno(&error) == Some(libc::ENODEV) => Ok(false),
        other => other.map(|_| true),
    }
}

/// Removes a link (a veth takes its peer with it). Fine if there is none.
pub fn remove(socket: &mut Socket, name: &str) -> io::Result<()> {
    let mut message = Message::new(libc::RTM_DELLINK, ACK, &ifinfo(0, 0, 0));
    message.text(libc::IFLA_IFNAME, name);
    match socket.send(&mut [message]) {
        Err(error) if errno(&error) == Some(libc::ENODEV) => Ok(()),
        other => other.map(drop),
    }
}

/// Takes an address from the link `index`. Fine if it does not have it.
pub fn remove_address(socket: &mut Socket, index: u32, ip: IpAddr, subnet: &Subnet) -> io::Result<()> {
    let message = address_message(libc::RTM_DELADDR, ACK, index, ip, subnet);
    match socket.send(&mut [message]) {
        Err(error) if errno(&error) == Some(libc::EADDRNOTAVAIL) => Ok(()),
        other => other.map(drop),
    }
}

/// The message that gives the link `index` an address. IPv6 without duplicate address detection: addresses here come
/// from one allocator, and a pod's should work from its first moment.
pub fn address(index: u32, ip: IpAddr, subnet: &Subnet) -> Message {
    address_message(libc::RTM_NEWADDR, ACK | CREATE | REPLACE, index, ip, subnet)
}

fn address_message(kind: u16, how: u16, index: u32, ip: IpAddr, subnet: &Subnet) -> Message {
    let (family, flags) = match ip {
        IpAddr::V4(_) => (libc::AF_INET, 0),
        IpAddr::V6(_) => (libc::AF_INET6, libc::IFA_F_NODAD as u8),
    };
    let mut fixed = vec![family as u8, subnet.prefix(), flags, libc::RT_SCOPE_UNIVERSE];
    fixed.extend_from_slice(&index.to_ne_bytes());
    let mut message = Message::new(kind, how, &fixed);
    message
        .attr(libc::IFA_LOCAL, &octets(ip))
        .attr(libc::IFA_ADDRESS, &octets(ip));
    message
}
