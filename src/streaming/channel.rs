//! What SPDY streams and WebSocket channels have in common: many streams of bytes, both ways, over one connection.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The most bytes in one piece.
pub const CHUNK: usize = 64 << 10;

/// How many pieces may wait: on a connection for the client, on a stream for its reader here.
pub const WAITING: usize = 16;

/// How many pieces may wait here for the readers of all streams of a connection together.
pub const ROOM: usize = 256;

/// How long a client may take to read the rest and close, once all was sent; less if it may be idle for less.
const LINGER: Duration = Duration::from_secs(600);

/// How long the last frame of a connection that ends by a mistake of the client may take.
const LAST_WORD: Duration = Duration::from_secs(5);

/// What the client sent on a stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    Data(Bytes),
    /// The client sends no more on this stream.
    End,
    /// The client gave up the stream, or the connection is gone.
    Reset,
}

/// The receiving end of a stream. Dropping it has what comes later dropped too.
pub struct Reader {
    pieces: mpsc::Receiver<(Bytes, OwnedSemaphorePermit)>,
    complete: Arc<AtomicBool>,
}

impl Reader {
    /// The next bytes that the client sent; none at the end, however it came. May be cancelled.
    pub async fn data(&mut self) -> Option<Bytes> {
        match self.next().await {
            Received::Data(bytes) => Some(bytes),
            Received::End | Received::Reset => None,
        }
    }

    /// The next of what the client sent. May be cancelled.
    pub async fn next(&mut self) -> Received {
        match self.pieces.recv().await {
            Some((bytes, _)) => Received::Data(bytes),
            None if self.complete.load(Ordering::Acquire) => Received::End,
            None => Received::Reset,
        }
    }
}

/// Where the connection puts what it reads for a stream. Dropped without [`Feed::end`] it resets the stream.
#[derive(Clone)]
pub struct Feed {
    pieces: mpsc::Sender<(Bytes, OwnedSemaphorePermit)>,
    complete: Arc<AtomicBool>,
    room: Arc<Semaphore>,
}

impl Feed {
    /// Passes on `bytes`, in pieces; waits for room, at most as long as there is a reader. False if there is none.
    pub async fn data(&self, mut bytes: Bytes) -> bool {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(CHUNK));
            let room = tokio::select! {
                room = self.room.clone().acquire_owned() => room,
                () = self.pieces.closed() => return false,
            };
            let Ok(room) = room else { return false };
            if self.pieces.send((piece, room)).await.is_err() {
                return false;
            }
        }
        true
    }

    /// The client sends no more.
    pub fn end(self) {
        self.complete.store(true, Ordering::Release);
    }
}

/// Reads a piece, by way of `scratch`; empty at the end. May be cancelled.
pub async fn read_piece(from: &mut (impl AsyncRead + Unpin), scratch: &mut Vec<u8>) -> io::Result<Bytes> {
    scratch.clear();
    scratch.reserve_exact(CHUNK);
    from.read_buf(scratch).await?;
    // A short piece that waits for the client must not hold a long buffer.
    if scratch.len() < CHUNK / 8 {
        Ok(Bytes::copy_from_slice(scratch))
    } else {
        Ok(Bytes::from(std::mem::take(scratch)))
    }
}

/// The two ends of what the client sends on a stream; `room` is shared by all streams of the connection.
pub fn inbound(room: &Arc<Semaphore>) -> (Feed, Reader) {
    let (sender, receiver) = mpsc::channel(WAITING);
    let complete = Arc::new(AtomicBool::new(false));
    (
        Feed {
            pieces: sender,
            complete: complete.clone(),
            room: room.clone(),
        },
        Reader {
            pieces: receiver,
            complete,
        },
    )
}

/// What is to be sent, in this order.
#[derive(Debug)]
pub enum Outgoing {
    /// The stream that the client asked for is granted.
    Accept {
        stream: u32,
    },
    Data {
        stream: u32,
        bytes: Bytes,
    },
    End {
        stream: u32,
    },
    Reset {
        stream: u32,
        refused: bool,
    },
    Pong {
        id: u32,
    },
    /// Nothing follows; the connection closes.
    Close {
        ending: Ending,
    },
}

/// Why a connection closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// All was said.
    Normal,
    /// The client broke the protocol.
    Protocol,
    /// A message was larger than is taken.
    TooLarge,
    /// A message was not encoded as it ought to be.
    Encoding,
}

/// The client is gone, or does not want this stream any more.
#[derive(Debug, PartialEq, Eq)]
pub struct Gone;

