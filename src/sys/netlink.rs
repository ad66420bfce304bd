//! Netlink (netlink(7)): messages built and read in memory, and a socket that sends them and reads what the kernel
//! says. The kernel works a request off inside the sending call, so nothing here ever waits for long.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

/// Flags of a request (netlink(7)), as [`Message::new`] takes them; `REQUEST` is always set.
pub const ACK: u16 = libc::NLM_F_ACK as u16;
pub const DUMP: u16 = libc::NLM_F_DUMP as u16;
pub const CREATE: u16 = libc::NLM_F_CREATE as u16;
pub const EXCL: u16 = libc::NLM_F_EXCL as u16;
pub const REPLACE: u16 = libc::NLM_F_REPLACE as u16;
pub const APPEND: u16 = libc::NLM_F_APPEND as u16;

const HEADER: usize = 16;
const NESTED: u16 = libc::NLA_F_NESTED as u16;
const TYPE_MASK: u16 = !(libc::NLA_F_NESTED as u16 | libc::NLA_F_NET_BYTEORDER as u16);
const EXT_ACK_TEXT: u16 = 1;
const BUFFER_BYTES: usize = 128 << 10;
/// How often a dump that changed under the reader is begun again.
const DUMP_TRIES: usize = 8;

/// Which part of the kernel a socket speaks to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Links, addresses, routes (rtnetlink(7)).
    Route,
    /// nf_tables and connection tracking (nfnetlink).
    Netfilter,
}

/// One message being built. Lengths and padding are its own business.
#[derive(Clone, Debug)]
pub struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// A request of the type `kind` whose fixed part is `fixed`.
    pub fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | libc::NLM_F_REQUEST as u16).to_ne_bytes());
        bytes.extend_from_slice(fixed);
        pad(&mut bytes);
        Self { bytes }
    }

    /// Adds an attribute.
    pub fn attr(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let length = u16::try_from(4 + value.len()).expect("no attribute of ours comes near 64 KiB");
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        pad(&mut self.bytes);
        self
    }

    /// Adds a text attribute with its final NUL.
    pub fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attr(kind, &bytes)
    }

    /// Adds a number in the byte order of this machine (rtnetlink's habit).
    pub fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attr(kind, &value.to_ne_bytes())
    }

    /// Adds a number in network byte order (nfnetlink's habit).
    pub fn be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attr(kind, &value.to_be_bytes())
    }

    /// Adds an attribute whose content is attributes.
    pub fn nest(&mut self, kind: u16, content: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.bytes.len();
        self.attr(kind | NESTED, &[]);
        content(self);
        let length = u16::try_from(self.bytes.len() - start).expect("no attribute of ours comes near 64 KiB");
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }

    /// Adds bytes that are no attribute (a fixed part inside of a nest).
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        pad(&mut self.bytes);
        self
    }

    fn wants_ack(&self) -> bool {
        u16::from_ne_bytes([self.bytes[6], self.bytes[7]]) & ACK != 0
    }

    fn seal(&mut self, sequence: u32) {
        let length = u32::try_from(self.bytes.len()).expect("no message of ours comes near 4 GiB");
        self.bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
    }
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// A message of the kernel's: its type and what follows the header.
#[derive(Clone, Debug)]
pub struct Reply {
    pub kind: u16,
    pub body: Vec<u8>,
}

impl Reply {
    /// The attributes after a fixed part of `fixed` bytes.
    pub fn attributes(&self, fixed: usize) -> Attributes<'_> {
        Attributes(self.body.get(fixed.next_multiple_of(4)..).unwrap_or_default())
    }
}

/// Walks attributes: type (without its flags) and value. Ends at the first that is malformed.
#[derive(Clone)]
pub struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    /// The attributes that `bytes`, a nest's value, is made of.
    pub fn of(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The value of the first attribute of the type `kind`.
    pub fn find(&self, kind: u16) -> Option<&'a [u8]> {
        self.clone().find_map(|(found, value)| (found == kind).then_some(value))
    }

    /// A number in the byte order of this machine.
    pub fn u32(&self, kind: u16) -> Option<u32> {
        self.find(kind)?.try_into().ok().map(u32::from_ne_bytes)
    }

    /// Text up to its NUL.
    pub fn text(&self, kind: u16) -> Option<&'a str> {
        std::str::from_utf8(self.find(kind)?.split(|b| *b == 0).next()?).ok()
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let head = self.0.get(..4)?;
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([head[2], head[3]]) & TYPE_MASK, value))
    }
}

