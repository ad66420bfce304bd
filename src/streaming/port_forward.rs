//! Port-forward: TCP connections to a pod's ports, each on its own.
//!
//! Over SPDY a connection is a pair of streams with one `requestid`: `data`, and `error` for the text of a failure. A
//! direction that ends is half closed on the other side and the other direction goes on for as long as it likes; a
//! reset is passed on as a reset. Neither touches the other connections.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};

use super::channel::{Reader, Received, Writer, read_piece};
use super::offer::{Cause, Dial};
use super::spdy::headers::Headers;
use super::spdy::{Session, Stream};
use crate::model::chain;

/// The most dials of a session that are under way at a time; the others wait.
const MAX_DIALS: usize = 64;

/// The most streams of a session that wait for the others of their pairs.
const MAX_HALVES: usize = 1024;

/// The longest request id in bytes. Clients number their requests.
const MAX_REQUEST_ID: usize = 128;

/// How long what a client sent before it left may take to reach the pod.
const LAST_BYTES: Duration = Duration::from_secs(30);

/// Serves a client until it leaves. A stream waits for the other of its pair for `creation`.
pub async fn serve(session: Session, dial: Arc<dyn Dial>, creation: Duration) {
    let Session { link, mut streams } = session;
    let dial = Arc::new(Limited {
        dial,
        places: Semaphore::new(MAX_DIALS),
    });
    let mut halves = Halves {
        halves: HashMap::new(),
        waits: JoinSet::new(),
        creation,
    };
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            // What is over goes first, or streams that come quickly would have it pile up.
            biased;
            half = halves.alone() => half.writer.reset().await,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            stream = streams.recv() => {
                let Some(stream) = stream else { break };
                if let Some(pair) = halves.join(stream).await {
                    connections.spawn(forward(pair, dial.clone()));
                }
            }
        }
    }
    drop(halves);
    // Every connection sees that the client is gone, and ends within `LAST_BYTES`; a dial under way is given up.
    while connections.join_next().await.is_some() {}
    link.close().await;
}

/// A session's dials, so many at a time.
struct Limited {
    dial: Arc<dyn Dial>,
    places: Semaphore,
}

#[tonic::async_trait]
impl Dial for Limited {
    async fn dial(&self, port: u16) -> Result<TcpStream, Cause> {
        // An error would be that the semaphore is closed, which nobody does.
        let _place = self.places.acquire().await;
        self.dial.dial(port).await
    }
}

/// A stream whose other is not there yet.
struct Half {
    stream: u32,
    /// The data stream's; what comes on the other is dropped.
    reader: Option<Reader>,
    writer: Writer,
    port: u16,
    wait: AbortHandle,
}

impl Half {
    /// Whether the client has given it up.
    fn is_reset(&self) -> bool {
        self.writer.gone().now_or_never().is_some()
    }
}

/// The two streams of a connection.
struct Pair {
    reader: Reader,
    data: Writer,
    error: Writer,
    port: u16,
}

/// The streams of a session whose others are not there yet, by the keys of their pairs.
struct Halves {
    halves: HashMap<String, Half>,
    /// For each half, until the client gives it up or it is alone for too long: its key and stream.
    waits: JoinSet<(String, u32)>,
    creation: Duration,
}

impl Halves {
    /// Puts `stream` to its other, if that is there.
    async fn join(&mut self, stream: Stream) -> Option<Pair> {
        let Stream {
            id,
            headers,
            reader,
            writer,
        } = stream;
        let read = read(id, &headers);
        // They may be large, and a connection lasts.
        drop(headers);
        let Some((key, is_data, port)) = read else {
            writer.refuse().await;
            return None;
        };
        let reader = is_data.then_some(reader);
        if self.halves.get(&key).is_some_and(Half::is_reset) {
            self.halves.remove(&key);
        }
        let Some(half) = self.halves.get(&key) else {
            if self.is_full() {
                writer.refuse().await;
                return None;
            }
            writer.accept().await;
            let wait = self.wait(key.clone(), id, writer.clone());
            let half = Half {
                stream: id,
                reader,
                writer,
                port,
                wait,
            };
            self.halves.insert(key, half);
            return None;
        };
        if half.reader.is_some() == is_data || half.port != port {
            writer.refuse().await;
            return None;
        }
        let half = self.halves.remove(&key)?;
        half.wait.abort();
        writer.accept().await;
        let (data, error) = if is_data {
            (writer, half.writer)
        } else {
            (half.writer, writer)
        };
        Some(Pair {
            reader: reader.or(half.reader)?,
            data,
            error,
            port,
        })
    }

