//! Exec and attach: a command's streams to and from its client.

use std::os::fd::OwnedFd;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::channel::{Link, Reader, Received, Writer, read_piece};
use super::offer::{Command, Next, Running};
use super::protocol::Version;
use super::status::Verdict;
use crate::model::chain;

/// The most that may wait of a terminal size that is not complete yet, in bytes.
const MAX_SIZE_TEXT: usize = 4096;

/// A client and the streams that it has.
pub struct Client {
    pub link: Link,
    pub version: Version,
    pub error: Writer,
    pub stdin: Option<(Reader, Writer)>,
    pub stdout: Option<Writer>,
    pub stderr: Option<Writer>,
    pub sizes: Option<Reader>,
}

/// Starts the command and serves the client until both are done with each other.
///
/// The status goes out last: after the process has ended, its output has been read to the end, and all of that stands
/// before it in the one queue of the connection. When the client leaves early, a command without a terminal loses its
/// input and goes on, its output dropped, as with containerd; one with a terminal is hung up; an attachment ends.
pub async fn serve(command: Box<dyn Command>, client: Client) {
    let Client {
        link,
        version,
        error,
        stdin,
        stdout,
        stderr,
        sizes,
    } = client;
    let stdin_back = stdin.as_ref().map(|(_, back)| back.clone());
    let streams = Streams {
        stdin: stdin.map(|(reader, _)| reader),
        stdout: stdout.clone(),
        stderr: stderr.clone(),
    };
    let verdict = match command.start().await {
        Ok(running) => run(running, streams, sizes.map(Sizes::new), &link.gone).await,
        Err(cause) => Verdict::Failed {
            message: chain(&*cause),
        },
    };
    for writer in stdout.iter().chain(&stderr) {
        writer.end().await;
    }
    let words = verdict.words(version);
    tracing::debug!(?verdict, "a command has ended");
    if !words.is_empty() {
        let _ = error.data(Bytes::from(words)).await;
    }
    error.end().await;
    if let Some(back) = stdin_back {
        back.end().await;
    }
    drop((error, stdout, stderr));
    link.close().await;
}

struct Streams {
    stdin: Option<Reader>,
    stdout: Option<Writer>,
    stderr: Option<Writer>,
}

async fn run(running: Running, streams: Streams, mut sizes: Option<Sizes>, gone: &CancellationToken) -> Verdict {
    let Running {
        stdin,
        stdout,
        stderr,
        mut process,
        drain,
    } = running;
    let mut outputs = JoinSet::new();
    for (fd, writer) in [(stdout, streams.stdout), (stderr, streams.stderr)] {
        if let Some(fd) = fd {
            outputs.spawn(output(fd, writer));
        }
    }
    let mut input_task = JoinSet::new();
    match (stdin, streams.stdin) {
        (Some(fd), Some(reader)) => {
            input_task.spawn(input(reader, fd, gone.clone()));
        }
        // Input that nobody takes is dropped, and with the descriptor the process sees its end.
        (fd, reader) => drop((fd, reader)),
    }
    let had_outputs = !outputs.is_empty();
    let mut left = false;
    let mut exit = None;
    let mut drained = std::pin::pin!(deadline(None));
    loop {
        if exit.is_some() && outputs.is_empty() {
            break;
        }
        let next = tokio::select! {
            ended = process.ended(), if exit.is_none() => {
                exit = Some(ended);
                input_task.shutdown().await;
                drained.set(deadline(drain));
                continue;
            }
            Some(_) = outputs.join_next(), if !outputs.is_empty() => {
                // An attachment whose streams have all ended has nothing left to show.
                if drain.is_some() && had_outputs && outputs.is_empty() { Next::Detach } else { Next::Stay }
            }
            Some(_) = input_task.join_next(), if !input_task.is_empty() => process.stdin_ended().await,
            size = next_size(&mut sizes), if sizes.is_some() => {
                match size {
                    Some((columns, rows)) => process.resize(columns, rows).await,
                    None => sizes = None,
                }
                Next::Stay
            }
            () = gone.cancelled(), if !left => {
                left = true;
                // The input's own task sees that too, and ends; what follows from it comes first.
                if input_task.join_next().await.is_some() {
                    process.stdin_ended().await;
                }
                process.left()
            }
            () = &mut drained => Next::Detach,
        };
        match next {
            Next::Stay => {}
            Next::HangUp => outputs.shutdown().await,
            Next::Detach => {
                outputs.shutdown().await;
                exit.get_or_insert(Ok(0));
            }
        }
    }
    match exit {
        Some(Ok(code)) => Verdict::Exited { code },
        Some(Err(cause)) => Verdict::Failed {
            message: chain(&*cause),
        },
        None => Verdict::Exited { code: 0 },
    }
}

