//! The daemon as the monitor sees it: one connection at a time, the latest.
//!
//! A daemon that does not read must not stop the logs: what waits for it is bounded, and beyond that it loses the
//! connection. It loses nothing by that: the next one starts with a snapshot.

use std::io;
use std::os::fd::OwnedFd;

use rustix::event::epoll::{self, EventData, EventFlags};

use super::frame::{Incoming, Outgoing};
use super::protocol::{Answer, FromMonitor, Reply, Saying};

/// The most bytes that wait for a daemon that does not read.
const MAX_WAITING: usize = 4 << 20;

/// Whom to answer.
#[derive(Clone, Copy)]
pub struct ReplyTo {
    connection: u32,
    request: u64,
}

pub struct Connection {
    pub number: u32,
    pub socket: OwnedFd,
    pub incoming: Incoming,
    pub greeted: bool,
    outgoing: Outgoing,
    wants_write: bool,
}

impl Connection {
    pub fn new(number: u32, socket: OwnedFd) -> Self {
        Self {
            number,
            socket,
            incoming: Incoming::default(),
            greeted: false,
            outgoing: Outgoing::default(),
            wants_write: false,
        }
    }

    /// Where the answer to `request` goes.
    pub fn reply_to(&self, request: u64) -> ReplyTo {
        ReplyTo {
            connection: self.number,
            request,
        }
    }

    /// Sends `saying`, now or when the daemon reads. An error means that the connection is of no more use.
    pub fn say(&mut self, epoll: &OwnedFd, token: u64, saying: Saying, fds: Vec<OwnedFd>) -> io::Result<()> {
        self.outgoing.push(&FromMonitor { saying: Some(saying) }, fds)?;
        self.flush(epoll, token)
    }

    /// Sends what waits.
    pub fn flush(&mut self, epoll: &OwnedFd, token: u64) -> io::Result<()> {
        let wants_write = match self.outgoing.flush(&self.socket) {
            Ok(()) => false,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => true,
            Err(e) => return Err(e),
        };
        if self.outgoing.waiting() > MAX_WAITING {
            return Err(io::Error::other("the daemon does not read"));
        }
        if wants_write != self.wants_write {
            self.wants_write = wants_write;
            let flags = if wants_write {
                EventFlags::IN | EventFlags::OUT
            } else {
                EventFlags::IN
            };
            epoll::modify(epoll, &self.socket, EventData::new_u64(token), flags)?;
        }
        Ok(())
    }
}

impl ReplyTo {
    /// The reply, if it is for `connection`: who asked on an earlier one has gone.
    pub fn reply(self, connection: &Connection, answer: Answer) -> Option<Saying> {
        (self.connection == connection.number).then_some(Saying::Reply(Reply {
            id: self.request,
            answer: Some(answer),
        }))
    }
}