    fn is_full(&mut self) -> bool {
        if self.halves.len() >= MAX_HALVES {
            self.halves.retain(|_, half| !half.is_reset());
        }
        self.halves.len() >= MAX_HALVES
    }

    fn wait(&mut self, key: String, stream: u32, writer: Writer) -> AbortHandle {
        let creation = self.creation;
        self.waits.spawn(async move {
            let _ = tokio::time::timeout(creation, writer.gone()).await;
            (key, stream)
        })
    }

    /// The next half whose wait is over, for good. May be cancelled.
    async fn alone(&mut self) -> Half {
        while let Some(wait) = self.waits.join_next().await {
            // Its key may be another's by now.
            if let Ok((key, stream)) = wait
                && self.halves.get(&key).is_some_and(|half| half.stream == stream)
                && let Some(half) = self.halves.remove(&key)
            {
                return half;
            }
        }
        std::future::pending().await
    }
}

/// Whose pair a stream belongs to, whether it is the one for data, and the port. Old clients send no request id; their
/// data stream is the one after the error stream.
fn read(stream: u32, headers: &Headers) -> Option<(String, bool, u16)> {
    let is_data = match headers.get("streamtype")? {
        "data" => true,
        "error" => false,
        _ => return None,
    };
    let port = headers.get("port")?.parse().ok().filter(|port| *port != 0)?;
    let key = match headers.get("requestid") {
        Some(id) if id.len() > MAX_REQUEST_ID => return None,
        Some(id) => id.to_owned(),
        None if is_data => stream.checked_sub(2)?.to_string(),
        None => stream.to_string(),
    };
    Some((key, is_data, port))
}

async fn forward(pair: Pair, dial: Arc<Limited>) {
    let Pair {
        reader,
        data,
        error,
        port,
    } = pair;
    connect(&*dial, port, reader, &data, &error, Ends::Alone).await;
}

/// Whether the client can tell the end of one direction from the end of both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    Alone,
    /// It can neither say nor be told: once the pod has ended its direction, all that is left is to close.
    Together,
}

/// Connects to `port` and moves bytes both ways; a failure is told on `error`, and both streams end. The dial is given
/// up with its client's stream.
pub async fn connect(dial: &dyn Dial, port: u16, reader: Reader, writer: &Writer, error: &Writer, ends: Ends) {
    let dialled = tokio::select! {
        biased;
        () = writer.gone() => return error.end().await,
        dialled = dial.dial(port) => dialled,
    };
    match dialled {
        Ok(connection) => relay(connection, reader, writer, ends).await,
        // Accepted, and reset before we saw it. To the client a text on the error stream would be the end of all its
        // connections; this is the end of one.
        Err(cause) if is_reset(&*cause) => writer.reset().await,
        Err(cause) => {
            let told = format!("forward to port {port}: {}", chain(&*cause));
            tracing::debug!(error = told, "port-forward");
            let _ = error.data(Bytes::from(told)).await;
            writer.end().await;
        }
    }
    error.end().await;
}

fn is_reset(cause: &(dyn std::error::Error + 'static)) -> bool {
    let mut causes = std::iter::successors(Some(cause), |cause| cause.source());
    causes.any(|cause| {
        let error = cause.downcast_ref::<std::io::Error>();
        error.is_some_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset)
    })
}

/// How the client's direction ended.
#[derive(PartialEq)]
enum Up {
    /// By its end, passed on to the pod.
    Ended,
    /// The pod takes no more.
    Refused,
    /// The client gave up the stream, or left.
    Reset,
}

/// How the pod's direction ended.
#[derive(PartialEq)]
enum Down {
    Ended,
    Reset,
    /// The client takes no more.
    Refused,
}

