//! Pulls that run at the same time, and pulls that are given up.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crisp::image::registry::Auth;
use crisp::image::{ErrorKind, ImageError, PullRequest};
use crisp::model::ImageId;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::content::{Content, Layer, Room, sha256};
use crate::server::{Reply, Server, Step};

/// Serves with a pause before each large layer's second half.
async fn slow(content: Content, pause: Duration) -> Server {
    Server::start(move |request| {
        let mut reply = content.reply(request);
        if let Some(blob) = content.get(&request.path).filter(|blob| blob.len() > 10_000) {
            let (head, tail) = blob.split_at(blob.len() / 2);
            reply.steps = vec![Step::Send(head.to_vec()), Step::Pause(pause), Step::Send(tail.to_vec())];
        }
        reply
    })
    .await
}

/// Serves the first half of each large layer, and the second once the gate is open.
async fn gated(content: Content) -> (Server, watch::Sender<bool>) {
    let (opener, gate) = watch::channel(false);
    let server = Server::start(move |request| {
        let mut reply = content.reply(request);
        if let Some(blob) = content.get(&request.path).filter(|blob| blob.len() > 10_000) {
            let (head, tail) = blob.split_at(blob.len() / 2);
            reply.steps = vec![
                Step::Send(head.to_vec()),
                Step::Until(gate.clone()),
                Step::Send(tail.to_vec()),
            ];
        }
        reply
    })
    .await;
    (server, opener)
}

type Pull = JoinHandle<Result<ImageId, ImageError>>;

fn begin(room: &Room, reference: String) -> Pull {
    let images = room.images.clone();
    tokio::spawn(async move { images.pull(PullRequest { reference, auth: None }).await })
}

/// The image of a pull that has nothing more to wait for.
async fn ended(pull: Pull) -> ImageId {
    let outcome = tokio::time::timeout(Duration::from_secs(60), pull).await;
    outcome.expect("the pull is held up").unwrap().unwrap()
}