/// The sending end of a stream.
#[derive(Clone)]
pub struct Writer {
    stream: u32,
    queue: mpsc::Sender<Outgoing>,
    gone: CancellationToken,
}

impl Writer {
    /// Sends on `stream` by `link`'s connection until `gone`.
    pub fn new(link: &Link, stream: u32, gone: CancellationToken) -> Self {
        Self {
            stream,
            queue: link.queue.clone(),
            gone,
        }
    }

    /// Sends `bytes`, at most [`CHUNK`]; waits while too much waits for the client.
    pub async fn data(&self, bytes: Bytes) -> Result<(), Gone> {
        self.put(Outgoing::Data {
            stream: self.stream,
            bytes,
        })
        .await
    }

    /// Waits until the client wants no more of this stream.
    pub async fn gone(&self) {
        self.gone.cancelled().await;
    }

    /// Sends no more.
    pub async fn end(&self) {
        let _ = self.put(Outgoing::End { stream: self.stream }).await;
    }

    /// Gives up the stream.
    pub async fn reset(&self) {
        let _ = self
            .put(Outgoing::Reset {
                stream: self.stream,
                refused: false,
            })
            .await;
    }

    /// Grants the stream.
    pub async fn accept(&self) {
        let _ = self.put(Outgoing::Accept { stream: self.stream }).await;
    }

    /// Does not grant the stream.
    pub async fn refuse(&self) {
        let _ = self
            .put(Outgoing::Reset {
                stream: self.stream,
                refused: true,
            })
            .await;
    }

    async fn put(&self, outgoing: Outgoing) -> Result<(), Gone> {
        tokio::select! {
            biased;
            () = self.gone.cancelled() => Err(Gone),
            sent = self.queue.send(outgoing) => sent.map_err(|_| Gone),
        }
    }
}

/// When something last moved on a connection.
pub struct Activity {
    since: Instant,
    last_ms: AtomicU64,
}

impl Default for Activity {
    fn default() -> Self {
        Self {
            since: Instant::now(),
            last_ms: AtomicU64::new(0),
        }
    }
}