async fn deadline(limit: Option<Duration>) {
    match limit {
        Some(limit) => tokio::time::sleep(limit).await,
        None => std::future::pending().await,
    }
}

/// Moves output to the client until it ends. Without a client it is read all the same: the process must not notice.
async fn output(fd: OwnedFd, mut client: Option<Writer>) {
    let Ok(mut fd) = pipe::Receiver::from_owned_fd_unchecked(fd) else {
        return;
    };
    let mut scratch = Vec::new();
    loop {
        match read_piece(&mut fd, &mut scratch).await {
            Ok(bytes) if bytes.is_empty() => break,
            // A terminal's master reads so once nobody has the terminal open.
            Err(error) if error.raw_os_error() == Some(libc::EIO) => break,
            Err(error) => {
                tracing::debug!(%error, "output of a command cannot be read");
                break;
            }
            Ok(bytes) => {
                if let Some(writer) = &client
                    && writer.data(bytes).await.is_err()
                {
                    client = None;
                }
            }
        }
    }
    if let Some(writer) = client {
        writer.end().await;
    }
}

/// Moves the client's input to the process until either has enough, or the client is gone.
async fn input(mut reader: Reader, fd: OwnedFd, gone: CancellationToken) {
    let Ok(mut fd) = pipe::Sender::from_owned_fd_unchecked(fd) else {
        return;
    };
    while let Some(bytes) = reader.data().await {
        let written = tokio::select! {
            written = fd.write_all(&bytes) => written,
            () = gone.cancelled() => return,
        };
        if written.is_err() {
            return;
        }
    }
}

async fn next_size(sizes: &mut Option<Sizes>) -> Option<(u16, u16)> {
    match sizes {
        Some(sizes) => sizes.next().await,
        None => std::future::pending().await,
    }
}

/// Sizes of the client's terminal: JSON objects with Width and Height, one after the other.
struct Sizes {
    reader: Reader,
    text: Vec<u8>,
}

impl Sizes {
    fn new(reader: Reader) -> Self {
        Self {
            reader,
            text: Vec::new(),
        }
    }

    /// The next size, columns and rows; none at the end, or where there is nonsense. May be cancelled.
    async fn next(&mut self) -> Option<(u16, u16)> {
        loop {
            match self.parse() {
                Some(Ok(size)) => return Some(size),
                Some(Err(())) => return None,
                None => {}
            }
            match self.reader.next().await {
                Received::Data(bytes) if self.text.len() + bytes.len() <= MAX_SIZE_TEXT => self.text.extend(bytes),
                _ => return None,
            }
        }
    }

    fn parse(&mut self) -> Option<Result<(u16, u16), ()>> {
        #[derive(serde::Deserialize)]
        struct Size {
            #[serde(rename = "Width")]
            width: u16,
            #[serde(rename = "Height")]
            height: u16,
        }
        let mut sizes = serde_json::Deserializer::from_slice(&self.text).into_iter::<Size>();
        match sizes.next()? {
            Ok(size) => {
                let used = sizes.byte_offset();
                self.text.drain(..used);
                Some(Ok((size.width, size.height)))
            }
            Err(error) if error.is_eof() => None,
            Err(_) => Some(Err(())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::Semaphore;

    use super::*;
    use crate::streaming::channel::inbound;

    #[tokio::test]
    async fn sizes_come_in_any_pieces_and_nonsense_ends_them() {
        let (feed, reader) = inbound(&Arc::new(Semaphore::new(9)));
        let mut sizes = Sizes::new(reader);
        for piece in [
            "{\"Width\":80,\"Hei",
            "ght\":24}\n{\"Width\":1,\"Height\":2}",
            "\n nonsense",
        ] {
            assert!(feed.data(Bytes::from(piece)).await);
        }
        assert_eq!(sizes.next().await, Some((80, 24)));
        assert_eq!(sizes.next().await, Some((1, 2)));
        assert_eq!(sizes.next().await, None);
    }
}