async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < Duration::from_secs(5), "not so: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pulls_of_one_reference_are_one_pull() {
    let layer = Layer::new("file", 500_000);
    let server = slow(
        Content::image("a", "v1", std::slice::from_ref(&layer)),
        Duration::from_millis(100),
    )
    .await;
    let room = Room::new().await;
    let reference = format!("{}/a:v1", server.host());
    let outcomes = futures_util::future::join_all((0..8).map(|_| room.pull(&reference))).await;
    let first = outcomes[0].as_ref().unwrap();
    assert!(outcomes.iter().all(|outcome| outcome.as_ref().unwrap() == first));
    assert_eq!(server.requests().len(), 3, "a manifest, a configuration, a layer");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_layer_of_two_images_is_fetched_once_even_if_the_first_pull_is_given_up() {
    let shared = Layer::new("shared", 500_000);
    let mut content = Content::image("a", "v1", &[shared.clone(), Layer::new("one", 10)]);
    content.add_image("a", "v2", &[shared.clone(), Layer::new("two", 10)]);
    let server = slow(content, Duration::from_millis(300)).await;
    let room = Room::new().await;
    let (one, two) = (format!("{}/a:v1", server.host()), format!("{}/a:v2", server.host()));
    let images = room.images.clone();
    let first = tokio::spawn(async move {
        images
            .pull(PullRequest {
                reference: one,
                auth: None,
            })
            .await
    });
    eventually("the layer is asked for", || server.count("GET", &shared.digest()) == 1).await;
    let images = room.images.clone();
    let second = tokio::spawn(async move {
        images
            .pull(PullRequest {
                reference: two,
                auth: None,
            })
            .await
    });
    eventually("the second pull has its manifest", || {
        server.count("GET", "/manifests/v2") == 1
    })
    .await;
    // The second is given time to join; then the one that began the layer goes away.
    tokio::time::sleep(Duration::from_millis(200)).await;
    first.abort();
    second.await.unwrap().unwrap();
    assert_eq!(server.count("GET", &shared.digest()), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_credentials_make_another_pull() {
    let server = slow(
        Content::image("a", "v1", &[Layer::new("file", 20_000)]),
        Duration::from_millis(50),
    )
    .await;
    let room = Room::new().await;
    let reference = format!("{}/a:v1", server.host());
    let auth = Some(Auth {
        username: "user".to_owned(),
        ..Auth::default()
    });
    let (a, b) = tokio::join!(
        room.pull(&reference),
        room.images.pull(PullRequest {
            reference: reference.clone(),
            auth
        })
    );
    assert_eq!(a.unwrap(), b.unwrap());
    assert_eq!(server.count("GET", "/manifests/v1"), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_that_nobody_waits_for_stops_at_once_and_leaves_nothing() {
    let layers: Vec<_> = (0..4).map(|i| Layer::new(&format!("file{i}"), 500_000)).collect();
    let server = slow(Content::image("a", "v1", &layers), Duration::from_secs(3600)).await;
    let room = Room::with(|config| config.registry.stall_timeout = Duration::from_secs(3600)).await;
    let before = room.files();
    let reference = format!("{}/a:v1", server.host());
    let (images, other) = (room.images.clone(), room.images.clone());
    let request = PullRequest {
        reference: reference.clone(),
        auth: None,
    };
    let again = request.clone();
    let first = tokio::spawn(async move { images.pull(request).await });
    let second = tokio::spawn(async move { other.pull(again).await });
    eventually("all layers are under way", || {
        layers.iter().all(|layer| server.count("GET", &layer.digest()) == 1)
    })
    .await;
    first.abort();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(*server.open.borrow() >= 4, "the other one still waits");
    assert_ne!(room.files(), before);
    let begin = Instant::now();
    second.abort();
    eventually("half layers are gone", || room.files() == before).await;
    assert!(begin.elapsed() < Duration::from_secs(1));
    assert!(room.images.list().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_begun_anew_after_one_was_given_up_succeeds() {
    let layer = Layer::new("file", 500_000);
    let content = Content::image("a", "v1", std::slice::from_ref(&layer));
    let digest = layer.digest();
    let first_time = std::sync::atomic::AtomicBool::new(true);
    let suffix = digest.clone();
    let server = Server::start(move |request| {
        let reply = content.reply(request);
        if request.path.ends_with(&suffix) && first_time.swap(false, std::sync::atomic::Ordering::Relaxed) {
            return Reply {
                steps: vec![Step::Hang],
                ..reply
            }
            .announcing(layer.blob.len());
        }
        reply
    })
    .await;
    let room = Room::with(|config| config.registry.stall_timeout = Duration::from_secs(3600)).await;
    let reference = format!("{}/a:v1", server.host());
    let given_up = tokio::time::timeout(Duration::from_millis(300), room.pull(&reference)).await;
    assert!(given_up.is_err());
    assert_eq!(server.count("GET", &digest), 1);
    room.pull(&reference).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_bad_layer_ends_the_others_too() {
    let layers = [Layer::new("good", 500_000), Layer::new("bad", 400_000)];
    let content = Content::image("a", "v1", &layers);
    let (good, bad) = (layers[0].digest(), layers[1].digest());
    let server = Server::start(move |request| {
        if request.path.ends_with(&bad) {
            return Reply::new(404, "");
        }
        let reply = content.reply(request);
        if request.path.ends_with(&good) {
            let length = content.get(&request.path).unwrap().len();
            return Reply {
                steps: vec![Step::Hang],
                ..reply
            }
            .announcing(length);
        }
        reply
    })
    .await;
    let room = Room::with(|config| config.registry.stall_timeout = Duration::from_secs(3600)).await;
    let before = room.files();
    let begin = Instant::now();
    let error = room.pull(&format!("{}/a:v1", server.host())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(begin.elapsed() < Duration::from_secs(2));
    eventually("half layers are gone", || room.files() == before).await;
}

/// evil.example listed the diffID of a layer that everybody wants and served its blob a byte at a time, each in time
/// for the stall limit. Downloads were shared by diffID alone: whoever pulled the layer from elsewhere joined that one
/// and waited for it without end. Here the blob's second half never comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_never_comes_to_an_end_holds_up_no_pull_from_another() {
    let layer = Layer::new("popular", 500_000);
    let content = Content::image("a", "v1", std::slice::from_ref(&layer));
    let (evil, _gate) = gated(content.clone()).await;
    let honest = Server::start(move |request| content.reply(request)).await;
    let room = Room::with(|config| config.registry.stall_timeout = Duration::from_secs(3600)).await;
    let held_up = begin(&room, format!("{}/a:v1", evil.host()));
    eventually("the layer is asked for", || evil.count("GET", &layer.digest()) == 1).await;
    let image_id = ended(begin(&room, format!("{}/a:v1", honest.host()))).await;
    assert!(!held_up.is_finished());
    assert_eq!(honest.count("GET", &layer.digest()), 1);
    assert!(room.file(&image_id, "popular").is_some());
    held_up.abort();
    eventually("the half layer is gone", || unpacking(&room) == 0).await;
}

/// How many layers are being unpacked.
fn unpacking(room: &Room) -> usize {
    let entries = std::fs::read_dir(room.images.config().dir.join("layers")).unwrap();
    entries
        .filter(|entry| {
            let name = entry.as_ref().unwrap().file_name();
            name.to_string_lossy().starts_with("tmp-")
        })
        .count()
}

/// One layer under way from two registries, both of which wait for their gates.
struct Race {
    room: Room,
    /// The room's files before it.
    before: Vec<String>,
    /// Of the layer's file.
    content: Vec<u8>,
    /// Where the layer comes to lie.
    place: PathBuf,
    pulls: [Pull; 2],
    gates: [watch::Sender<bool>; 2],
    _servers: [Server; 2],
}

impl Race {
    async fn start() -> Self {
        let layer = Layer::new("shared", 500_000);
        let content = Content::image("a", "v1", std::slice::from_ref(&layer));
        let (one, one_gate) = gated(content.clone()).await;
        let (other, other_gate) = gated(content).await;
        let room = Room::with(|config| config.registry.stall_timeout = Duration::from_secs(3600)).await;
        // Without it removed images stay.
        room.images.settle().await.unwrap();
        let before = room.files();
        let pulls = [&one, &other].map(|server| begin(&room, format!("{}/a:v1", server.host())));
        eventually("both are being unpacked", || unpacking(&room) == 2).await;
        let layers = room.images.config().dir.join("layers");
        Self {
            before,
            content: layer.archive[512..][..500_000].to_vec(),
            place: layers.join(&sha256(&layer.archive)["sha256:".len()..]),
            pulls,
            gates: [one_gate, other_gate],
            _servers: [one, other],
            room,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_registries_with_one_layer_the_second_to_end_uses_what_the_first_brought() {
    let race = Race::start().await;
    let inode = || std::fs::metadata(&race.place).unwrap().ino();
    let [first, second] = race.pulls;
    race.gates[0].send(true).unwrap();
    let image_id = ended(first).await;
    let published = inode();
    assert!(!second.is_finished());
    race.gates[1].send(true).unwrap();
    assert_eq!(ended(second).await, image_id);
    assert_eq!(inode(), published);
    assert_eq!(unpacking(&race.room), 0);
    assert_eq!(race.room.images.list()[0].repo_tags.len(), 2);
    // Were the layer still pinned by one of the two, it would stay.
    race.room.images.remove(image_id.as_str()).await.unwrap();
    eventually("all is gone", || race.room.files() == race.before).await;
}

/// Nobody needs the first's layer any more, or a container alone does, when the second comes to its end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_second_to_end_has_its_layer_also_when_the_first_s_image_was_removed_meanwhile() {
    for is_held in [false, true] {
        let race = Race::start().await;
        let images = &race.room.images;
        let [first, second] = race.pulls;
        race.gates[0].send(true).unwrap();
        let image_id = ended(first).await;
        let lease = is_held.then(|| images.hold(&image_id).unwrap());
        images.remove(image_id.as_str()).await.unwrap();
        images.store().sweep(Duration::ZERO);
        assert_eq!(race.place.exists(), is_held);
        assert_eq!(unpacking(&race.room), 1, "what is under way is not swept");
        race.gates[1].send(true).unwrap();
        assert_eq!(ended(second).await, image_id);
        drop(lease);
        images.store().sweep(Duration::ZERO);
        let file = race.room.file(&image_id, "shared");
        assert!(file.is_some_and(|file| file == race.content), "held: {is_held}");
        images.remove(image_id.as_str()).await.unwrap();
        eventually("all is gone", || race.room.files() == race.before).await;
    }
}