async fn relay(mut connection: TcpStream, mut reader: Reader, writer: &Writer, ends: Ends) {
    let (mut from_pod, mut to_pod) = connection.split();
    let (up, down) = {
        let mut up = pin!(async {
            loop {
                match reader.next().await {
                    Received::Data(bytes) => {
                        if to_pod.write_all(&bytes).await.is_err() {
                            return Up::Refused;
                        }
                    }
                    Received::End => {
                        let _ = to_pod.shutdown().await;
                        return Up::Ended;
                    }
                    Received::Reset => return Up::Reset,
                }
            }
        });
        let mut down = pin!(async {
            let mut scratch = Vec::new();
            loop {
                match read_piece(&mut from_pod, &mut scratch).await {
                    Ok(bytes) if bytes.is_empty() => {
                        writer.end().await;
                        return Down::Ended;
                    }
                    Ok(bytes) => {
                        if writer.data(bytes).await.is_err() {
                            return Down::Refused;
                        }
                    }
                    Err(_) => {
                        writer.reset().await;
                        return Down::Reset;
                    }
                }
            }
        });
        let (mut up_over, mut down_over) = (None, None);
        let mut last_bytes = pin!(async {
            writer.gone().await;
            tokio::time::sleep(LAST_BYTES).await;
        });
        while up_over.is_none() || down_over.is_none() {
            tokio::select! {
                over = &mut up, if up_over.is_none() => {
                    let reset = over == Up::Reset;
                    up_over = Some(over);
                    if reset { break }
                }
                over = &mut down, if down_over.is_none() => {
                    let all = over == Down::Reset || ends == Ends::Together;
                    down_over = Some(over);
                    if all { break }
                }
                () = &mut last_bytes => break,
            }
        }
        (up_over, down_over)
    };
    // A client that leaves before the pod has finished means it: the pod learns of it as of any connection cut off. One
    // that has seen the pod's end has just no more to say.
    if matches!(up, None | Some(Up::Reset)) && down != Some(Down::Ended) {
        let _ = rustix::net::sockopt::set_socket_linger(&connection, Some(Duration::ZERO));
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, DuplexStream};
    use tokio::sync::mpsc;
    use tokio::task::JoinHandle;
    use tokio::time::{Instant, timeout};

    use super::*;
    use crate::streaming::spdy;
    use crate::streaming::spdy::frame::{self, HEAD, Head};
    use crate::streaming::spdy::headers::Packer;

    const CREATION: Duration = Duration::from_secs(30);

    /// The clock stands still while anything can go on: this is how long nothing may.
    const PATIENCE: Duration = Duration::from_secs(10);

    #[derive(Debug, PartialEq)]
    enum Dialling {
        Begun,
        Over,
    }

    /// Dials that take until they are given up.
    struct Endless(mpsc::UnboundedSender<Dialling>);

    struct UnderWay<'a>(&'a Endless);

    impl Drop for UnderWay<'_> {
        fn drop(&mut self) {
            let _ = self.0.0.send(Dialling::Over);
        }
    }

    #[tonic::async_trait]
    impl Dial for Endless {
        async fn dial(&self, _port: u16) -> Result<TcpStream, Cause> {
            let _ = self.0.send(Dialling::Begun);
            let _under_way = UnderWay(self);
            std::future::pending().await
        }
    }

    #[derive(Debug, PartialEq)]
    enum Answer {
        Granted(u32),
        Refused(u32),
        Reset(u32),
    }

    struct Client {
        io: DuplexStream,
        packer: Packer,
    }

    impl Client {
        async fn open(&mut self, stream: u32, kind: &str, request: &str) {
            let headers = Headers::from([("streamtype", kind), ("port", "80"), ("requestid", request)]);
            let frame = frame::open(stream, &headers, false, &mut self.packer).unwrap();
            self.io.write_all(&frame).await.unwrap();
        }

        /// Opens the error stream `stream`, and the data stream two after it.
        async fn open_pair(&mut self, stream: u32, request: &str) {
            self.open(stream, "error", request).await;
            self.open(stream + 2, "data", request).await;
        }

        async fn reset(&mut self, stream: u32) {
            self.io.write_all(&frame::reset(stream, false)).await.unwrap();
        }

        async fn answer(&mut self) -> Answer {
            let mut head = [0; HEAD];
            self.io.read_exact(&mut head).await.unwrap();
            let Head::Control { kind, length, .. } = Head::decode(head).unwrap() else {
                panic!("data");
            };
            let mut payload = vec![0; length];
            self.io.read_exact(&mut payload).await.unwrap();
            let number = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
            match kind {
                2 => Answer::Granted(number(0)),
                3 if number(4) == 3 => Answer::Refused(number(0)),
                3 => Answer::Reset(number(0)),
                kind => panic!("a frame of kind {kind}"),
            }
        }
    }

    struct Served {
        client: Client,
        dials: mpsc::UnboundedReceiver<Dialling>,
        task: JoinHandle<()>,
    }

    impl Served {
        fn start() -> Self {
            let (ours, theirs) = tokio::io::duplex(1 << 20);
            let (sender, dials) = mpsc::unbounded_channel();
            let session = spdy::start(ours, Duration::from_secs(3600));
            let client = Client {
                io: theirs,
                packer: Packer::default(),
            };
            let task = tokio::spawn(serve(session, Arc::new(Endless(sender)), CREATION));
            Self { client, dials, task }
        }

        async fn dialling(&mut self) -> Option<Dialling> {
            timeout(PATIENCE, self.dials.recv()).await.ok().flatten()
        }
    }

    /// Symptom: the node's runtime stood still. Cause: dials to a server that accepts none went on after their clients
    /// had given them up, and there was no end to how many.
    #[tokio::test(start_paused = true)]
    async fn a_dial_is_given_up_with_its_stream_or_session() {
        let mut served = Served::start();
        served.client.open_pair(1, "0").await;
        served.client.open_pair(5, "1").await;
        assert_eq!(served.dialling().await, Some(Dialling::Begun));
        assert_eq!(served.dialling().await, Some(Dialling::Begun));
        served.client.reset(3).await;
        assert_eq!(served.dialling().await, Some(Dialling::Over));
        assert_eq!(served.dialling().await, None, "the other goes on");
        let Served {
            client,
            mut dials,
            task,
        } = served;
        drop(client);
        let over = timeout(PATIENCE, dials.recv()).await;
        assert_eq!(over, Ok(Some(Dialling::Over)));
        timeout(PATIENCE, task).await.expect("the session ends").unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_dials_are_under_way_and_the_next_waits() {
        let mut served = Served::start();
        for number in 0..=MAX_DIALS as u32 {
            served.client.open_pair(4 * number + 1, &number.to_string()).await;
        }
        for _ in 0..MAX_DIALS {
            assert_eq!(served.dialling().await, Some(Dialling::Begun));
        }
        assert_eq!(served.dialling().await, None, "one too many");
        served.client.reset(3).await;
        assert_eq!(served.dialling().await, Some(Dialling::Over));
        assert_eq!(served.dialling().await, Some(Dialling::Begun));
    }

    /// Symptom: a client that opened streams and reset them had the daemon keep every one for 30 seconds.
    #[tokio::test(start_paused = true)]
    async fn a_stream_that_its_client_gave_up_waits_no_more() {
        let mut served = Served::start();
        let client = &mut served.client;
        client.open(1, "error", "0").await;
        assert_eq!(client.answer().await, Answer::Granted(1));
        client.reset(1).await;
        client.open(3, "error", "0").await;
        assert_eq!(client.answer().await, Answer::Granted(3));
        client.open(5, "data", "0").await;
        assert_eq!(client.answer().await, Answer::Granted(5));
        assert_eq!(served.dialling().await, Some(Dialling::Begun));
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_streams_wait_for_their_others_and_the_next_is_refused() {
        let Served { mut client, .. } = Served::start();
        let mut streams = (1..).step_by(2);
        let mut next = || streams.next().unwrap();
        for number in 0..MAX_HALVES {
            let stream = next();
            client.open(stream, "error", &number.to_string()).await;
            assert_eq!(client.answer().await, Answer::Granted(stream));
        }
        let (refused, other) = (next(), next());
        client.open(refused, "error", "one too many").await;
        assert_eq!(client.answer().await, Answer::Refused(refused));
        // Each has room once: what the first left by its other, what the second left by its reset.
        client.open(other, "data", "0").await;
        assert_eq!(client.answer().await, Answer::Granted(other));
        client.reset(3).await;
        for request in ["a", "b"] {
            let stream = next();
            client.open(stream, "error", request).await;
            assert_eq!(client.answer().await, Answer::Granted(stream), "{request}");
        }
        let refused = next();
        client.open(refused, "error", "c").await;
        assert_eq!(client.answer().await, Answer::Refused(refused));
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_request_id_is_refused() {
        let Served { mut client, .. } = Served::start();
        let longest = "x".repeat(MAX_REQUEST_ID);
        client.open(1, "error", &longest).await;
        assert_eq!(client.answer().await, Answer::Granted(1));
        client.open(3, "error", &format!("{longest}x")).await;
        assert_eq!(client.answer().await, Answer::Refused(3));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_stays_alone_is_reset_and_a_pair_is_not() {
        let mut served = Served::start();
        let client = &mut served.client;
        let began = Instant::now();
        client.open_pair(1, "0").await;
        client.open(5, "error", "1").await;
        for stream in [1, 3, 5] {
            assert_eq!(client.answer().await, Answer::Granted(stream));
        }
        assert_eq!(client.answer().await, Answer::Reset(5));
        assert!(began.elapsed() >= CREATION);
        assert!(timeout(2 * CREATION, client.answer()).await.is_err(), "the pair stays");
        // The request is forgotten: this is a stream that waits for its other.
        client.open(7, "data", "1").await;
        assert_eq!(client.answer().await, Answer::Granted(7));
        assert_eq!(served.dialling().await, Some(Dialling::Begun));
        assert_eq!(served.dialling().await, None);
    }
}
