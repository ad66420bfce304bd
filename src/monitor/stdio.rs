//! A container's output: from its pipes, or its terminal, to its log and its watchers.

use std::io;
use std::os::fd::OwnedFd;

use rustix::event::epoll::{self, EventData, EventFlags};

use super::attach::Watcher;
use super::log::{Lines, Log};
use super::server::Token;

/// How much is read at once, in bytes: what a pipe holds.
const CHUNK: usize = 64 << 10;

/// How often a stream is read when its container has exited: enough for what its pipe held, no end for a writer that goes on.
const LAST_READS: usize = 4;

/// Buffers that all containers share; they have memory only while there is output.
#[derive(Default)]
pub struct Scratch {
    chunk: Vec<u8>,
    batch: Vec<u8>,
}

impl Scratch {
    /// Gives the memory back.
    pub fn release(&mut self) {
        *self = Self::default();
    }
}

struct Stream {
    fd: OwnedFd,
    lines: Lines,
    watchers: Vec<Watcher>,
}

/// Everything a container writes.
pub struct Output {
    pub log: Log,
    key: u32,
    streams: [Option<Stream>; 2],
}

/// The streams by number, as in [`Token::Stream`].
pub const STDOUT: usize = 0;
pub const STDERR: usize = 1;

enum Read {
    Some,
    Nothing,
    End,
}

impl Output {
    /// Of the container `key`. Nothing is read before [`Output::listen`].
    pub fn new(key: u32, log: Log, stdout: Option<OwnedFd>, stderr: Option<OwnedFd>) -> Self {
        let stream = |name, fd: Option<OwnedFd>| {
            fd.map(|fd| Stream {
                fd,
                lines: Lines::new(name),
                watchers: Vec::new(),
            })
        };
        Self {
            log,
            key,
            streams: [stream("stdout", stdout), stream("stderr", stderr)],
        }
    }

    /// Has `epoll` report output.
    pub fn listen(&self, epoll: &OwnedFd) -> io::Result<()> {
        for (number, stream) in self.streams.iter().enumerate() {
            if let Some(stream) = stream {
                rustix::io::ioctl_fionbio(&stream.fd, true)?;
                let token = Token::Stream {
                    key: self.key,
                    stream: number,
                }
                .encode();
                epoll::add(epoll, &stream.fd, EventData::new_u64(token), EventFlags::IN)?;
            }
        }
        Ok(())
    }

    /// Moves on what stream `number` has.
    pub fn pump(&mut self, number: usize, epoll: &OwnedFd, scratch: &mut Scratch) {
        self.read(number, epoll, scratch);
    }

    /// Moves on what there is when the container's first process has exited, so that its log is complete when its exit is
    /// known. Streams that others still hold stay open.
    pub fn drain(&mut self, epoll: &OwnedFd, scratch: &mut Scratch) {
        for number in [STDOUT, STDERR] {
            for _ in 0..LAST_READS {
                if !matches!(self.read(number, epoll, scratch), Read::Some) {
                    break;
                }
            }
        }
    }

    fn read(&mut self, number: usize, epoll: &OwnedFd, scratch: &mut Scratch) -> Read {
        let Some(stream) = &mut self.streams[number] else {
            return Read::End;
        };
        scratch.chunk.resize(CHUNK, 0);
        match rustix::io::read(&stream.fd, &mut scratch.chunk[..]) {
            Ok(length @ 1..) => {
                let bytes = &scratch.chunk[..length];
                stream.lines.feed(&mut self.log, bytes, &mut scratch.batch);
                stream.watchers.retain_mut(|watcher| watcher.pass(bytes));
                for watcher in stream.watchers.iter().filter(|watcher| watcher.is_behind()) {
                    let token = Token::Watcher {
                        key: self.key,
                        number: watcher.number,
                    }
                    .encode();
                    let flags = EventFlags::OUT | EventFlags::ONESHOT;
                    // A file that epoll does not take is always ready, so it is never behind.
                    let _ = epoll::modify(epoll, &watcher.fd, EventData::new_u64(token), flags);
                }
                Read::Some
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Read::Nothing,
            // The end; of a terminal that is EIO, once nobody has it open.
            Ok(_) | Err(_) => {
                stream.lines.end(&mut self.log, &mut scratch.batch);
                self.streams[number] = None;
                Read::End
            }
        }
    }

    /// Copies stream `number` to `fd` from here on. `watcher` tells it from others of this container.
    pub fn watch(&mut self, number: usize, fd: OwnedFd, watcher: u32, epoll: &OwnedFd) -> io::Result<()> {
        // The stream has ended: so has what its watcher will see.
        let Some(stream) = &mut self.streams[number] else {
            return Ok(());
        };
        let watcher = Watcher::new(watcher, fd)?;
        let token = Token::Watcher {
            key: self.key,
            number: watcher.number,
        }
        .encode();
        epoll::add(epoll, &watcher.fd, EventData::new_u64(token), EventFlags::ONESHOT)?;
        stream.watchers.push(watcher);
        Ok(())
    }

    /// The watcher `number` can take more, or has gone.
    pub fn watcher_ready(&mut self, number: u32, epoll: &OwnedFd) {
        for stream in self.streams.iter_mut().flatten() {
            stream
                .watchers
                .retain_mut(|watcher| watcher.number != number || watcher.flush());
            for watcher in stream.watchers.iter().filter(|watcher| watcher.number == number) {
                let out = if watcher.is_behind() {
                    EventFlags::OUT
                } else {
                    EventFlags::empty()
                };
                let token = Token::Watcher { key: self.key, number }.encode();
                let _ = epoll::modify(epoll, &watcher.fd, EventData::new_u64(token), out | EventFlags::ONESHOT);
            }
        }
    }
}