/// A socket in the network namespace that its maker was in.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens one; it belongs to the caller's network namespace for ever.
    pub fn open(family: Family) -> io::Result<Self> {
        let protocol = match family {
            Family::Route => SockProtocol::NetlinkRoute,
            Family::Netfilter => SockProtocol::NetlinkNetFilter,
        };
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        // Errors with the kernel's own words and without an echo of the request.
        set_option(&fd, libc::NETLINK_EXT_ACK, 1)?;
        set_option(&fd, libc::NETLINK_CAP_ACK, 1)?;
        Ok(Self {
            fd,
            sequence: 0,
            buffer: Vec::new(),
        })
    }

    /// Sends `messages` as one datagram and returns what the kernel answered other than acknowledgements.
    /// Fails with the first error of any message, or if one that asked for an acknowledgement got none.
    pub fn send(&mut self, messages: &mut [Message]) -> io::Result<Vec<Reply>> {
        let first = self.sequence.wrapping_add(1);
        let mut datagram = Vec::new();
        let mut awaited = Vec::new();
        for message in messages.iter_mut() {
            self.sequence = self.sequence.wrapping_add(1);
            message.seal(self.sequence);
            if message.wants_ack() {
                awaited.push(self.sequence);
            }
            datagram.extend_from_slice(&message.bytes);
        }
        let last = self.sequence;
        send(self.fd.as_raw_fd(), &datagram, MsgFlags::empty())?;
        let mut replies = Vec::new();
        let mut failure = None;
        while let Some(received) = self.receive(MsgFlags::MSG_DONTWAIT)? {
            for part in split(&self.buffer[..received]) {
                if part.sequence.wrapping_sub(first) > last.wrapping_sub(first) {
                    continue;
                }
                match part.kind {
                    ERROR => match part.error() {
                        None => awaited.retain(|sequence| *sequence != part.sequence),
                        Some(error) => failure = failure.or(Some(error)),
                    },
                    DONE | NOOP => {}
                    kind => replies.push(Reply {
                        kind,
                        body: part.body.to_vec(),
                    }),
                }
            }
        }
        match failure {
            Some(error) => Err(error),
            None if awaited.is_empty() => Ok(replies),
            None => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the kernel left a request unanswered",
            )),
        }
    }

    /// Sends one message and returns the first answer.
    pub fn get(&mut self, message: Message) -> io::Result<Reply> {
        let answers = self.send(&mut [message])?;
        answers.into_iter().next().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Sends a request with [`DUMP`] and collects the whole, consistent answer.
    pub fn dump(&mut self, message: &Message) -> io::Result<Vec<Reply>> {
        for _ in 0..DUMP_TRIES {
            if let Some(replies) = self.dump_once(message.clone())? {
                return Ok(replies);
            }
        }
        Err(io::Error::new(
            io::ErrorKind::Interrupted,
            "the tables kept changing while they were read",
        ))
    }

    /// `None`: the tables changed under the reader (`NLM_F_DUMP_INTR`).
    fn dump_once(&mut self, mut message: Message) -> io::Result<Option<Vec<Reply>>> {
        self.sequence = self.sequence.wrapping_add(1);
        message.seal(self.sequence);
        send(self.fd.as_raw_fd(), &message.bytes, MsgFlags::empty())?;
        let mut replies = Vec::new();
        let mut consistent = true;
        loop {
            let received = self.receive(MsgFlags::empty())?.unwrap_or(0);
            for part in split(&self.buffer[..received]) {
                if part.sequence != self.sequence {
                    continue;
                }
                consistent &= part.flags & libc::NLM_F_DUMP_INTR as u16 == 0;
                match part.kind {
                    DONE => return Ok(consistent.then_some(replies)),
                    ERROR => match part.error() {
                        Some(error) => return Err(error),
                        None => return Ok(consistent.then_some(replies)),
                    },
                    kind => replies.push(Reply {
                        kind,
                        body: part.body.to_vec(),
                    }),
                }
            }
        }
    }

    /// One datagram into the buffer; `None` if there is none (only with `MSG_DONTWAIT`).
    fn receive(&mut self, flags: MsgFlags) -> io::Result<Option<usize>> {
        self.buffer.resize(BUFFER_BYTES, 0);
        loop {
            return match recv(self.fd.as_raw_fd(), &mut self.buffer, flags | MsgFlags::MSG_TRUNC) {
                Ok(length) if length > BUFFER_BYTES => Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "an answer larger than the buffer",
                )),
                Ok(length) => Ok(Some(length)),
                Err(nix::Error::EAGAIN) => Ok(None),
                Err(nix::Error::EINTR) => continue,
                Err(error) => Err(error.into()),
            };
        }
    }
}

