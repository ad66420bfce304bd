//! Registries that are cut, slow, busy or lying.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crisp::image::ErrorKind;

use crate::content::{Content, Layer, Room, archive, chain, gzip};
use crate::server::{Reply, Request, Server, Step};

const SIZE: usize = 3_000_000;

fn large() -> (Content, Layer) {
    let layer = Layer::new("large", SIZE);
    (Content::image("a", "v1", std::slice::from_ref(&layer)), layer)
}

/// Serves `content`, but the layer by `layer`, which gets the number of the request for it.
async fn server(
    content: Content,
    blob: &Layer,
    layer: impl Fn(usize, &Request, &Content) -> Reply + Send + Sync + 'static,
) -> Server {
    let digest = blob.digest();
    let count = AtomicUsize::new(0);
    Server::start(move |request| match request.path.ends_with(&digest) {
        true => layer(count.fetch_add(1, Ordering::Relaxed), request, &content),
        false => content.reply(request),
    })
    .await
}

async fn pulls(room: &Room, server: &Server) {
    let image_id = room
        .pull(&format!("{}/a:v1", server.host()))
        .await
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(room.file(&image_id, "large").unwrap().len(), SIZE);
}

async fn fails(room: &Room, server: &Server, kind: ErrorKind, part: &str) {
    let before = room.files();
    let error = room.pull(&format!("{}/a:v1", server.host())).await.unwrap_err();
    assert_eq!(error.kind(), kind, "{}", chain(&error));
    assert!(chain(&error).contains(part), "{}", chain(&error));
    // What is unlinked is so in the background.
    let begin = Instant::now();
    while room.files() != before {
        assert!(
            begin.elapsed() < Duration::from_secs(5),
            "left behind: {:?}",
            room.files()
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The bytes of the layer that `request` asks for, cut after `length`.
fn cut(request: &Request, content: &Content, length: usize, end: Step) -> Reply {
    let blob = content.get(&request.path).unwrap();
    let start = request.range_start().unwrap_or(0);
    let mut reply = content.reply(request).announcing(blob.len() - start);
    reply.steps = vec![Step::Send(blob[start..(start + length).min(blob.len())].to_vec()), end];
    reply
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_layer_that_is_cut_goes_on_at_the_byte_where_it_ended() {
    let (content, layer) = large();
    let server = server(content, &layer, |number, request, content| match number {
        // More often than a pull tries without progress: each of these brings something.
        0..=5 => cut(request, content, 400_000, Step::Cut),
        _ => content.reply(request),
    })
    .await;
    let room = Room::new().await;
    pulls(&room, &server).await;
    let ranges: Vec<_> = server
        .requests()
        .iter()
        .filter(|request| request.path.ends_with(&layer.digest()))
        .map(|request| request.range_start().unwrap_or(0))
        .collect();
    assert_eq!(
        ranges,
        [0, 400_000, 800_000, 1_200_000, 1_600_000, 2_000_000, 2_400_000]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_knows_no_ranges_serves_all_again() {
    let (content, layer) = large();
    let server = server(content, &layer, |number, request, content| {
        let mut whole = request.clone();
        whole.headers.remove("range");
        match number {
            0 => cut(&whole, content, 1_000_000, Step::Cut),
            _ => content.reply(&whole),
        }
    })
    .await;
    pulls(&Room::new().await, &server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_connection_is_given_up_and_a_slow_one_is_not() {
    let (content, layer) = large();
    let stalled = server(content.clone(), &layer, |number, request, content| match number {
        0 => cut(request, content, 1_000_000, Step::Hang),
        _ => content.reply(request),
    })
    .await;
    let begin = Instant::now();
    pulls(&Room::new().await, &stalled).await;
    assert!(begin.elapsed() > Duration::from_millis(600));
    assert_eq!(stalled.count("GET", &layer.digest()), 2);

    let slow = server(content, &layer, |_, request, content| {
        let mut reply = content.reply(request);
        let blob = content.get(&request.path).unwrap();
        reply.steps = Vec::new();
        for chunk in blob.chunks(blob.len() / 5) {
            reply = reply
                .then(Step::Send(chunk.to_vec()))
                .then(Step::Pause(Duration::from_millis(200)));
        }
        reply
    })
    .await;
    pulls(&Room::new().await, &slow).await;
    assert_eq!(slow.count("GET", &layer.digest()), 1, "slow is not stalled");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_always_hangs_fails_the_pull_in_bounded_time() {
    let (content, layer) = large();
    let server = server(content, &layer, |_, request, content| {
        cut(request, content, 0, Step::Hang)
    })
    .await;
    fails(&Room::new().await, &server, ErrorKind::Timeout, "nothing received").await;
    assert_eq!(server.count("GET", &layer.digest()), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_registry_is_asked_again_when_it_says() {
    let (content, _) = large();
    let count = Arc::new(AtomicUsize::new(0));
    // Under test is that the registry's own word is kept (RFC 9110, Retry-After).
    let server = Server::start(move |request| match count.fetch_add(1, Ordering::Relaxed) {
        0 => Reply::new(429, "").with("retry-after", "1"),
        1 => Reply::new(503, ""),
        _ => content.reply(request),
    })
    .await;
    let begin = Instant::now();
    pulls(&Room::new().await, &server).await;
    assert!(begin.elapsed() >= Duration::from_secs(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_that_is_too_long_fails_the_pull_at_once() {
    // Under test is that the registry's own word (RFC 9110, Retry-After) is not waited for without end.
    let server = Server::start(|_| {
        let body = r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"limit\u0007 reached"}]}"#;
        Reply::new(429, body).with("retry-after", "3600")
    })
    .await;
    let begin = Instant::now();
    fails(
        &Room::new().await,
        &server,
        ErrorKind::Unavailable,
        "3600s: TOOMANYREQUESTS: limit reached",
    )
    .await;
    assert!(begin.elapsed() < Duration::from_secs(1));
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_is_down_is_unavailable() {
    let server = Server::start(|_| Reply::new(500, "")).await;
    fails(&Room::new().await, &server, ErrorKind::Unavailable, "status 500").await;
    assert_eq!(server.requests().len(), 3);
    let address = server.host();
    drop(server);
    let error = Room::new().await.pull(&format!("{address}/a:v1")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(chain(&error).contains("refused"), "{}", chain(&error));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_layer_with_another_digest_is_not_published() {
    let (content, layer) = large();
    let mut other = Layer::new("other", SIZE);
    other.blob.resize(layer.blob.len(), 0);
    let lie = other.blob.clone();
    let server = server(content, &layer, move |_, _, _| Reply::new(200, lie.as_slice())).await;
    fails(&Room::new().await, &server, ErrorKind::Corrupt, "layer").await;

    // The right archive, compressed in another way: only the digest of the blob tells.
    let (content, layer) = large();
    let mut lie = layer.blob.clone();
    lie[9] ^= 1;
    let server = self::server(content, &layer, move |_, _, _| Reply::new(200, lie.as_slice())).await;
    fails(&Room::new().await, &server, ErrorKind::Corrupt, "expected sha256:").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_layer_of_another_length_is_not_published() {
    let (content, layer) = large();
    for change in [-1000isize, 1000] {
        let mut lie = layer.blob.clone();
        lie.resize(lie.len().wrapping_add_signed(change), 0);
        let server = server(content.clone(), &layer, move |_, _, _| Reply::new(200, lie.as_slice())).await;
        fails(&Room::new().await, &server, ErrorKind::Corrupt, "bytes, expected").await;
        assert_eq!(server.count("GET", &layer.digest()), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_layer_that_is_not_what_the_configuration_says_is_not_published() {
    let (_, good) = large();
    let lie = archive("large", b"other");
    // The blob is what the manifest says; what is in it is not what the configuration says.
    let layer = Layer {
        blob: gzip(&lie),
        ..good
    };
    let content = Content::image("a", "v1", std::slice::from_ref(&layer));
    let server = server(content, &layer, |_, request, content| content.reply(request)).await;
    fails(&Room::new().await, &server, ErrorKind::Corrupt, "unpack layer").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redirects_that_lead_astray_are_refused() {
    let (content, layer) = large();
    let lost = server(content.clone(), &layer, |_, request, _| {
        Reply::new(307, "").with("location", request.path.clone())
    })
    .await;
    fails(&Room::new().await, &lost, ErrorKind::Unavailable, "too many").await;
    let odd = server(content, &layer, |_, _, _| {
        Reply::new(307, "").with("location", "file:///etc/passwd")
    })
    .await;
    fails(
        &Room::new().await,
        &odd,
        ErrorKind::Unavailable,
        "neither http nor https",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_that_was_not_asked_for_is_refused() {
    let (content, layer) = large();
    let server = server(content, &layer, |number, request, content| match number {
        0 => cut(request, content, 1_000_000, Step::Cut),
        _ => {
            let blob = content.get(&request.path).unwrap();
            Reply::new(206, &blob[2_000_000..]).with("content-range", "bytes 2000000-2999999/3000000")
        }
    })
    .await;
    fails(&Room::new().await, &server, ErrorKind::Unavailable, "another range").await;
}
