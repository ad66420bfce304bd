//! WebSocket (RFC 6455): messages that begin with the number of their channel, or SPDY within messages.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use super::channel::{CHUNK, Feed, IDLE, Link, Outgoing, Reader, Writer, inbound};

/// The largest message that is taken, in bytes.
const MAX_MESSAGE: usize = 4 << 20;

/// The channel on which a client says, from version 5 on, that another one has ended.
const CLOSE_CHANNEL: u8 = 255;

/// How the bytes of a message are to be understood.
#[derive(Clone, Copy, Debug, Default)]
pub struct Coding {
    /// Channel numbers are digits and data is in base64.
    pub base64: bool,
    /// Channels can end.
    pub ends: bool,
}

/// Takes over an upgraded connection.
pub async fn accept<T: AsyncRead + AsyncWrite + Unpin>(io: T) -> WebSocketStream<T> {
    let config = WebSocketConfig::default()
        .read_buffer_size(16 << 10)
        .write_buffer_size(CHUNK)
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE));
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await
}

/// Serves channels 0 to `count` on `socket`.
pub fn start<T>(socket: WebSocketStream<T>, count: u8, coding: Coding) -> (Link, Vec<(Reader, Writer)>)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (link, outgoing) = Link::new();
    let (sink, stream) = socket.split();
    let mut feeds = Vec::new();
    let mut channels = Vec::new();
    for number in 0..count {
        let (feed, reader) = inbound(&link.room);
        feeds.push(Some(feed));
        channels.push((reader, Writer::new(&link, number.into(), link.gone.child_token())));
    }
    tokio::spawn(read_all(stream, feeds, link.clone(), coding));
    tokio::spawn(write_all(sink, outgoing, link.clone(), coding));
    (link, channels)
}

async fn read_all<T>(stream: SplitStream<WebSocketStream<T>>, feeds: Vec<Option<Feed>>, link: Link, coding: Coding)
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    tokio::select! {
        () = read(stream, feeds, &link, coding) => {}
        () = link.activity.idle(IDLE) => {}
        () = link.gone.cancelled() => {}
    }
    link.gone.cancel();
}

async fn read<T>(mut stream: SplitStream<WebSocketStream<T>>, mut feeds: Vec<Option<Feed>>, link: &Link, coding: Coding)
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(message) = stream.next().await {
        link.activity.touch();
        let mut bytes = match message {
            Ok(Message::Binary(bytes)) => bytes,
            Ok(Message::Text(text)) => text.into(),
            Ok(Message::Close(_)) => return,
            // Pings are answered by the library.
            Ok(_) => continue,
            Err(error) => {
                tracing::debug!(%error, "a WebSocket connection ends");
                return;
            }
        };
        if bytes.is_empty() {
            continue;
        }
        let first = bytes.split_to(1)[0];
        if coding.ends && first == CLOSE_CHANNEL {
            let ended = bytes.first().and_then(|number| feeds.get_mut(usize::from(*number)));
            if let Some(feed) = ended.and_then(Option::take) {
                feed.end();
            }
            continue;
        }
        let number = if coding.base64 { first.wrapping_sub(b'0') } else { first };
        let Some(Some(feed)) = feeds.get(usize::from(number)) else {
            continue;
        };
        if coding.base64 {
            let Ok(plain) = STANDARD.decode(&bytes) else { return };
            bytes = Bytes::from(plain);
        }
        feed.data(bytes).await;
    }
}

async fn write_all<T>(
    mut sink: SplitSink<WebSocketStream<T>, Message>,
    mut outgoing: mpsc::Receiver<Outgoing>,
    link: Link,
    coding: Coding,
) where
    T: AsyncRead + AsyncWrite + Unpin,
{
    // The writer must not keep its own queue open.
    let Link { gone, activity, .. } = link;
    while let Some(outgoing) = outgoing.recv().await {
        let message = match outgoing {
            Outgoing::Data { stream, bytes } => encode(stream, &bytes, coding),
            Outgoing::Close { .. } => {
                let close = CloseFrame {
                    code: CloseCode::Normal,
                    reason: "".into(),
                };
                let _ = sink.send(Message::Close(Some(close))).await;
                return;
            }
            // A channel has neither a beginning nor an end of its own in this direction.
            _ => continue,
        };
        let sent = tokio::select! {
            sent = sink.send(message) => sent,
            () = gone.cancelled() => break,
        };
        if sent.is_err() {
            break;
        }
        activity.touch();
    }
    gone.cancel();
}

fn encode(channel: u32, bytes: &[u8], coding: Coding) -> Message {
    let number = channel as u8;
    if coding.base64 {
        let mut text = String::from(char::from(number.wrapping_add(b'0')));
        STANDARD.encode_string(bytes, &mut text);
        return Message::text(text);
    }
    let mut message = Vec::with_capacity(1 + bytes.len());
    message.push(number);
    message.extend_from_slice(bytes);
    Message::binary(message)
}

/// The bytes within the messages of `socket`, as a connection of its own.
pub fn tunnel<T>(socket: WebSocketStream<T>) -> DuplexStream
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (inner, outer) = tokio::io::duplex(CHUNK);
    let (mut sink, mut stream) = socket.split();
    let (mut from_inner, mut to_inner) = tokio::io::split(outer);
    let inbound = async move {
        while let Some(Ok(message)) = stream.next().await {
            let bytes = match message {
                Message::Binary(bytes) => bytes,
                Message::Close(_) => break,
                Message::Ping(_) | Message::Pong(_) => continue,
                Message::Text(_) | Message::Frame(_) => break,
            };
            if to_inner.write_all(&bytes).await.is_err() {
                break;
            }
        }
        let _ = to_inner.shutdown().await;
    };
    let outbound = async move {
        let mut scratch = vec![0; CHUNK];
        while let Ok(length @ 1..) = from_inner.read(&mut scratch).await {
            if sink
                .send(Message::binary(Bytes::copy_from_slice(&scratch[..length])))
                .await
                .is_err()
            {
                return;
            }
        }
        let close = CloseFrame {
            code: CloseCode::Normal,
            reason: "".into(),
        };
        let _ = sink.send(Message::Close(Some(close))).await;
    };
    tokio::spawn(inbound);
    tokio::spawn(outbound);
    inner
}