impl Activity {
    /// Something moves.
    pub fn touch(&self) {
        self.last_ms
            .store(self.since.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// Returns when nothing has moved for `limit`.
    pub async fn idle(&self, limit: Duration) {
        loop {
            let until = self.since + Duration::from_millis(self.last_ms.load(Ordering::Relaxed)) + limit;
            if until <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }
}

/// How long a client may take to read the rest and close, once all was sent.
pub fn linger(idle: Duration) -> Duration {
    LINGER.min(idle)
}

/// How long the last frame may take.
pub fn last_frame(ending: Ending, idle: Duration) -> Duration {
    match ending {
        Ending::Normal => linger(idle),
        Ending::Protocol | Ending::TooLarge | Ending::Encoding => LAST_WORD,
    }
}

/// What is to be sent on a connection, as its writer sees it.
pub struct Outbox {
    queue: mpsc::Receiver<Outgoing>,
    gone: CancellationToken,
    activity: Arc<Activity>,
    idle: Duration,
}

impl Outbox {
    /// The next to be sent; none once all was, or the client is gone: whoever still holds the other end of the queue
    /// then must not keep the connection open.
    pub async fn next(&mut self) -> Option<Outgoing> {
        tokio::select! {
            // What was queued before, such as why the client is gone, comes first.
            biased;
            next = self.queue.recv() => next,
            () = self.gone.cancelled() => None,
        }
    }

    /// Sends by way of `send`, which returns once the connection has taken everything. False if it did not: it failed,
    /// the client is gone, or it took nothing for too long.
    pub async fn deliver<E>(&self, send: impl Future<Output = Result<(), E>>) -> bool {
        let mut send = std::pin::pin!(send);
        let delivered = tokio::select! {
            // What the connection takes at once is sent even if the client is gone: it may be why.
            biased;
            sent = &mut send => sent.is_ok(),
            // Once more: a moment ago the connection may have been in the hands of who reads it, and says that.
            () = self.gone.cancelled() => send.now_or_never().is_some_and(|sent| sent.is_ok()),
            () = tokio::time::sleep(self.idle) => {
                tracing::debug!("a streaming client takes nothing: it is let go of");
                false
            }
        };
        if delivered {
            self.activity.touch();
        }
        delivered
    }

    /// Sends the last frame by way of `send`, if the connection takes it in time. The client then has time to close.
    pub async fn close<E>(self, ending: Ending, send: impl Future<Output = Result<(), E>>) {
        let _ = tokio::time::timeout(last_frame(ending, self.idle), send).await;
    }

    /// Nothing is sent any more, and nobody waits for the client.
    pub fn give_up(self) {
        self.gone.cancel();
    }
}

/// A connection, as its users see it.
#[derive(Clone)]
pub struct Link {
    pub queue: mpsc::Sender<Outgoing>,
    /// The client is gone.
    pub gone: CancellationToken,
    pub activity: Arc<Activity>,
    pub room: Arc<Semaphore>,
    /// See [`super::Timeouts::idle`].
    pub idle: Duration,
}

impl Link {
    /// A new connection, and what is to be sent on it.
    pub fn new(idle: Duration) -> (Self, Outbox) {
        let (queue, receiver) = mpsc::channel(WAITING);
        let link = Self {
            queue,
            gone: CancellationToken::new(),
            activity: Arc::default(),
            room: Arc::new(Semaphore::new(ROOM)),
            idle,
        };
        let outbox = Outbox {
            queue: receiver,
            gone: link.gone.clone(),
            activity: link.activity.clone(),
            idle,
        };
        (link, outbox)
    }

    /// Closes the connection once everything was sent and the client has closed its side. Closing earlier would make
    /// the kernel reset it for whatever the client still sends, and with that drop what the client has not read.
    pub async fn close(self) {
        let _ = tokio::select! {
            sent = self.queue.send(Outgoing::Close { ending: Ending::Normal }) => sent,
            () = self.gone.cancelled() => Ok(()),
        };
        drop(self.queue);
        let _ = tokio::time::timeout(linger(self.idle), self.gone.cancelled()).await;
        self.gone.cancel();
    }

    /// Says why the connection ends, where there is room for it, and ends it.
    pub fn fail(&self, ending: Ending) {
        let _ = self.queue.try_send(Outgoing::Close { ending });
        self.gone.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_end_comes_after_the_data_and_a_lost_feed_is_a_reset() {
        let room = Arc::new(Semaphore::new(ROOM));
        let (feed, mut reader) = inbound(&room);
        assert!(feed.data(Bytes::from(vec![1; CHUNK + 1])).await);
        feed.end();
        assert_eq!(reader.next().await, Received::Data(Bytes::from(vec![1; CHUNK])));
        assert_eq!(reader.next().await, Received::Data(Bytes::from(vec![1; 1])));
        assert_eq!(reader.next().await, Received::End);
        assert_eq!(room.available_permits(), ROOM);
        let (feed, mut reader) = inbound(&room);
        drop(feed);
        assert_eq!(reader.next().await, Received::Reset);
    }

    #[tokio::test]
    async fn a_slow_reader_holds_the_connection_back_and_a_lost_one_does_not() {
        let room = Arc::new(Semaphore::new(ROOM));
        let (feed, reader) = inbound(&room);
        for _ in 0..WAITING {
            assert!(feed.data(Bytes::from_static(b"x")).await);
        }
        let more = tokio::time::timeout(Duration::from_millis(50), feed.data(Bytes::from_static(b"x"))).await;
        assert!(more.is_err(), "there was room");
        drop(reader);
        assert!(!feed.data(Bytes::from_static(b"x")).await);
        assert_eq!(room.available_permits(), ROOM);
    }

    /// Symptom: now and then a client that broke the protocol was not told so.
    #[tokio::test]
    async fn what_was_held_up_by_the_reader_is_sent_when_the_reader_fails() {
        let (link, mut outbox) = Link::new(Duration::from_secs(60));
        let mut polls = 0;
        let held_up = std::future::poll_fn(|_| {
            polls += 1;
            if polls == 1 {
                // The reader lets go of the connection, and says why, between this look and the next.
                link.fail(Ending::Protocol);
                return std::task::Poll::Pending;
            }
            std::task::Poll::Ready(Ok::<(), ()>(()))
        });
        assert!(outbox.deliver(held_up).await);
        let next = outbox.next().await;
        assert!(
            matches!(
                next,
                Some(Outgoing::Close {
                    ending: Ending::Protocol
                })
            ),
            "{next:?}"
        );
        assert!(outbox.next().await.is_none());
        assert!(!outbox.deliver(std::future::pending::<Result<(), ()>>()).await);
    }

    #[tokio::test(start_paused = true)]
    async fn idleness_is_counted_from_the_last_movement() {
        let activity = Activity::default();
        tokio::time::advance(Duration::from_secs(50)).await;
        activity.touch();
        let began = Instant::now();
        activity.idle(Duration::from_secs(60)).await;
        assert!(began.elapsed() >= Duration::from_secs(59));
    }
}
