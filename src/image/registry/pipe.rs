//! Carries a blob from the network's task to the thread that unpacks it, and verifies it on the way.
//!
//! Chunks of the network are small and come often; waking a thread for each would cost more than unpacking it. So the
//! reader is woken when there is something worth it, and looks by itself now and then.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;

use super::hash::Hasher;
use crate::image::digest::Digest;

/// The reader is woken for this many bytes; the writer waits while more than the other number are queued.
const WORTH_WAKING: usize = 256 * 1024;
const QUEUE_LIMIT: usize = 1024 * 1024;
/// How long the reader waits for more before it takes less.
const PATIENCE: Duration = Duration::from_millis(25);

/// What the reader found at the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It has not come to the end.
    Unfinished,
    /// Length and digest are as announced.
    Good,
    /// The content has this digest instead.
    Wrong(Digest),
}

enum End {
    Open,
    Complete,
    /// The writer was dropped before the end.
    Abandoned,
}

enum Offer {
    Taken,
    Full,
    ReaderGone,
}

struct State {
    queue: VecDeque<Bytes>,
    queued: usize,
    end: End,
    reader_gone: bool,
    verdict: Verdict,
}

struct Shared {
    state: Mutex<State>,
    readable: Condvar,
    writable: Notify,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds the queue")
    }
}

/// Makes a pipe for content of `size` bytes that must have `digest`.
pub fn pipe(digest: Digest, size: u64) -> (Writer, Reader) {
    let shared = Arc::new(Shared {
        state: Mutex::new(State {
            queue: VecDeque::new(),
            queued: 0,
            end: End::Open,
            reader_gone: false,
            verdict: Verdict::Unfinished,
        }),
        readable: Condvar::new(),
        writable: Notify::new(),
    });
    let hasher = Some(Hasher::new(digest.algorithm()));
    let reader = Reader {
        shared: shared.clone(),
        batch: VecDeque::new(),
        current: Bytes::new(),
        hasher,
        digest,
        left: size,
    };
    (Writer { shared, written: 0 }, reader)
}

/// The network's end. Dropped without [`Writer::finish`], the reader fails.
pub struct Writer {
    shared: Arc<Shared>,
    written: u64,
}

impl Writer {
    /// How many bytes went in.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Puts `chunk` in, waiting while the reader is behind. `false` when the reader is gone.
    pub async fn write(&mut self, chunk: Bytes) -> bool {
        loop {
            match self.offer(&chunk) {
                Offer::Taken => return true,
                Offer::ReaderGone => return false,
                Offer::Full => self.shared.writable.notified().await,
            }
        }
    }

    fn offer(&mut self, chunk: &Bytes) -> Offer {
        let mut state = self.shared.lock();
        if state.reader_gone {
            return Offer::ReaderGone;
        }
        if state.queued >= QUEUE_LIMIT {
            return Offer::Full;
        }
        self.written += chunk.len() as u64;
        state.queued += chunk.len();
        state.queue.push_back(chunk.clone());
        if state.queued >= WORTH_WAKING {
            self.shared.readable.notify_one();
        }
        Offer::Taken
    }

    /// Says that all is in.
    pub fn finish(self) {
        self.shared.lock().end = End::Complete;
    }

    /// A look at what the reader says, for when the writer is finished.
    pub fn verdict(&self) -> VerdictHandle {
        VerdictHandle(self.shared.clone())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        if matches!(state.end, End::Open) {
            state.end = End::Abandoned;
        }
        self.shared.readable.notify_one();
    }
}

/// Tells the verdict once the reader is done.
pub struct VerdictHandle(Arc<Shared>);

impl VerdictHandle {
    pub fn get(&self) -> Verdict {
        self.0.lock().verdict.clone()
    }
}

/// The unpacking thread's end. At the end of the content it fails unless length and digest are as announced.
pub struct Reader {
    shared: Arc<Shared>,
    batch: VecDeque<Bytes>,
    current: Bytes,
    /// `None` once the verdict is given.
    hasher: Option<Hasher>,
    digest: Digest,
    left: u64,
}

impl Reader {
    /// The bytes that come next, at least one unless the content is at its end. They stay to be read.
    fn peek(&mut self) -> io::Result<&[u8]> {
        if self.current.is_empty() && !self.advance()? {
            self.judge()?;
        }
        Ok(&self.current)
    }

