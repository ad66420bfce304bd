//! Routes through rtnetlink(7): what the host already uses, and a pod's way out.

use std::io;
use std::net::IpAddr;

use super::link;
use super::subnet::{Subnet, octets};
use crate::sys::netlink::{ACK, CREATE, DUMP, EXCL, Message, Reply, Socket};

/// `struct rtmsg`
const RTMSG: usize = 12;

/// What the host's routes say.
#[derive(Debug, Default)]
pub struct Routes {
    /// Every destination but the default ones.
    pub used: Vec<Subnet>,
    /// The smallest MTU on a default route's link, in bytes.
    pub mtu: Option<u32>,
}

/// Reads the routes of both families.
pub fn read(socket: &mut Socket) -> io::Result<Routes> {
    let mut routes = Routes::default();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut fixed = [0; RTMSG];
        fixed[0] = family as u8;
        for reply in socket.dump(&Message::new(libc::RTM_GETROUTE, DUMP, &fixed))? {
            match destination(&reply) {
                Some(subnet) if subnet.prefix() > 0 => routes.used.push(subnet),
                Some(_) => {
                    let Some(index) = reply.attributes(RTMSG).u32(libc::RTA_OIF) else {
                        continue;
                    };
                    if let Some(link) = link::by_index(socket, index)? {
                        routes.mtu = Some(routes.mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu)));
                    }
                }
                None => {}
            }
        }
    }
    Ok(routes)
}

/// Where a unicast, local or blackhole route leads; `None`: link-local, multicast and the like.
fn destination(reply: &Reply) -> Option<Subnet> {
    let [family, length, _, _, _, _, _, kind, ..] = reply.body[..] else {
        return None;
    };
    let v4 = i32::from(family) == libc::AF_INET;
    if matches!(kind, libc::RTN_MULTICAST | libc::RTN_BROADCAST | libc::RTN_ANYCAST) {
        return None;
    }
    let address = match reply.attributes(RTMSG).find(libc::RTA_DST) {
        Some(bytes) if v4 => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        Some(bytes) => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
        None if kind != libc::RTN_UNICAST => return None,
        None if v4 => IpAddr::from([0; 4]),
        None => IpAddr::from([0; 16]),
    };
    Subnet::new(address, length)
}

/// The message that sends everything else from the link `index` to `gateway`.
pub fn default_via(index: u32, gateway: IpAddr) -> Message {
    let family = if gateway.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    let mut fixed = [0; RTMSG];
    fixed[0] = family as u8;
    fixed[4] = libc::RT_TABLE_MAIN;
    fixed[5] = libc::RTPROT_STATIC;
    fixed[6] = libc::RT_SCOPE_UNIVERSE;
    fixed[7] = libc::RTN_UNICAST;
    let mut message = Message::new(libc::RTM_NEWROUTE, ACK | CREATE | EXCL, &fixed);
    message
        .attr(libc::RTA_GATEWAY, &octets(gateway))
        .u32(libc::RTA_OIF, index);
    message
}
