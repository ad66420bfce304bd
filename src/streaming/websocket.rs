//! WebSocket (RFC 6455): messages that begin with the number of their channel, or SPDY within messages.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::protocol::frame::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::channel::{CHUNK, Ending, Feed, Link, Outbox, Outgoing, Reader, Writer, inbound, last_frame, linger};

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

/// Serves channels 0 to `count` on `socket`, which ends when nothing moves on it for `idle`.
pub fn start<T>(socket: WebSocketStream<T>, count: u8, coding: Coding, idle: Duration) -> (Link, Vec<(Reader, Writer)>)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (link, outbox) = Link::new(idle);
    let (sink, stream) = socket.split();
    let mut feeds = Vec::new();
    let mut channels = Vec::new();
    for number in 0..count {
        let (feed, reader) = inbound(&link.room);
        feeds.push(Some(feed));
        channels.push((reader, Writer::new(&link, number.into(), link.gone.child_token())));
    }
    tokio::spawn(read_all(stream, feeds, link.clone(), coding));
    tokio::spawn(write_all(sink, outbox, coding));
    (link, channels)
}

async fn read_all<T>(stream: SplitStream<WebSocketStream<T>>, feeds: Vec<Option<Feed>>, link: Link, coding: Coding)
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let ended = tokio::select! {
        ended = read(stream, feeds, &link, coding) => ended,
        () = link.activity.idle(link.idle) => Ok(()),
        () = link.gone.cancelled() => Ok(()),
    };
    match ended {
        Ok(()) => link.gone.cancel(),
        Err(ending) => link.fail(ending),
    }
}

async fn read<T>(
    mut stream: SplitStream<WebSocketStream<T>>,
    mut feeds: Vec<Option<Feed>>,
    link: &Link,
    coding: Coding,
) -> Result<(), Ending>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(message) = stream.next().await {
        link.activity.touch();
        let mut bytes = match message {
            Ok(Message::Binary(bytes)) => bytes,
            Ok(Message::Text(text)) => text.into(),
            // Pings are answered by the library, and so is the client's close, after which the stream ends.
            Ok(_) => continue,
            Err(error) => return ended_by(&error),
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
            let Ok(plain) = STANDARD.decode(&bytes) else {
                tracing::debug!("a WebSocket message is not base64");
                return Err(Ending::Encoding);
            };
            bytes = Bytes::from(plain);
        }
        feed.data(bytes).await;
    }
    Ok(())
}

/// What there is to say to a client whose connection `error` ended.
fn ended_by(error: &Error) -> Result<(), Ending> {
    tracing::debug!(%error, "a WebSocket connection ends");
    match error {
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => Ok(()),
        Error::Protocol(_) => Err(Ending::Protocol),
        Error::Capacity(_) => Err(Ending::TooLarge),
        Error::Utf8(_) => Err(Ending::Encoding),
        _ => Ok(()),
    }
}

/// The frame that says so (RFC 6455, section 7.4.1).
fn close(ending: Ending) -> Message {
    let code = match ending {
        Ending::Normal => CloseCode::Normal,
        Ending::Protocol => CloseCode::Protocol,
        Ending::TooLarge => CloseCode::Size,
        Ending::Encoding => CloseCode::Invalid,
    };
    Message::Close(Some(CloseFrame {
        code,
        reason: "".into(),
    }))
}

async fn write_all<T>(mut sink: SplitSink<WebSocketStream<T>, Message>, mut outbox: Outbox, coding: Coding)
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(outgoing) = outbox.next().await {
        let message = match outgoing {
            Outgoing::Data { stream, bytes } => encode(stream, &bytes, coding),
            Outgoing::Close { ending } => return outbox.close(ending, sink.send(close(ending))).await,
            // A channel has neither a beginning nor an end of its own in this direction.
            _ => continue,
        };
        if !outbox.deliver(sink.send(message)).await {
            break;
        }
    }
    outbox.give_up();
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

/// The bytes within the messages of `socket`, as a connection of its own; what is to be sent may wait for `idle`.
pub fn tunnel<T>(socket: WebSocketStream<T>, idle: Duration) -> DuplexStream
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (inner, outer) = tokio::io::duplex(CHUNK);
    tokio::spawn(carry(socket, outer, idle));
    inner
}

async fn carry<T>(socket: WebSocketStream<T>, outer: DuplexStream, idle: Duration)
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let (mut sink, mut stream) = socket.split();
    let (from_inner, to_inner) = tokio::io::split(outer);
    let ending = tokio::select! {
        ended = unwrap_messages(&mut stream, to_inner) => ended,
        ended = wrap_messages(from_inner, &mut sink, idle) => ended,
    };
    let Some(ending) = ending else { return };
    let said = tokio::time::timeout(last_frame(ending, idle), sink.send(close(ending))).await;
    if matches!((said, ending), (Ok(Ok(())), Ending::Normal)) {
        // Closing before the client does might drop what it has not read.
        let _ = tokio::time::timeout(linger(idle), async { while let Some(Ok(_)) = stream.next().await {} }).await;
    }
}

/// None: the client has left.
async fn unwrap_messages<T>(
    stream: &mut SplitStream<WebSocketStream<T>>,
    mut to_inner: WriteHalf<DuplexStream>,
) -> Option<Ending>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(message) = stream.next().await {
        match message {
            Ok(Message::Binary(bytes)) => {
                if to_inner.write_all(&bytes).await.is_err() {
                    return Some(Ending::Normal);
                }
            }
            Ok(Message::Text(_)) => return Some(Ending::Encoding),
            Ok(_) => {}
            Err(error) => return ended_by(&error).err(),
        }
    }
    None
}

async fn wrap_messages<T>(
    mut from_inner: ReadHalf<DuplexStream>,
    sink: &mut SplitSink<WebSocketStream<T>, Message>,
    idle: Duration,
) -> Option<Ending>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut scratch = vec![0; CHUNK];
    while let Ok(length @ 1..) = from_inner.read(&mut scratch).await {
        let message = Message::binary(Bytes::copy_from_slice(&scratch[..length]));
        if !matches!(tokio::time::timeout(idle, sink.send(message)).await, Ok(Ok(()))) {
            return None;
        }
    }
    Some(Ending::Normal)
}