    /// Makes the next chunk the current one. `false` at the end.
    fn advance(&mut self) -> io::Result<bool> {
        loop {
            while let Some(chunk) = self.batch.pop_front() {
                if chunk.is_empty() {
                    continue;
                }
                self.left = self
                    .left
                    .checked_sub(chunk.len() as u64)
                    .ok_or_else(|| invalid("longer than announced"))?;
                if let Some(hasher) = &mut self.hasher {
                    hasher.update(&chunk);
                }
                self.current = chunk;
                return Ok(true);
            }
            if !self.refill()? {
                return Ok(false);
            }
        }
    }

    /// Takes all that is queued.
    fn refill(&mut self) -> io::Result<bool> {
        let mut state = self.shared.lock();
        let mut has_waited = false;
        loop {
            match state.end {
                End::Abandoned => {
                    return Err(io::Error::new(
                        io::ErrorKind::ConnectionAborted,
                        "the transfer was given up",
                    ));
                }
                End::Complete if state.queue.is_empty() => return Ok(false),
                End::Complete => break,
                End::Open if state.queued >= WORTH_WAKING || (has_waited && state.queued > 0) => break,
                End::Open => {
                    let (again, timeout) = self
                        .shared
                        .readable
                        .wait_timeout(state, PATIENCE)
                        .expect("nothing panics while it holds the queue");
                    state = again;
                    has_waited = timeout.timed_out();
                }
            }
        }
        std::mem::swap(&mut state.queue, &mut self.batch);
        state.queued = 0;
        drop(state);
        self.shared.writable.notify_one();
        Ok(true)
    }

    fn judge(&mut self) -> io::Result<()> {
        if let Some(hasher) = self.hasher.take() {
            let actual = hasher.finish();
            let is_good = self.left == 0 && actual == self.digest;
            self.shared.lock().verdict = if is_good { Verdict::Good } else { Verdict::Wrong(actual) };
        }
        match self.shared.lock().verdict {
            Verdict::Good => Ok(()),
            _ => Err(invalid("the content is not what its digest and size announce")),
        }
    }
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let length = self.peek()?.len().min(buffer.len());
        buffer[..length].copy_from_slice(&self.current.split_to(length));
        Ok(length)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.reader_gone = true;
        state.queue.clear();
        self.shared.writable.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::{Verdict, pipe};
    use crate::image::digest::Algorithm;
    use crate::image::registry::hash::digest_of;
    use bytes::Bytes;
    use std::io::Read;

    fn content(length: usize) -> Vec<u8> {
        (0..length).map(|i| (i * 7 / 3) as u8).collect()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_goes_in_comes_out_and_is_found_good() {
        let content = content(5_000_000);
        let (mut writer, mut reader) = pipe(digest_of(Algorithm::Sha256, &content), content.len() as u64);
        let verdict = writer.verdict();
        let thread = tokio::task::spawn_blocking(move || {
            let mut out = Vec::new();
            reader.read_to_end(&mut out).unwrap();
            assert_eq!(reader.read(&mut [0; 8]).unwrap(), 0);
            out
        });
        for chunk in content.chunks(10_007) {
            assert!(writer.write(Bytes::copy_from_slice(chunk)).await);
        }
        writer.finish();
        assert_eq!(thread.await.unwrap(), content);
        assert_eq!(verdict.get(), Verdict::Good);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn wrong_short_and_long_content_fails_at_its_end() {
        let good = content(1000);
        for sent in [content(999), content(1001), vec![0; 1000]] {
            let (mut writer, mut reader) = pipe(digest_of(Algorithm::Sha512, &good), 1000);
            let thread = tokio::task::spawn_blocking(move || reader.read_to_end(&mut Vec::new()));
            writer.write(Bytes::from(sent)).await;
            writer.finish();
            assert_eq!(
                thread.await.unwrap().unwrap_err().kind(),
                std::io::ErrorKind::InvalidData
            );
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn each_end_notices_that_the_other_is_gone() {
        let (mut writer, reader) = pipe(digest_of(Algorithm::Sha256, b""), 1 << 30);
        let filler = tokio::spawn(async move { while writer.write(Bytes::from(vec![0; 1 << 18])).await {} });
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        drop(reader);
        filler.await.unwrap();

        let (writer, mut reader) = pipe(digest_of(Algorithm::Sha256, b""), 1);
        let thread = tokio::task::spawn_blocking(move || reader.read(&mut [0; 1]));
        drop(writer);
        assert_eq!(
            thread.await.unwrap().unwrap_err().kind(),
            std::io::ErrorKind::ConnectionAborted
        );
    }
}
