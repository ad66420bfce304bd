//! One connection: a task that reads frames and feeds the streams, and one that writes what is queued.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::SpdyError;
use super::frame::{self, Control, HEAD, Head};
use super::headers::{Headers, Packer, Unpacker};
use crate::streaming::channel::{CHUNK, Ending, Feed, Link, Outbox, Outgoing, Reader, Writer, inbound};

/// The most streams that are open at a time.
const MAX_STREAMS: usize = 2048;

/// A connection with a client that opens streams.
pub struct Session {
    pub link: Link,
    /// Streams as the client opens them, to be accepted or refused; the end of the connection ends it.
    pub streams: mpsc::Receiver<Stream>,
}

/// A stream that the client asks for.
pub struct Stream {
    pub id: u32,
    pub headers: Headers,
    pub reader: Reader,
    pub writer: Writer,
}

/// Serves SPDY on `io`, which ends when nothing moves on it for `idle`.
pub fn start<T: AsyncRead + AsyncWrite + Send + 'static>(io: T, idle: Duration) -> Session {
    let (read, write) = tokio::io::split(io);
    let (link, outbox) = Link::new(idle);
    let open = Arc::new(Open::default());
    let (offer, streams) = mpsc::channel(16);
    let reading = Reading {
        link: link.clone(),
        open: open.clone(),
        offer,
        last: 0,
        unpacker: Unpacker::default(),
    };
    tokio::spawn(reading.run(read));
    tokio::spawn(write_all(write, outbox, open));
    Session { link, streams }
}

/// The streams that are open.
#[derive(Default)]
struct Open(Mutex<HashMap<u32, Ends>>);

struct Ends {
    /// None: the client sends no more.
    feed: Option<Feed>,
    /// We send no more.
    sent: bool,
    gone: CancellationToken,
}

impl Open {
    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Ends>> {
        self.0.lock().expect("no panic holds it")
    }

    fn feed(&self, stream: u32) -> Option<Feed> {
        self.lock().get(&stream)?.feed.clone()
    }

    /// The client sends no more on `stream`.
    fn end(&self, stream: u32) {
        let mut streams = self.lock();
        let Some(ends) = streams.get_mut(&stream) else { return };
        if let Some(feed) = ends.feed.take() {
            feed.end();
        }
        if ends.sent {
            streams.remove(&stream);
        }
    }

    /// We send no more on `stream`. False if that is so already.
    fn sent(&self, stream: u32) -> bool {
        let mut streams = self.lock();
        let Some(ends) = streams.get_mut(&stream) else {
            return false;
        };
        if std::mem::replace(&mut ends.sent, true) {
            return false;
        }
        if ends.feed.is_none() {
            streams.remove(&stream);
        }
        true
    }

    /// Neither side sends any more on `stream`. False if nobody did.
    fn reset(&self, stream: u32) -> bool {
        let removed = self.lock().remove(&stream);
        if let Some(ends) = &removed {
            ends.gone.cancel();
        }
        removed.is_some()
    }

    fn can_send(&self, stream: u32) -> bool {
        self.lock().get(&stream).is_some_and(|ends| !ends.sent)
    }
}

struct Reading {
    link: Link,
    open: Arc<Open>,
    offer: mpsc::Sender<Stream>,
    /// The client's latest stream.
    last: u32,
    unpacker: Unpacker,
}

impl Reading {
    async fn run<T: AsyncRead>(mut self, read: ReadHalf<T>) {
        let link = self.link.clone();
        let ended = tokio::select! {
            ended = self.read(BufReader::with_capacity(16 << 10, read)) => ended,
            () = link.activity.idle(link.idle) => Ok(()),
            () = link.gone.cancelled() => Ok(()),
        };
        if let Err(error) = ended {
            tracing::debug!(error = %crate::model::chain(&error), "a SPDY connection ends");
            if !matches!(error, SpdyError::Io { .. }) {
                link.fail(Ending::Protocol);
            }
        }
        // Whoever still reads a stream sees its reset, and whoever writes sees that the client is gone.
        link.gone.cancel();
        self.open.lock().clear();
    }

    async fn read<T: AsyncRead + Unpin>(&mut self, mut read: T) -> Result<(), SpdyError> {
        let failed = |source| SpdyError::Io {
            op: "read from",
            source,
        };
        loop {
            let mut head = [0; HEAD];
            match read.read_exact(&mut head).await {
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
                done => done.map_err(failed)?,
            };
            self.link.activity.touch();
            match Head::decode(head)? {
                Head::Control { kind, fin, length } => {
                    let mut payload = vec![0; length];
                    read.read_exact(&mut payload).await.map_err(failed)?;
                    let control = Control::decode(kind, fin, &payload, &mut self.unpacker)?;
                    self.obey(control).await;
                }
                Head::Data { stream, fin, length } => {
                    self.data(&mut read, stream, length).await.map_err(failed)?;
                    if fin {
                        self.open.end(stream);
                    }
                }
            }
        }
    }

