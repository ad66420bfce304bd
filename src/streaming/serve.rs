//! What an upgraded connection becomes: a command's client, or port-forward.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;

use super::Timeouts;
use super::channel::{Link, Reader, Writer};
use super::command::{self, Client};
use super::offer::{Command, Dial, Wants};
use super::port_forward::{self, Ends};
use super::protocol::Version;
use super::spdy::{self, Session};
use super::websocket::{self, Coding};

/// What an upgraded connection is for.
pub enum Serve {
    SpdyCommand {
        wants: Wants,
        command: Box<dyn Command>,
        version: Version,
    },
    SpdyPortForward {
        dial: Arc<dyn Dial>,
    },
    WebSocketCommand {
        wants: Wants,
        command: Box<dyn Command>,
        version: Version,
        base64: bool,
    },
    WebSocketPortForward {
        ports: Vec<u16>,
        dial: Arc<dyn Dial>,
        base64: bool,
    },
    Tunnel {
        dial: Arc<dyn Dial>,
    },
}

impl Serve {
    /// Serves until everything is over; `place` is given back as soon as the client is gone, which may be earlier.
    pub async fn run(self, io: TokioIo<Upgraded>, timeouts: Timeouts, place: impl Send + 'static) {
        let Timeouts { idle, creation } = timeouts;
        match self {
            Self::SpdyCommand {
                wants,
                command,
                version,
            } => {
                let session = spdy::start(io, idle);
                keep(place, &session.link);
                if let Some(client) = spdy_client(session, wants, version, creation).await {
                    command::serve(command, client).await;
                }
            }
            Self::SpdyPortForward { dial } => {
                let session = spdy::start(io, idle);
                keep(place, &session.link);
                port_forward::serve(session, dial, creation).await;
            }
            Self::Tunnel { dial } => {
                let socket = websocket::accept(io).await;
                let session = spdy::start(websocket::tunnel(socket, idle), idle);
                keep(place, &session.link);
                port_forward::serve(session, dial, creation).await;
            }
            Self::WebSocketCommand {
                wants,
                command,
                version,
                base64,
            } => {
                let coding = Coding {
                    base64,
                    ends: version >= Version::V5,
                };
                let (link, channels) = websocket::start(websocket::accept(io).await, 5, coding, idle);
                keep(place, &link);
                if let Some(client) = websocket_client(link, channels, wants, version).await {
                    command::serve(command, client).await;
                }
            }
            Self::WebSocketPortForward { ports, dial, base64 } => {
                let coding = Coding { base64, ends: false };
                let count = 2 * ports.len() as u8;
                let (link, channels) = websocket::start(websocket::accept(io).await, count, coding, idle);
                keep(place, &link);
                forward_channels(link, channels, ports, &*dial).await;
            }
        }
    }
}

/// Holds `place` until the client is gone. A command may outlive its client.
fn keep(place: impl Send + 'static, link: &Link) {
    let gone = link.gone.clone();
    tokio::spawn(async move {
        gone.cancelled().await;
        drop(place);
    });
}

/// Waits until the client has opened the streams that the request asked for.
async fn spdy_client(session: Session, wants: Wants, version: Version, creation: Duration) -> Option<Client> {
    let Session { link, mut streams } = session;
    let resizable = wants.tty && version >= Version::V3;
    let wanted = [
        ("error", true),
        ("stdin", wants.stdin),
        ("stdout", wants.stdout),
        ("stderr", wants.stderr),
        ("resize", resizable),
    ];
    let wanted: Vec<&str> = wanted.iter().filter(|(_, is)| *is).map(|(name, _)| *name).collect();
    let mut opened = HashMap::new();
    let collect = async {
        while opened.len() < wanted.len() {
            let stream = streams.recv().await?;
            let name = stream.headers.get("streamtype").unwrap_or_default().to_owned();
            if wanted.contains(&name.as_str()) && !opened.contains_key(&name) {
                stream.writer.accept().await;
                opened.insert(name, stream);
            } else {
                stream.writer.refuse().await;
            }
        }
        Some(())
    };
    if !matches!(tokio::time::timeout(creation, collect).await, Ok(Some(()))) {
        tracing::debug!("a client did not open its streams");
        link.gone.cancel();
        return None;
    }
    // Later ones are refused, not left waiting.
    drop(streams);
    let mut take = |name: &str| opened.remove(name);
    Some(Client {
        error: take("error")?.writer,
        stdin: take("stdin").map(|stream| (stream.reader, stream.writer)),
        stdout: take("stdout").map(|stream| stream.writer),
        stderr: take("stderr").map(|stream| stream.writer),
        sizes: take("resize").map(|stream| stream.reader),
        link,
        version,
    })
}

/// The channels by their numbers; the client learns by an empty message that it is served.
async fn websocket_client(
    link: Link,
    channels: Vec<(Reader, Writer)>,
    wants: Wants,
    version: Version,
) -> Option<Client> {
    let [stdin, (_, stdout), (_, stderr), (_, error), (sizes, _)] = <[_; 5]>::try_from(channels).ok()?;
    let first = match wants {
        Wants { stdout: true, .. } => &stdout,
        Wants { stderr: true, .. } => &stderr,
        _ => &error,
    };
    let _ = first.data(Bytes::new()).await;
    Some(Client {
        link,
        version,
        error,
        stdin: wants.stdin.then_some(stdin),
        stdout: wants.stdout.then_some(stdout),
        stderr: wants.stderr.then_some(stderr),
        sizes: wants.tty.then_some(sizes),
    })
}

/// One connection for each port, on two channels: data and error. Each begins with the port, low byte first.
async fn forward_channels(link: Link, channels: Vec<(Reader, Writer)>, ports: Vec<u16>, dial: &dyn Dial) {
    let mut channels = channels.into_iter();
    let mut connections = Vec::new();
    for port in ports {
        let (Some((reader, data)), Some((_, error))) = (channels.next(), channels.next()) else {
            break;
        };
        let named = Bytes::copy_from_slice(&port.to_le_bytes());
        let _ = data.data(named.clone()).await;
        let _ = error.data(named).await;
        connections.push(async move { port_forward::connect(dial, port, reader, &data, &error, Ends::Together).await });
    }
    futures_util::future::join_all(connections).await;
    link.close().await;
}
