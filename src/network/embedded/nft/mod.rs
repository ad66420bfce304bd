//! nf_tables through nfnetlink: just enough of it to write one table.
//!
//! Attribute numbers are those of linux/netfilter/nf_tables.h. All changes of one call are one transaction: either all
//! of them are in force or none.

mod expression;
pub mod forward;
pub mod hostports;
pub mod table;

use std::io;

use crate::sys::netlink::{ACK, Message, Socket, errno};

const INET: u8 = libc::NFPROTO_INET as u8;
/// `struct nfgenmsg`
const NFGEN: usize = 4;
const LIST_ELEM: u16 = 1;
const DATA_VALUE: u16 = 1;

fn kind(message: libc::c_int) -> u16 {
    ((libc::NFNL_SUBSYS_NFTABLES as u16) << 8) | message as u16
}

fn request(family: u8, message: libc::c_int, flags: u16) -> Message {
    Message::new(kind(message), flags, &[family, 0, 0, 0])
}

/// A transaction being built, for tables of one family.
struct Batch {
    family: u8,
    messages: Vec<Message>,
}

impl Batch {
    fn new(family: u8) -> Self {
        Self {
            family,
            messages: Vec::new(),
        }
    }

    fn add(&mut self, message: libc::c_int, flags: u16, fill: impl FnOnce(&mut Message)) {
        let mut message = request(self.family, message, flags | ACK);
        fill(&mut message);
        self.messages.push(message);
    }

    fn commit(self, socket: &mut Socket) -> io::Result<()> {
        let mark = |kind: libc::c_int| {
            let subsystem = (libc::NFNL_SUBSYS_NFTABLES as u16).to_be_bytes();
            Message::new(kind as u16, 0, &[0, 0, subsystem[0], subsystem[1]])
        };
        let mut messages = vec![mark(libc::NFNL_MSG_BATCH_BEGIN)];
        messages.extend(self.messages);
        messages.push(mark(libc::NFNL_MSG_BATCH_END));
        socket.send(&mut messages).map(drop)
    }
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if errno(&error) == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

/// A comment on a rule or an element, as nft stores it: type, length, text with its NUL.
fn comment(text: &str) -> Vec<u8> {
    let mut bytes = vec![0, (text.len() + 1) as u8];
    bytes.extend_from_slice(text.as_bytes());
    bytes.push(0);
    bytes
}

/// The text of a [`comment`].
fn commented(bytes: &[u8]) -> &str {
    let text = bytes
        .get(2..)
        .and_then(|text| text.split(|b| *b == 0).next())
        .unwrap_or_default();
    std::str::from_utf8(text).unwrap_or_default()
}
