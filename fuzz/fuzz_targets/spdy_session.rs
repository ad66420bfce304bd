//! A whole connection with a client that sends anything: no panic, no stream twice, and an end as soon as the client
//! has gone.

#![no_main]

use std::collections::HashSet;
use std::time::Duration;

use arbitrary::Arbitrary;
use crisp::streaming::spdy;
use crisp::streaming::spdy::frame;
use crisp::streaming::spdy::headers::{Headers, Packer};
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

#[derive(Arbitrary, Debug)]
enum Step<'a> {
    Raw(&'a [u8]),
    Open { stream: u16, fin: bool, headers: Vec<(&'a str, &'a str)> },
    Data { stream: u16, fin: bool, bytes: &'a [u8] },
    /// Data that says another length than it has.
    Torn { stream: u16, length: u32, bytes: &'a [u8] },
    Reset { stream: u16 },
    Ping { id: u32 },
    GoAway,
}

fuzz_target!(|steps: Vec<Step>| {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    runtime.block_on(async {
        let talk = tokio::time::timeout(Duration::from_secs(20), talk(&steps));
        assert!(talk.await.is_ok(), "the connection does not end");
    });
});

async fn talk(steps: &[Step<'_>]) {
    let (ours, theirs) = tokio::io::duplex(4096);
    let session = spdy::start(ours, Duration::from_secs(3600));
    let served = tokio::spawn(serve(session));
    let (mut read, mut write) = tokio::io::split(theirs);
    let reading = async move {
        let mut scratch = [0; 1024];
        while matches!(read.read(&mut scratch).await, Ok(1..)) {}
        read
    };
    let writing = async move {
        let mut packer = Packer::default();
        for step in steps {
            if write.write_all(&bytes(step, &mut packer)).await.is_err() {
                break;
            }
        }
        let _ = write.shutdown().await;
        write
    };
    let (read, write): (tokio::io::ReadHalf<DuplexStream>, _) = tokio::join!(reading, writing);
    drop((read, write));
    served.await.expect("no panic");
}

/// Accepts every stream and sends back what comes on it.
async fn serve(mut session: spdy::Session) {
    let mut seen = HashSet::new();
    let mut echoes = Vec::new();
    while let Some(mut stream) = session.streams.recv().await {
        assert!(stream.id % 2 == 1 && seen.insert(stream.id), "stream {}", stream.id);
        echoes.push(tokio::spawn(async move {
            stream.writer.accept().await;
            while let Some(bytes) = stream.reader.data().await {
                if stream.writer.data(bytes).await.is_err() {
                    return;
                }
            }
            stream.writer.end().await;
        }));
    }
    for echo in echoes {
        echo.await.expect("no panic");
    }
    session.link.close().await;
}

fn bytes(step: &Step, packer: &mut Packer) -> Vec<u8> {
    match step {
        Step::Raw(bytes) => bytes.to_vec(),
        Step::Open { stream, fin, headers } => {
            let headers: Headers =
                headers.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
            frame::open((*stream).into(), &headers, *fin, packer).expect("any headers can be compressed")
        }
        Step::Data { stream, fin, bytes } => {
            [&frame::data((*stream).into(), *fin, bytes.len())[..], bytes].concat()
        }
        Step::Torn { stream, length, bytes } => {
            [&frame::data((*stream).into(), false, *length as usize & frame::MAX_DATA)[..], bytes].concat()
        }
        Step::Reset { stream } => frame::reset((*stream).into(), false),
        Step::Ping { id } => frame::ping(*id),
        Step::GoAway => frame::go_away(0, false),
    }
}