    /// Passes on a data frame's bytes as they come; those for a stream that is not open are dropped.
    async fn data<T: AsyncRead + Unpin>(&mut self, read: &mut T, stream: u32, mut left: usize) -> std::io::Result<()> {
        let mut feed = self.open.feed(stream);
        while left > 0 {
            let mut piece = BytesMut::with_capacity(left.min(CHUNK));
            let mut limited = (&mut *read).take(left.min(CHUNK) as u64);
            while limited.limit() > 0 {
                if limited.read_buf(&mut piece).await? == 0 {
                    return Err(std::io::ErrorKind::UnexpectedEof.into());
                }
            }
            left -= piece.len();
            self.link.activity.touch();
            if let Some(open) = &feed
                && !open.data(piece.freeze()).await
            {
                feed = None;
            }
        }
        Ok(())
    }

    async fn obey(&mut self, control: Control) {
        match control {
            Control::Open { stream, headers, fin } => self.open_stream(stream, headers, fin).await,
            Control::More { stream, fin: true } => self.open.end(stream),
            Control::Reset { stream } => {
                self.open.reset(stream);
            }
            // Ours would be even; we send none.
            Control::Ping { id } if id % 2 == 1 => self.send(Outgoing::Pong { id }).await,
            Control::Ping { .. } | Control::More { .. } | Control::GoAway | Control::Nothing => {}
        }
    }

    async fn open_stream(&mut self, id: u32, headers: Headers, fin: bool) {
        let in_order = id % 2 == 1 && id > self.last;
        if !in_order || self.open.lock().len() >= MAX_STREAMS {
            self.send(Outgoing::Reset {
                stream: id,
                refused: true,
            })
            .await;
            return;
        }
        self.last = id;
        let (feed, reader) = inbound(&self.link.room);
        let gone = self.link.gone.child_token();
        self.open.lock().insert(
            id,
            Ends {
                feed: Some(feed),
                sent: false,
                gone: gone.clone(),
            },
        );
        if fin {
            self.open.end(id);
        }
        let writer = Writer::new(&self.link, id, gone);
        if self
            .offer
            .send(Stream {
                id,
                headers,
                reader,
                writer,
            })
            .await
            .is_err()
        {
            self.open.reset(id);
            self.send(Outgoing::Reset {
                stream: id,
                refused: true,
            })
            .await;
        }
    }

    async fn send(&self, outgoing: Outgoing) {
        // After the last frame nobody reads the queue.
        let _ = self.link.queue.send(outgoing).await;
    }
}

/// Writes what is queued, until the last frame or the client's end.
async fn write_all<T: AsyncWrite>(mut write: WriteHalf<T>, mut outbox: Outbox, open: Arc<Open>) {
    let mut packer = Packer::default();
    let mut last = 0;
    while let Some(outgoing) = outbox.next().await {
        let (head, bytes) = match outgoing {
            Outgoing::Data { stream, bytes } if open.can_send(stream) => {
                (frame::data(stream, false, bytes.len()).to_vec(), bytes)
            }
            Outgoing::End { stream } if open.sent(stream) => (frame::data(stream, true, 0).to_vec(), Bytes::new()),
            Outgoing::Data { .. } | Outgoing::End { .. } => continue,
            Outgoing::Accept { stream } => match frame::accept(stream, &mut packer) {
                Ok(frame) => {
                    last = stream;
                    (frame, Bytes::new())
                }
                Err(_) => break,
            },
            Outgoing::Reset { stream, refused } => {
                if !open.reset(stream) && !refused {
                    continue;
                }
                (frame::reset(stream, refused), Bytes::new())
            }
            Outgoing::Pong { id } => (frame::ping(id), Bytes::new()),
            Outgoing::Close { ending } => {
                let frame = frame::go_away(last, ending != Ending::Normal);
                let closing = async {
                    write.write_all(&frame).await?;
                    write.shutdown().await
                };
                return outbox.close(ending, closing).await;
            }
        };
        let mut frame = Bytes::from(head).chain(bytes);
        if !outbox.deliver(write.write_all_buf(&mut frame)).await {
            break;
        }
    }
    outbox.give_up();
}

#[cfg(test)]
mod tests;
