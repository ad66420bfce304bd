//! A connection with a client that behaves, and with others.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::io::DuplexStream;

use super::*;
use crate::streaming::channel::Received;

struct Client {
    io: DuplexStream,
    packer: Packer,
}

impl Client {
    async fn send(&mut self, bytes: &[u8]) {
        self.io.write_all(bytes).await.unwrap();
    }

    async fn open(&mut self, stream: u32) {
        let frame = frame::open(
            stream,
            &Headers::from([("streamtype", "data")]),
            false,
            &mut self.packer,
        )
        .unwrap();
        self.send(&frame).await;
    }

    async fn data(&mut self, stream: u32, fin: bool, bytes: &[u8]) {
        self.send(&frame::data(stream, fin, bytes.len())).await;
        self.send(bytes).await;
    }

    async fn frame(&mut self) -> (Head, Vec<u8>) {
        let mut head = [0; HEAD];
        self.io.read_exact(&mut head).await.unwrap();
        let head = Head::decode(head).unwrap();
        let (Head::Data { length, .. } | Head::Control { length, .. }) = head;
        let mut payload = vec![0; length];
        self.io.read_exact(&mut payload).await.unwrap();
        (head, payload)
    }
}

fn pair() -> (Client, Session) {
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    (
        Client {
            io: theirs,
            packer: Packer::default(),
        },
        start(ours, Duration::from_secs(3600)),
    )
}

#[tokio::test]
async fn a_stream_carries_bytes_both_ways_and_each_way_ends_alone() {
    let (mut client, mut session) = pair();
    client.open(1).await;
    let mut stream = session.streams.recv().await.unwrap();
    assert_eq!(stream.headers.get("streamtype"), Some("data"));
    stream.writer.accept().await;
    assert!(matches!(client.frame().await.0, Head::Control { kind: 2, .. }));
    client.data(1, false, b"there").await;
    client.data(1, true, b"").await;
    assert_eq!(stream.reader.next().await, Received::Data(Bytes::from_static(b"there")));
    assert_eq!(stream.reader.next().await, Received::End);
    stream.writer.data(Bytes::from_static(b"back")).await.unwrap();
    stream.writer.end().await;
    stream.writer.end().await;
    assert_eq!(
        client.frame().await,
        (
            Head::Data {
                stream: 1,
                fin: false,
                length: 4
            },
            b"back".to_vec()
        )
    );
    assert_eq!(
        client.frame().await,
        (
            Head::Data {
                stream: 1,
                fin: true,
                length: 0
            },
            Vec::new()
        )
    );
    client.send(&frame::ping(5)).await;
    assert_eq!(client.frame().await.1, 5u32.to_be_bytes());
}

#[tokio::test]
async fn a_reset_ends_one_stream_alone() {
    let (mut client, mut session) = pair();
    client.open(1).await;
    client.open(3).await;
    let mut first = session.streams.recv().await.unwrap();
    let mut second = session.streams.recv().await.unwrap();
    client.send(&frame::reset(1, false)).await;
    assert_eq!(first.reader.next().await, Received::Reset);
    first.writer.gone().await;
    assert!(first.writer.data(Bytes::from_static(b"x")).await.is_err());
    client.data(3, false, b"y").await;
    assert_eq!(second.reader.next().await, Received::Data(Bytes::from_static(b"y")));
    drop(client);
    assert_eq!(second.reader.next().await, Received::Reset);
    session.link.gone.cancelled().await;
}

#[tokio::test]
async fn data_for_nobody_is_dropped_and_streams_out_of_order_are_refused() {
    let (mut client, mut session) = pair();
    client.data(7, true, &[0; 100_000]).await;
    client.open(4).await;
    assert!(matches!(client.frame().await.0, Head::Control { kind: 3, .. }));
    client.open(9).await;
    let kept = session.streams.recv().await.unwrap();
    assert_eq!(kept.id, 9);
    client.open(9).await;
    assert!(matches!(client.frame().await.0, Head::Control { kind: 3, .. }));
}

