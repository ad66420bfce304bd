//! nf_tables through nfnetlink: just enough of it to write one table.
//!
//! Attribute numbers are those of linux/netfilter/nf_tables.h. All changes of one call are one transaction: either all
//! of them are in force or none.

mod expression;
pub mod hostports;
pub mod table;

use std::io;

use crate::sys::netlink::{ACK, Message, Socket, errno};

pub(super) const NFPROTO_INET: u8 = libc::NFPROTO_INET as u8;

/// `struct nfgenmsg`
const NFGEN: usize = 4;
const LIST_ELEM: u16 = 1;
const DATA_VALUE: u16 = 1;

fn kind(message: libc::c_int) -> u16 {
    ((libc::NFNL_SUBSYS_NFTABLES as u16) << 8) | message as u16
}

fn request(message: libc::c_int, flags: u16) -> Message {
    Message::new(kind(message), flags, &[NFPROTO_INET, 0, 0, 0])
}

/// A transaction being built.
#[derive(Default)]
struct Batch(Vec<Message>);

impl Batch {
    fn add(&mut self, message: libc::c_int, flags: u16, fill: impl FnOnce(&mut Message)) {
        let mut message = request(message, flags | ACK);
        fill(&mut message);
        self.0.push(message);
    }

    fn commit(self, socket: &mut Socket) -> io::Result<()> {
        let mark = |kind: libc::c_int| {
            let subsystem = (libc::NFNL_SUBSYS_NFTABLES as u16).to_be_bytes();
            Message::new(kind as u16, 0, &[0, 0, subsystem[0], subsystem[1]])
        };
        let mut messages = vec![mark(libc::NFNL_MSG_BATCH_BEGIN)];
        messages.extend(self.0);
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
