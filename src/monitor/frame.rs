//! Frames: a length (u32, little-endian) and a message of that many bytes. Descriptors ride with the length's bytes.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::sys::scm;

/// The longest message, in bytes.
pub const MAX_MESSAGE: usize = 16 << 20;

/// The most descriptors with one message: as many as the four bytes of its length can bring.
pub const MAX_DESCRIPTORS: usize = 4 * scm::MAX_FDS;

/// How much room is made for a message before any of it has come.
const FIRST_RESERVE: usize = 64 << 10;

/// A message that came, and its descriptors.
pub type Received = (Vec<u8>, Vec<OwnedFd>);

/// Frames as they come in, piece by piece.
#[derive(Default)]
pub struct Incoming {
    length: [u8; 4],
    length_read: usize,
    message: Vec<u8>,
    read: usize,
    fds: Vec<OwnedFd>,
}

impl Incoming {
    /// Reads on. `WouldBlock` when there is nothing more at present, `UnexpectedEof` when the peer is gone.
    pub fn advance(&mut self, socket: impl AsFd) -> io::Result<Received> {
        while self.length_read < 4 {
            let got = scm::receive(&socket, &mut self.length[self.length_read..], &mut self.fds, false)?;
            if got == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.length_read += got;
        }
        let length = u32::from_le_bytes(self.length) as usize;
        if length > MAX_MESSAGE || self.fds.len() > MAX_DESCRIPTORS {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a message of {length} bytes"),
            ));
        }
        while self.read < length {
            if self.read == self.message.len() {
                self.message.resize(length.min(self.read + FIRST_RESERVE), 0);
            }
            let got = scm::receive(&socket, &mut self.message[self.read..], &mut self.fds, false)?;
            if got == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.read += got;
        }
        self.length_read = 0;
        self.read = 0;
        Ok((std::mem::take(&mut self.message), std::mem::take(&mut self.fds)))
    }
}

struct Piece {
    bytes: Vec<u8>,
    sent: usize,
    fds: VecDeque<OwnedFd>,
}

/// Frames that wait to go out.
#[derive(Default)]
pub struct Outgoing {
    pieces: VecDeque<Piece>,
    waiting: usize,
}

impl Outgoing {
    /// Queues `message` with `fds`, which close once they are sent.
    pub fn push(&mut self, message: &impl prost::Message, fds: Vec<OwnedFd>) -> io::Result<()> {
        let length = message.encoded_len();
        if length > MAX_MESSAGE || fds.len() > MAX_DESCRIPTORS {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("a message of {length} bytes with {} descriptors", fds.len()),
            ));
        }
        let mut bytes = Vec::with_capacity(4 + length);
        bytes.extend_from_slice(&(length as u32).to_le_bytes());
        message.encode_raw(&mut bytes);
        self.waiting += bytes.len();
        self.pieces.push_back(Piece {
            bytes,
            sent: 0,
            fds: fds.into(),
        });
        Ok(())
    }

    /// Sends what goes without blocking; `WouldBlock` if something is left.
    pub fn flush(&mut self, socket: impl AsFd) -> io::Result<()> {
        while let Some(piece) = self.pieces.front_mut() {
            let rest = &piece.bytes[piece.sent..];
            let batch = piece.fds.len().min(scm::MAX_FDS);
            // Each byte of the length can bring one batch.
            let end = if piece.fds.len() > batch { 1 } else { rest.len() };
            let fds: Vec<BorrowedFd<'_>> = piece.fds.iter().take(batch).map(|fd| fd.as_fd()).collect();
            let sent = scm::send(&socket, &rest[..end], &fds)?;
            drop(fds);
            piece.fds.drain(..batch);
            piece.sent += sent;
            self.waiting -= sent;
            if piece.sent == piece.bytes.len() {
                self.pieces.pop_front();
            }
        }
        Ok(())
    }

    /// How many bytes wait.
    pub fn waiting(&self) -> usize {
        self.waiting
    }
}

#[cfg(test)]
mod tests {
    use super::{Incoming, Outgoing};
    use crate::monitor::protocol::{Failure, Hello};
    use prost::Message;
    use std::os::unix::net::UnixStream;

    #[test]
    fn more_descriptors_than_one_message_can_bring_arrive_with_theirs() {
        let (here, there) = UnixStream::pair().unwrap();
        let fds = (0..600)
            .map(|_| std::fs::File::open("/dev/null").unwrap().into())
            .collect();
        let mut out = Outgoing::default();
        out.push(&Hello { version: 7 }, fds).unwrap();
        out.push(&Hello { version: 8 }, Vec::new()).unwrap();
        out.flush(&here).unwrap();
        let mut incoming = Incoming::default();
        let (message, fds) = incoming.advance(&there).unwrap();
        assert_eq!((Hello::decode(&*message).unwrap().version, fds.len()), (7, 600));
        let (message, fds) = incoming.advance(&there).unwrap();
        assert_eq!((Hello::decode(&*message).unwrap().version, fds.len()), (8, 0));
    }

    #[test]
    fn a_message_larger_than_the_sockets_buffer_comes_in_pieces() {
        let (here, there) = UnixStream::pair().unwrap();
        let large = Failure {
            kind: 0,
            message: "x".repeat(3 << 20),
        };
        let mut out = Outgoing::default();
        out.push(&large, Vec::new()).unwrap();
        let mut incoming = Incoming::default();
        let message = loop {
            let _ = out.flush(&here);
            match incoming.advance(&there) {
                Ok((message, _)) => break message,
                Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::WouldBlock),
            }
        };
        assert_eq!(Failure::decode(&*message).unwrap(), large);
    }

    #[test]
    fn a_length_beyond_the_cap_is_refused() {
        use std::io::Write;
        let (mut here, there) = UnixStream::pair().unwrap();
        here.write_all(&u32::MAX.to_le_bytes()).unwrap();
        assert_eq!(
            Incoming::default().advance(&there).unwrap_err().kind(),
            std::io::ErrorKind::InvalidData
        );
    }
}
