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
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::channel::{Reader, Received, Writer, read_piece};
use super::offer::Dial;
use super::spdy::{Session, Stream};
use crate::model::chain;

/// How long what a client sent before it left may take to reach the pod.
const LAST_BYTES: Duration = Duration::from_secs(30);

/// Serves a client until it leaves. A stream waits for the other of its pair for `creation`.
pub async fn serve(session: Session, dial: Arc<dyn Dial>, creation: Duration) {
    let Session { link, mut streams } = session;
    let mut halves: HashMap<String, Half> = HashMap::new();
    let mut connections = JoinSet::new();
    let mut sweep = tokio::time::interval(creation / 4);
    loop {
        tokio::select! {
            stream = streams.recv() => {
                let Some(stream) = stream else { break };
                if let Some(pair) = join(&mut halves, stream).await {
                    connections.spawn(forward(pair, dial.clone()));
                }
            }
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            _ = sweep.tick() => {
                for (_, half) in halves.extract_if(|_, half| half.since.elapsed() > creation) {
                    half.stream.writer.reset().await;
                }
            }
        }
    }
    drop(halves);
    // Every connection sees that the client is gone, and ends within `LAST_BYTES`.
    while connections.join_next().await.is_some() {}
    link.close().await;
}

/// A stream whose other is not there yet.
struct Half {
    stream: Stream,
    is_data: bool,
    port: u16,
    since: Instant,
}

/// The two streams of a connection.
struct Pair {
    data: Stream,
    error: Stream,
    port: u16,
}

/// Puts `stream` to its other, if that is there.
async fn join(halves: &mut HashMap<String, Half>, stream: Stream) -> Option<Pair> {
    let Some((key, is_data, port)) = read(&stream) else {
        stream.writer.refuse().await;
        return None;
    };
    match halves.remove(&key) {
        None => {
            stream.writer.accept().await;
            halves.insert(
                key,
                Half {
                    stream,
                    is_data,
                    port,
                    since: Instant::now(),
                },
            );
            None
        }
        Some(half) if half.is_data == is_data || half.port != port => {
            stream.writer.refuse().await;
            halves.insert(key, half);
            None
        }
        Some(half) => {
            stream.writer.accept().await;
            let (data, error) = if is_data {
                (stream, half.stream)
            } else {
                (half.stream, stream)
            };
            Some(Pair { data, error, port })
        }
    }
}

/// Whose pair a stream belongs to, whether it is the one for data, and the port. Old clients send no request id; their
/// data stream is the one after the error stream.
fn read(stream: &Stream) -> Option<(String, bool, u16)> {
    let is_data = match stream.headers.get("streamtype")? {
        "data" => true,
        "error" => false,
        _ => return None,
    };
    let port = stream.headers.get("port")?.parse().ok().filter(|port| *port != 0)?;
    let key = match stream.headers.get("requestid") {
        Some(id) => id.to_owned(),
        None if is_data => stream.id.checked_sub(2)?.to_string(),
        None => stream.id.to_string(),
    };
    Some((key, is_data, port))
}

async fn forward(pair: Pair, dial: Arc<dyn Dial>) {
    let Pair { data, error, port } = pair;
    connect(&*dial, port, data.reader, &data.writer, &error.writer, Ends::Alone).await;
}

/// Whether the client can tell the end of one direction from the end of both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    Alone,
    /// It can neither say nor be told: once the pod has ended its direction, all that is left is to close.
    Together,
}

/// Connects to `port` and moves bytes both ways; a failure is told on `error`, and both streams end.
pub async fn connect(dial: &dyn Dial, port: u16, reader: Reader, writer: &Writer, error: &Writer, ends: Ends) {
    match dial.dial(port).await {
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
