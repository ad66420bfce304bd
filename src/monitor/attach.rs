//! Who watches a container's output beside its log.
//!
//! A watcher that does not keep up gets a bounded queue, and beyond that its end: neither the application nor the log waits.

use std::os::fd::OwnedFd;

/// The most bytes that wait for one watcher.
const MAX_WAITING: usize = 1 << 20;

/// One stream of one watcher.
pub struct Watcher {
    pub number: u32,
    pub fd: OwnedFd,
    waiting: Vec<u8>,
}

impl Watcher {
    /// `fd` is a pipe or socket; it is made non-blocking.
    pub fn new(number: u32, fd: OwnedFd) -> std::io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self {
            number,
            fd,
            waiting: Vec::new(),
        })
    }

    /// Passes on `bytes`. `false`: the watcher has gone or is too slow.
    pub fn pass(&mut self, bytes: &[u8]) -> bool {
        if self.waiting.len() + bytes.len() > MAX_WAITING {
            return false;
        }
        self.waiting.extend_from_slice(bytes);
        self.flush()
    }

    /// Sends what waits. `false`: the watcher has gone.
    pub fn flush(&mut self) -> bool {
        let mut sent = 0;
        let alive = loop {
            if sent == self.waiting.len() {
                break true;
            }
            match rustix::io::write(&self.fd, &self.waiting[sent..]) {
                Ok(written) => sent += written,
                Err(rustix::io::Errno::AGAIN) => break true,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => break false,
            }
        };
        self.waiting.drain(..sent);
        if self.waiting.is_empty() {
            self.waiting = Vec::new();
        }
        alive
    }

    /// Whether something waits for the watcher to read.
    pub fn is_behind(&self) -> bool {
        !self.waiting.is_empty()
    }
}
