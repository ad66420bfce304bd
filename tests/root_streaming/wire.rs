//! Clients of our own: for what crictl does not do.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use crisp::streaming::spdy::frame::{self, HEAD, Head};
use crisp::streaming::spdy::headers::{Headers, Packer};
use futures_util::{SinkExt, StreamExt};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use crate::node::Node;

/// How long anything may take.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A connection to `url`'s host, and its host and path.
pub fn connect(url: &str) -> (TcpStream, String, String) {
    let (host, path) = url.split_once("://").unwrap().1.split_once('/').unwrap();
    let connection = TcpStream::connect(host).unwrap();
    connection.set_read_timeout(Some(PATIENCE)).unwrap();
    (connection, host.to_owned(), path.to_owned())
}

/// The answer's head to a request of `url` with `headers`, and the connection.
pub fn request(url: &str, headers: &[(&str, &str)]) -> (String, TcpStream) {
    let (mut connection, host, path) = connect(url);
    let mut head = format!("GET /{path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += "\r\n";
    connection.write_all(head.as_bytes()).unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        connection.read_exact(&mut byte).unwrap();
        answer.push(byte[0]);
    }
    (String::from_utf8(answer).unwrap(), connection)
}

/// As [`request`], for SPDY in the newest version; gives the status line.
pub fn upgrade(url: &str) -> (String, TcpStream) {
    let (head, connection) = upgrade_as(url, "v4.channel.k8s.io");
    (head.lines().next().unwrap().to_owned(), connection)
}

/// As [`request`], for SPDY in this version; none is named if it is empty.
fn upgrade_as(url: &str, version: &str) -> (String, TcpStream) {
    let named = ("X-Stream-Protocol-Version", version);
    let headers = [("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1"), named];
    request(url, &headers[..if version.is_empty() { 2 } else { 3 }])
}

