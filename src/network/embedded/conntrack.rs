//! Connection tracking through ctnetlink. UDP has no beginning that the kernel could see: a client that keeps sending
//! from one port would stick to where its first packet went, long after that pod is gone or another has come.

use std::io;
use std::net::IpAddr;

use super::subnet::octets;
use crate::sys::netlink::{ACK, Attributes, DUMP, Message, Reply, Socket, errno};

const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ZONE: u16 = 18;
const UDP: u8 = 17;
const GET: u16 = 1;
const DELETE: u16 = 2;
const NFGEN: usize = 4;

fn request(message: u16, flags: u16, family: u8) -> Message {
    Message::new(
        ((libc::NFNL_SUBSYS_CTNETLINK as u16) << 8) | message,
        flags,
        &[family, 0, 0, 0],
    )
}

/// One direction of a connection.
struct Tuple<'a> {
    source: &'a [u8],
    destination: &'a [u8],
    protocol: u8,
    destination_port: u16,
}

fn tuple(bytes: &[u8]) -> Option<Tuple<'_>> {
    let parts = Attributes::of(bytes);
    let ip = Attributes::of(parts.find(1)?);
    let protocol = Attributes::of(parts.find(2)?);
    Some(Tuple {
        source: ip.find(1).or_else(|| ip.find(3))?,
        destination: ip.find(2).or_else(|| ip.find(4))?,
        protocol: *protocol.find(1)?.first()?,
        destination_port: u16::from_be_bytes(protocol.find(3)?.try_into().ok()?),
    })
}

/// Forgets UDP connections that a host port leads, or led, to one of `pods`.
pub fn forget_translated(socket: &mut Socket, pods: &[IpAddr]) -> io::Result<()> {
    let pods: Vec<Vec<u8>> = pods.iter().map(|ip| octets(*ip)).collect();
    forget(socket, |original, reply| {
        original.destination != reply.source && pods.iter().any(|pod| pod == reply.source)
    })
}

/// Forgets UDP connections to `ports` that are not translated at all: they began before the host port was there.
pub fn forget_untranslated(socket: &mut Socket, ports: &[u16]) -> io::Result<()> {
    forget(socket, |original, reply| {
        ports.contains(&original.destination_port)
            && original.destination == reply.source
            && original.source == reply.destination
    })
}

fn forget(socket: &mut Socket, doomed: impl Fn(&Tuple<'_>, &Tuple<'_>) -> bool) -> io::Result<()> {
    for entry in socket.dump(&request(GET, DUMP, libc::AF_UNSPEC as u8))? {
        let Some(delete) = deletion(&entry, &doomed) else {
            continue;
        };
        match socket.send(&mut [delete]) {
            Err(error) if errno(&error) != Some(libc::ENOENT) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn deletion(entry: &Reply, doomed: impl Fn(&Tuple<'_>, &Tuple<'_>) -> bool) -> Option<Message> {
    let attributes = entry.attributes(NFGEN);
    let original = attributes.find(TUPLE_ORIG)?;
    let (ours, theirs) = (tuple(original)?, tuple(attributes.find(TUPLE_REPLY)?)?);
    if ours.protocol != UDP || !doomed(&ours, &theirs) {
        return None;
    }
    let mut message = request(DELETE, ACK, *entry.body.first()?);
    message.attr(TUPLE_ORIG | libc::NLA_F_NESTED as u16, original);
    if let Some(zone) = attributes.find(ZONE) {
        message.attr(ZONE, zone);
    }
    Some(message)
}