#[tokio::test]
async fn nonsense_ends_the_connection_and_says_why() {
    let (mut client, session) = pair();
    client.send(&[0x80, 3, 0, 1, 0, 0, 0, 12]).await;
    client.send(&[1; 12]).await;
    session.link.gone.cancelled().await;
}

/// What a client might send, with a few bytes changed, left out or put in.
fn damaged_talk(random: &mut StdRng) -> Vec<u8> {
    let mut packer = Packer::default();
    let mut talk = Vec::new();
    for number in 0..random.random_range(1..20u32) {
        let stream = 2 * random.random_range(0..=number) + 1;
        let length = random.random_range(0..3000);
        match random.random_range(0..8) {
            0..3 => {
                let id = number.to_string();
                let headers = Headers::from([("streamtype", "data"), ("port", "80"), ("requestid", id.as_str())]);
                talk.extend(frame::open(2 * number + 1, &headers, length % 5 == 0, &mut packer).unwrap());
            }
            3..6 => {
                talk.extend(frame::data(stream, length % 5 == 0, length));
                talk.extend(vec![7; length]);
            }
            6 => talk.extend(frame::reset(stream, false)),
            _ => talk.extend(frame::ping(random.random())),
        }
    }
    for _ in 0..random.random_range(0..4) {
        let at = random.random_range(0..talk.len());
        match random.random_range(0..3) {
            0 => talk[at] = random.random(),
            1 => talk.truncate(at.max(1)),
            _ => talk.insert(at, random.random()),
        }
    }
    talk
}

/// Accepts every stream, takes what comes on it, and sends as much back.
async fn echo_all(mut session: Session) {
    let mut echoes = tokio::task::JoinSet::new();
    while let Some(mut stream) = session.streams.recv().await {
        echoes.spawn(async move {
            stream.writer.accept().await;
            while let Some(bytes) = stream.reader.data().await {
                if stream.writer.data(bytes).await.is_err() {
                    return;
                }
            }
            stream.writer.end().await;
        });
    }
    while let Some(echo) = echoes.join_next().await {
        echo.expect("no panic");
    }
    session.link.close().await;
}

#[tokio::test]
async fn whatever_a_client_sends_its_connection_ends_with_it() {
    for seed in 0..500 {
        let talk = damaged_talk(&mut StdRng::seed_from_u64(seed));
        let (ours, theirs) = tokio::io::duplex(4096);
        let served = tokio::spawn(echo_all(start(ours, Duration::from_secs(3600))));
        let (mut read, mut write) = tokio::io::split(theirs);
        let said = async {
            // It may be cut off in the middle.
            let _ = write.write_all(&talk).await;
            let _ = write.shutdown().await;
        };
        let mut heard = tokio::io::sink();
        let both = async { tokio::join!(said, tokio::io::copy(&mut read, &mut heard)) };
        let ended = tokio::time::timeout(Duration::from_secs(60), both).await;
        assert!(ended.is_ok(), "seed {seed}: the connection stays");
        drop((read, write));
        let ended = tokio::time::timeout(Duration::from_secs(60), served).await;
        assert!(matches!(ended, Ok(Ok(()))), "seed {seed}: {ended:?}");
    }
}

#[tokio::test]
async fn all_that_was_queued_goes_out_before_the_end() {
    let (mut client, mut session) = pair();
    client.open(1).await;
    let stream = session.streams.recv().await.unwrap();
    let writing = tokio::spawn(async move {
        for number in 0..200u8 {
            stream.writer.data(Bytes::from(vec![number; CHUNK])).await.unwrap();
        }
        stream.writer.end().await;
        drop(stream.writer);
        session.link.close().await;
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    for number in 0..200u8 {
        assert_eq!(client.frame().await.1, vec![number; CHUNK]);
    }
    assert!(matches!(client.frame().await.0, Head::Data { fin: true, .. }));
    assert!(matches!(client.frame().await.0, Head::Control { kind: 7, .. }));
    assert_eq!(client.io.read(&mut [0]).await.unwrap(), 0);
    drop(client);
    writing.await.unwrap();
}