/// As [`request`], for WebSocket with this protocol; an upgrade that is granted.
pub fn raw_websocket(url: &str, protocol: &str) -> TcpStream {
    let headers = [
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("Sec-WebSocket-Protocol", protocol),
    ];
    let (head, connection) = request(url, &headers);
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    // The example of RFC 6455, section 1.3.
    assert!(head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{head}");
    connection
}

/// A SPDY client.
pub struct Spdy<C = TcpStream> {
    pub connection: C,
}

impl Spdy {
    /// One with these streams, in this order 1, 3, 5 and so on, all granted.
    pub fn open(url: &str, streams: &[&str]) -> Self {
        Self::open_as(url, "v4.channel.k8s.io", streams)
    }

    pub fn open_as(url: &str, version: &str, streams: &[&str]) -> Self {
        let (head, mut connection) = upgrade_as(url, version);
        assert!(head.starts_with("HTTP/1.1 101"), "{version}: {head}");
        let chosen = head
            .lines()
            .filter_map(|line| line.split_once(": "))
            .find(|(name, _)| name.eq_ignore_ascii_case("x-stream-protocol-version"));
        assert_eq!(chosen.map_or("", |(_, chosen)| chosen), version);
        let mut packer = Packer::default();
        for (number, name) in (0..).zip(streams) {
            let headers = Headers::from([("streamtype", *name)]);
            let frame = frame::open(2 * number + 1, &headers, false, &mut packer).unwrap();
            connection.write_all(&frame).unwrap();
        }
        let mut spdy = Self { connection };
        for _ in streams {
            assert!(
                matches!(spdy.frame(), Some((Head::Control { kind: 2, .. }, _))),
                "granted"
            );
        }
        spdy
    }

    /// One of port-forward: its data to and from `port` is stream 3.
    pub fn forward(url: &str, port: u16) -> Self {
        let (head, connection) = upgrade_as(url, "portforward.k8s.io");
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        Self::forward_by(connection, port)
    }
}

impl<C: Read + Write> Spdy<C> {
    /// As [`Spdy::forward`], over this connection.
    pub fn forward_by(mut connection: C, port: u16) -> Self {
        let (mut packer, port) = (Packer::default(), port.to_string());
        for (stream, kind) in [(1, "error"), (3, "data")] {
            let headers = Headers::from([("streamtype", kind), ("port", port.as_str()), ("requestid", "0")]);
            let frame = frame::open(stream, &headers, false, &mut packer).unwrap();
            connection.write_all(&frame).unwrap();
        }
        Self { connection }
    }

    pub fn send(&mut self, stream: u32, fin: bool, bytes: &[u8]) {
        self.connection
            .write_all(&frame::data(stream, fin, bytes.len()))
            .unwrap();
        self.connection.write_all(bytes).unwrap();
    }

    /// What comes on the first four streams until the connection ends.
    pub fn rest(&mut self) -> [String; 4] {
        let mut texts = [const { String::new() }; 4];
        while let Some((head, payload)) = self.frame() {
            if let Head::Data { stream, .. } = head {
                texts[stream as usize / 2] += &String::from_utf8(payload).expect("text");
            }
        }
        texts
    }

    /// The next frame, none at the end of the connection.
    pub fn frame(&mut self) -> Option<(Head, Vec<u8>)> {
        let mut head = [0; HEAD];
        self.connection.read_exact(&mut head).ok()?;
        let head = Head::decode(head).expect("a frame");
        let (Head::Data { length, .. } | Head::Control { length, .. }) = head;
        let mut payload = vec![0; length];
        self.connection.read_exact(&mut payload).ok()?;
        Some((head, payload))
    }
}

/// What a WebSocket connection said until its end.
#[derive(Debug, Default)]
pub struct Said {
    pub channels: Vec<Vec<u8>>,
    pub close: Option<CloseCode>,
}

impl Said {
    pub fn text(&self, channel: usize) -> String {
        String::from_utf8_lossy(self.channels.get(channel).map_or(&[], Vec::as_slice)).into_owned()
    }
}

/// A WebSocket client by a library.
pub struct WebSocket {
    pub socket: WebSocketStream<tokio::net::TcpStream>,
    /// Whether channel numbers are digits and data is in base64.
    pub base64: bool,
}

impl WebSocket {
    /// Offers `protocol`, or none if it is empty; the server must choose it.
    pub async fn open(url: &str, protocol: &str) -> Self {
        let (connection, _, _) = connect(url);
        connection.set_nonblocking(true).unwrap();
        let connection = tokio::net::TcpStream::from_std(connection).unwrap();
        let mut request = url.replacen("http", "ws", 1).into_client_request().unwrap();
        if !protocol.is_empty() {
            let name = "Sec-WebSocket-Protocol";
            request.headers_mut().insert(name, protocol.parse().unwrap());
        }
        let (socket, answer) = tokio_tungstenite::client_async(request, connection)
            .await
            .expect("granted");
        let chosen = answer.headers().get("Sec-WebSocket-Protocol");
        assert_eq!(chosen.map_or("", |name| name.to_str().unwrap()), protocol);
        Self {
            socket,
            base64: protocol.contains("base64"),
        }
    }

    pub async fn send(&mut self, channel: u8, bytes: &[u8]) {
        let message = if self.base64 {
            Message::text(format!("{channel}{}", STANDARD.encode(bytes)))
        } else {
            Message::binary([&[channel], bytes].concat())
        };
        self.socket.send(message).await.unwrap();
    }

    /// The next message's channel and bytes; what else comes is passed over, but for the end.
    pub async fn next(&mut self) -> Result<(u8, Vec<u8>), Option<CloseCode>> {
        loop {
            match tokio::time::timeout(PATIENCE, self.socket.next())
                .await
                .expect("in time")
            {
                Some(Ok(Message::Binary(bytes))) if !self.base64 => return Ok((bytes[0], bytes[1..].to_vec())),
                Some(Ok(Message::Text(text))) if self.base64 => {
                    let (channel, data) = text.split_at(1);
                    return Ok((channel.parse().unwrap(), STANDARD.decode(data).unwrap()));
                }
                Some(Ok(Message::Close(frame))) => return Err(frame.map(|frame| frame.code)),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Waits for `bytes` on `channel`.
    pub async fn sees(&mut self, channel: u8, bytes: &str) {
        let mut seen = String::new();
        while !seen.contains(bytes) {
            let (from, data) = self.next().await.unwrap_or_else(|end| panic!("{end:?} after {seen:?}"));
            if from == channel {
                seen += &String::from_utf8_lossy(&data);
            }
        }
    }

    /// All that comes, to the end.
    pub async fn rest(&mut self) -> Said {
        let mut said = Said::default();
        loop {
            match self.next().await {
                Ok((channel, data)) => {
                    let channel = usize::from(channel);
                    said.channels.resize(said.channels.len().max(channel + 1), Vec::new());
                    said.channels[channel].extend(data);
                }
                Err(code) => {
                    said.close = code;
                    return said;
                }
            }
        }
    }
}

/// SPDY's bytes by WebSocket, as port-forward has them.
pub struct Tunnel<'a> {
    node: &'a Node,
    client: WebSocket,
    unread: Vec<u8>,
}

impl<'a> Tunnel<'a> {
    pub fn open(node: &'a Node, url: &str) -> Self {
        Self {
            node,
            client: node.wait(WebSocket::open(url, "SPDY/3.1+portforward.k8s.io")),
            unread: Vec::new(),
        }
    }
}

impl Read for Tunnel<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.unread.is_empty() {
            let socket = &mut self.client.socket;
            let next = self
                .node
                .wait(async { tokio::time::timeout(PATIENCE, socket.next()).await });
            match next.expect("in time") {
                Some(Ok(Message::Binary(bytes))) => self.unread.extend(bytes),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Close(_))) | None => return Ok(0),
                other => panic!("{other:?}"),
            }
        }
        let length = buffer.len().min(self.unread.len());
        buffer[..length].copy_from_slice(&self.unread[..length]);
        self.unread.drain(..length);
        Ok(length)
    }
}

impl Write for Tunnel<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let message = Message::binary(bytes.to_vec());
        let sent = self.node.wait(self.client.socket.send(message));
        sent.map(|()| bytes.len()).map_err(std::io::Error::other)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
