//! The HTTP server: a token in the path, an upgrade, and the connection goes to what the token stands for.

use std::convert::Infallible;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::StreamingError;
use super::channel::{Link, Reader, Writer};
use super::command::{self, Client};
use super::offer::{Command, Dial, Wants};
use super::port_forward;
use super::protocol::{self, Forwarding, Version};
use super::spdy::{self, Session};
use super::token::{LIMIT, Tokens};
use super::websocket::{self, Coding};

/// The most clients at a time.
const MAX_CONNECTIONS: usize = 1000;

/// How long a request's head may take.
const HEAD_WAIT: Duration = Duration::from_secs(30);

/// How long a client may take to open its streams.
const STREAMS_WAIT: Duration = Duration::from_secs(30);

const SPDY: &str = "SPDY/3.1";
const WEBSOCKET: &str = "websocket";
const SPDY_PROTOCOL: &str = "x-stream-protocol-version";

/// What a token stands for.
enum Offer {
    Command {
        path: &'static str,
        wants: Wants,
        command: Box<dyn Command>,
    },
    PortForward {
        ports: Vec<u16>,
        dial: Arc<dyn Dial>,
    },
}

impl Offer {
    fn path(&self) -> &'static str {
        match self {
            Self::Command { path, .. } => path,
            Self::PortForward { .. } => "portforward",
        }
    }
}

/// The server. It serves as long as the process lives.
pub struct Server {
    address: SocketAddr,
    tokens: Arc<Tokens<Offer>>,
}

impl Server {
    /// Listens on `address` and begins to serve. Must be called within the runtime.
    pub async fn listen(address: SocketAddr) -> Result<Self, StreamingError> {
        let failed = |source| StreamingError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let mut bound = listener.local_addr().map_err(failed)?;
        // The kubelet is on this node: an address that means any is not one to connect to.
        if bound.ip().is_unspecified() {
            let ip = if bound.is_ipv4() {
                Ipv4Addr::LOCALHOST.into()
            } else {
                Ipv6Addr::LOCALHOST.into()
            };
            bound.set_ip(ip);
        }
        let tokens = Arc::new(Tokens::default());
        tokio::spawn(accept_all(listener, tokens.clone()));
        Ok(Self { address: bound, tokens })
    }

    /// A URL for `command`'s streams as a process of its own.
    pub fn exec(&self, wants: Wants, command: impl Command + 'static) -> Result<String, StreamingError> {
        self.offer(Offer::Command {
            path: "exec",
            wants,
            command: Box::new(command),
        })
    }

    /// A URL for the streams of a process that runs already.
    pub fn attach(&self, wants: Wants, command: impl Command + 'static) -> Result<String, StreamingError> {
        self.offer(Offer::Command {
            path: "attach",
            wants,
            command: Box::new(command),
        })
    }

    /// A URL for connections by `dial`. `ports` are those for clients that cannot name them themselves.
    pub fn port_forward(&self, ports: Vec<u16>, dial: impl Dial + 'static) -> Result<String, StreamingError> {
        self.offer(Offer::PortForward {
            ports,
            dial: Arc::new(dial),
        })
    }

    fn offer(&self, offer: Offer) -> Result<String, StreamingError> {
        let path = offer.path();
        let token = self
            .tokens
            .issue(offer)
            .ok_or(StreamingError::TooManyTokens { limit: LIMIT })?;
        Ok(format!("http://{}/{path}/{token}", self.address))
    }
}

async fn accept_all(listener: TcpListener, tokens: Arc<Tokens<Offer>>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let connection = match listener.accept().await {
            Ok((connection, _)) => connection,
            Err(error) => {
                // Out of descriptors, as a rule: some will be free again.
                tracing::warn!(%error, "a streaming client could not be taken");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            tracing::warn!(
                limit = MAX_CONNECTIONS,
                "too many streaming clients: one is turned away"
            );
            continue;
        };
        let place = Arc::new(place);
        tokio::spawn(serve_connection(connection, tokens.clone(), place));
    }
}

/// Held by whoever serves a client, in each of its phases.
type Place = Arc<tokio::sync::OwnedSemaphorePermit>;