const NOOP: u16 = libc::NLMSG_NOOP as u16;
const ERROR: u16 = libc::NLMSG_ERROR as u16;
const DONE: u16 = libc::NLMSG_DONE as u16;

struct Part<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    body: &'a [u8],
}

impl Part<'_> {
    /// What an `NLMSG_ERROR` says; `None`: an acknowledgement.
    fn error(&self) -> Option<io::Error> {
        let number = self
            .body
            .get(..4)
            .map(|b| i32::from_ne_bytes(b.try_into().expect("four bytes")))?;
        if number == 0 {
            return None;
        }
        let error = io::Error::from_raw_os_error(-number);
        // error, the request's header (its payload is capped away), then what the kernel has to add
        let text = Attributes(self.body.get(4 + HEADER..).unwrap_or_default()).text(EXT_ACK_TEXT);
        Some(match text {
            Some(text) if self.flags & libc::NLM_F_ACK_TLVS as u16 != 0 => io::Error::new(
                error.kind(),
                Explained {
                    text: text.to_owned(),
                    source: error,
                },
            ),
            _ => error,
        })
    }
}

/// An error number with the kernel's explanation.
#[derive(Debug, thiserror::Error)]
#[error("{source}: {text}")]
struct Explained {
    text: String,
    source: io::Error,
}

/// The error number of `error`, also when the kernel explained it.
pub fn errno(error: &io::Error) -> Option<i32> {
    error
        .raw_os_error()
        .or_else(|| error.get_ref()?.downcast_ref::<Explained>()?.source.raw_os_error())
}

fn split(mut bytes: &[u8]) -> impl Iterator<Item = Part<'_>> {
    std::iter::from_fn(move || {
        let head = bytes.get(..HEADER)?;
        let length = u32::from_ne_bytes(head[0..4].try_into().expect("four bytes")) as usize;
        let body = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Part {
            kind: u16::from_ne_bytes([head[4], head[5]]),
            flags: u16::from_ne_bytes([head[6], head[7]]),
            sequence: u32::from_ne_bytes(head[8..12].try_into().expect("four bytes")),
            body,
        })
    })
}

fn set_option(fd: &OwnedFd, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: `value` lives across the call and its size is given.
    let done = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_NETLINK,
            option,
            (&raw const value).cast(),
            std::mem::size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_nest_and_come_back() {
        let mut message = Message::new(16, ACK, &[1, 2, 3]);
        message.text(3, "lo").nest(18, |m| {
            m.u32(1, 7).be32(2, 7);
        });
        message.seal(9);
        let part = split(&message.bytes).next().unwrap();
        assert_eq!((part.kind, part.sequence), (16, 9));
        let reply = Reply {
            kind: part.kind,
            body: part.body.to_vec(),
        };
        let attributes = reply.attributes(3);
        assert_eq!(attributes.text(3), Some("lo"));
        let nested = Attributes::of(attributes.find(18).unwrap());
        assert_eq!(nested.u32(1), Some(7));
        assert_eq!(nested.find(2), Some(&[0, 0, 0, 7][..]));
    }

    #[test]
    fn what_is_malformed_ends_the_walk() {
        assert_eq!(Attributes::of(&[0, 0, 1, 0]).count(), 0);
        assert_eq!(Attributes::of(&[3, 0, 1, 0, 9, 9, 9, 9]).count(), 0);
        assert_eq!(Attributes::of(&[9, 0, 1, 0, 9]).count(), 0);
        assert!(split(&[255; 12]).next().is_none());
    }

    #[test]
    fn the_kernel_knows_loopback_and_explains_errors() {
        let mut socket = Socket::open(Family::Route).unwrap();
        let mut get = Message::new(libc::RTM_GETLINK, 0, &[0; 16]);
        get.text(libc::IFLA_IFNAME, "lo");
        assert_eq!(
            socket.get(get).unwrap().attributes(16).text(libc::IFLA_IFNAME),
            Some("lo")
        );
        let links = socket.dump(&Message::new(libc::RTM_GETLINK, DUMP, &[0; 16])).unwrap();
        assert!(!links.is_empty());
        let mut get = Message::new(libc::RTM_GETLINK, 0, &[0; 16]);
        get.text(libc::IFLA_IFNAME, "no-such-link");
        assert_eq!(errno(&socket.get(get).unwrap_err()), Some(libc::ENODEV));
    }
}