async fn serve_connection(connection: TcpStream, tokens: Arc<Tokens<Offer>>, place: Place) {
    let _ = connection.set_nodelay(true);
    let _ = rustix::net::sockopt::set_socket_keepalive(&connection, true);
    let answer = service_fn(move |request| {
        let answer = answer(request, &tokens, &place);
        async move { Ok::<_, Infallible>(answer) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WAIT)
        .max_buf_size(32 << 10)
        .serve_connection(TokioIo::new(connection), answer)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a streaming request ended");
    }
}

fn answer(mut request: Request<Incoming>, tokens: &Tokens<Offer>, place: &Place) -> Response<String> {
    let upgrade = hyper::upgrade::on(&mut request);
    match prepare(&request, tokens) {
        Ok((response, serve)) => {
            let place = place.clone();
            tokio::spawn(async move {
                run(upgrade, serve).await;
                drop(place);
            });
            response
        }
        Err(refusal) => refusal,
    }
}

async fn run(upgrade: OnUpgrade, serve: Serve) {
    match upgrade.await {
        Ok(upgraded) => serve.run(TokioIo::new(upgraded)).await,
        Err(error) => tracing::debug!(%error, "a streaming client left before its upgrade"),
    }
}

/// What an upgraded connection is for.
enum Serve {
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

fn refuse(status: StatusCode, why: impl Into<String>) -> Response<String> {
    let mut response = Response::new(why.into());
    *response.status_mut() = status;
    response
}

/// Redeems the token and agrees on a protocol.
fn prepare(request: &Request<Incoming>, tokens: &Tokens<Offer>) -> Result<(Response<String>, Serve), Response<String>> {
    if ![Method::GET, Method::POST].contains(request.method()) {
        return Err(refuse(StatusCode::METHOD_NOT_ALLOWED, "GET or POST\n"));
    }
    let headers = request.headers();
    let websocket = has_token(headers, header::UPGRADE, WEBSOCKET);
    if !has_token(headers, header::CONNECTION, "upgrade") || !(websocket || has_token(headers, header::UPGRADE, SPDY)) {
        return Err(refuse(
            StatusCode::BAD_REQUEST,
            format!("upgrade to {SPDY} or {WEBSOCKET}\n"),
        ));
    }
    let mut parts = request.uri().path().trim_start_matches('/').split('/');
    let (path, token) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let offer = tokens.redeem(token, |offer| offer.path() == path).ok_or_else(|| {
        refuse(
            StatusCode::NOT_FOUND,
            "no such token: it may be used once, within a minute\n",
        )
    })?;
    if websocket {
        prepare_websocket(headers, offer)
    } else {
        prepare_spdy(headers, offer)
    }
}

fn prepare_spdy(headers: &HeaderMap, offer: Offer) -> Result<(Response<String>, Serve), Response<String>> {
    let offered: Vec<&str> = headers
        .get_all(SPDY_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .collect();
    let (chosen, serve) = match offer {
        Offer::Command { wants, command, .. } => {
            // A client of the first version does not say so.
            let first = offered.is_empty().then_some(("", Version::V1));
            let chosen = first.or_else(|| protocol::choose(offered, &protocol::SPDY_COMMAND));
            let (name, version) = chosen.ok_or_else(|| no_protocol(&protocol::SPDY_COMMAND))?;
            (
                name,
                Serve::SpdyCommand {
                    wants,
                    command,
                    version,
                },
            )
        }
        Offer::PortForward { dial, .. } => {
            let first = offered.is_empty().then_some(("", ()));
            let chosen = first.or_else(|| protocol::choose(offered, &protocol::SPDY_PORT_FORWARD));
            let (name, ()) = chosen.ok_or_else(|| no_protocol(&protocol::SPDY_PORT_FORWARD))?;
            (name, Serve::SpdyPortForward { dial })
        }
    };
    let mut response = switching(SPDY);
    if !chosen.is_empty() {
        response
            .headers_mut()
            .insert(SPDY_PROTOCOL, HeaderValue::from_static(chosen));
    }
    Ok((response, serve))
}

fn prepare_websocket(headers: &HeaderMap, offer: Offer) -> Result<(Response<String>, Serve), Response<String>> {
    let key = headers
        .get(header::SEC_WEBSOCKET_KEY)
        .map(|key| derive_accept_key(key.as_bytes()));
    let accept = key.and_then(|key| HeaderValue::from_str(&key).ok());
    let accept = accept.ok_or_else(|| refuse(StatusCode::BAD_REQUEST, "no Sec-WebSocket-Key\n"))?;
    if headers
        .get(header::SEC_WEBSOCKET_VERSION)
        .is_none_or(|version| version != "13")
    {
        let mut refusal = refuse(StatusCode::UPGRADE_REQUIRED, "version 13 of WebSocket\n");
        refusal
            .headers_mut()
            .insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        return Err(refusal);
    }
    let values = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
    let offered: Vec<&str> = values.filter_map(|value| value.to_str().ok()).collect();
    let (chosen, serve) = match offer {
        Offer::Command { wants, command, .. } => {
            let first = offered.is_empty().then_some(("", (Version::V1, false)));
            let chosen = first.or_else(|| protocol::choose(offered, &protocol::WEBSOCKET_COMMAND));
            let (name, (version, base64)) = chosen.ok_or_else(|| no_protocol(&protocol::WEBSOCKET_COMMAND))?;
            (
                name,
                Serve::WebSocketCommand {
                    wants,
                    command,
                    version,
                    base64,
                },
            )
        }
        Offer::PortForward { ports, dial } => {
            let first = offered
                .is_empty()
                .then_some(("", Forwarding::Channels { base64: false }));
            let chosen = first.or_else(|| protocol::choose(offered, &protocol::WEBSOCKET_PORT_FORWARD));
            let (name, forwarding) = chosen.ok_or_else(|| no_protocol(&protocol::WEBSOCKET_PORT_FORWARD))?;
            match forwarding {
                Forwarding::Tunnel => (name, Serve::Tunnel { dial }),
                // The numbers of channels are bytes.
                Forwarding::Channels { .. } if ports.is_empty() || ports.len() > 127 => {
                    return Err(refuse(
                        StatusCode::BAD_REQUEST,
                        "the request named no ports, or too many\n",
                    ));
                }
                Forwarding::Channels { base64 } => (name, Serve::WebSocketPortForward { ports, dial, base64 }),
            }
        }
    };
    let mut response = switching(WEBSOCKET);
    response.headers_mut().insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    if !chosen.is_empty() {
        response
            .headers_mut()
            .insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(chosen));
    }
    Ok((response, serve))
}

fn has_token(headers: &HeaderMap, name: header::HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .any(|word| word.trim().eq_ignore_ascii_case(token))
}

fn switching(to: &'static str) -> Response<String> {
    let mut response = refuse(StatusCode::SWITCHING_PROTOCOLS, "");
    response
        .headers_mut()
        .insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    response
        .headers_mut()
        .insert(header::UPGRADE, HeaderValue::from_static(to));
    response
}

fn no_protocol<T>(served: &[(&'static str, T)]) -> Response<String> {
    let names: Vec<&str> = served.iter().map(|(name, _)| *name).collect();
    let mut refusal = refuse(
        StatusCode::FORBIDDEN,
        format!("no common protocol: served are {}\n", names.join(", ")),
    );
    for name in names {
        refusal
            .headers_mut()
            .append("x-accepted-stream-protocol-versions", HeaderValue::from_static(name));
    }
    refusal
}

impl Serve {
    async fn run(self, io: TokioIo<Upgraded>) {
        match self {
            Self::SpdyCommand {
                wants,
                command,
                version,
            } => {
                if let Some(client) = spdy_client(spdy::start(io), wants, version).await {
                    command::serve(command, client).await;
                }
            }
            Self::SpdyPortForward { dial } => port_forward::serve(spdy::start(io), dial).await,
            Self::Tunnel { dial } => {
                let socket = websocket::accept(io).await;
                port_forward::serve(spdy::start(websocket::tunnel(socket)), dial).await;
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
                let (link, channels) = websocket::start(websocket::accept(io).await, 5, coding);
                if let Some(client) = websocket_client(link, channels, wants, version).await {
                    command::serve(command, client).await;
                }
            }
            Self::WebSocketPortForward { ports, dial, base64 } => {
                let coding = Coding { base64, ends: false };
                let count = 2 * ports.len() as u8;
                let (link, channels) = websocket::start(websocket::accept(io).await, count, coding);
                forward_channels(link, channels, ports, &*dial).await;
            }
        }
    }
}

/// Waits until the client has opened the streams that the request asked for.
async fn spdy_client(session: Session, wants: Wants, version: Version) -> Option<Client> {
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
    let mut opened = std::collections::HashMap::new();
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
    if !matches!(tokio::time::timeout(STREAMS_WAIT, collect).await, Ok(Some(()))) {
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
    let _ = first.data(bytes::Bytes::new()).await;
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
        let named = bytes::Bytes::copy_from_slice(&port.to_le_bytes());
        let _ = data.data(named.clone()).await;
        let _ = error.data(named).await;
        connections.push(async move { port_forward::connect(dial, port, reader, &data, &error).await });
    }
    futures_util::future::join_all(connections).await;
    link.close().await;
}
