//! References, manifests and layers of each kind.

use crisp::image::ErrorKind;
use serde_json::json;

use crate::content::{Content, Layer, OCI_INDEX, Room, archive, chain, config_of, manifest_of, sha256};
use crate::server::{Reply, Server};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tag_digest_and_both_name_one_image() {
    let mut content = Content::default();
    let digest = content.add_image("a/b", "v1", &[Layer::new("file", 100_000), Layer::new("other", 10)]);
    let server = Server::start(move |request| content.reply(request)).await;
    let room = Room::new().await;
    let repository = format!("{}/a/b", server.host());

    let by_digest = room.pull(&format!("{repository}@{digest}")).await.unwrap();
    let image = room.images.find(by_digest.as_str()).unwrap();
    assert!(image.repo_tags.is_empty());
    assert_eq!(image.repo_digests, [format!("{repository}@{digest}")]);
    assert_eq!(room.pull(&format!("{repository}:v1")).await.unwrap(), by_digest);
    assert_eq!(
        room.pull(&format!("{repository}:whatever@{digest}")).await.unwrap(),
        by_digest
    );
    let image = room.images.find(by_digest.as_str()).unwrap();
    assert_eq!(image.repo_tags, [format!("{repository}:v1")]);
    assert_eq!(room.file(&by_digest, "file").unwrap().len(), 100_000);
    assert_eq!(room.file(&by_digest, "other").unwrap().len(), 10);
    let layers = server
        .requests()
        .iter()
        .filter(|request| request.path.contains("/blobs/"))
        .count();
    // Two layers, once; the configuration at the first pull and at that by tag, which had to learn what the tag is.
    assert_eq!(layers, 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unchanged_tag_costs_one_head_and_a_moved_one_is_pulled() {
    let content = std::sync::Arc::new(std::sync::Mutex::new(Content::image(
        "a",
        "v1",
        &[Layer::new("one", 10)],
    )));
    let served = content.clone();
    let server = Server::start(move |request| served.lock().unwrap().reply(request)).await;
    let room = Room::new().await;
    let reference = format!("{}/a:v1", server.host());
    let first = room.pull(&reference).await.unwrap();
    let before = server.requests().len();
    assert_eq!(room.pull(&reference).await.unwrap(), first);
    assert_eq!(
        server.requests()[before..]
            .iter()
            .map(|request| request.method.as_str())
            .collect::<Vec<_>>(),
        ["HEAD"]
    );

    content.lock().unwrap().add_image("a", "v1", &[Layer::new("two", 10)]);
    let second = room.pull(&reference).await.unwrap();
    assert_ne!(second, first);
    assert_eq!(room.images.find(&reference).unwrap().id, second);
    assert!(room.images.find(first.as_str()).unwrap().repo_tags.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_leads_to_the_image_for_this_machine() {
    let mut content = Content::default();
    let own = content.add_image("a", "own", &[Layer::new("own", 10)]);
    let foreign = content.add_image("a", "foreign", &[Layer::new("foreign", 10)]);
    let size = |digest: &str, content: &Content| content.get(&format!("/v2/a/manifests/{digest}")).unwrap().len();
    let architecture = config_of(&[])["architecture"].clone();
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [
        {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": foreign, "size": size(&foreign, &content),
         "platform": {"os": "linux", "architecture": "s390x"}},
        {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": own, "size": size(&own, &content),
         "platform": {"os": "linux", "architecture": architecture}},
    ]});
    let digest = content.add_manifest("a", "list", OCI_INDEX, &index);
    let nested = json!({"schemaVersion": 2, "manifests": [
        {"mediaType": OCI_INDEX, "digest": digest, "size": index.to_string().len()}]});
    content.add_manifest("a", "nested", OCI_INDEX, &nested);
    let none = json!({"schemaVersion": 2, "manifests": [
        {"mediaType": OCI_INDEX, "digest": digest, "size": 1, "platform": {"os": "linux", "architecture": "z80"}}]});
    content.add_manifest("a", "none", OCI_INDEX, &none);
    let server = Server::start(move |request| content.reply(request)).await;
    let room = Room::new().await;
    let repository = format!("{}/a", server.host());

    let image_id = room.pull(&format!("{repository}:list")).await.unwrap();
    assert!(room.file(&image_id, "own").is_some());
    assert_eq!(
        room.images.find(image_id.as_str()).unwrap().repo_digests,
        [format!("{repository}@{digest}")]
    );
    assert_eq!(room.pull(&format!("{repository}:nested")).await.unwrap(), image_id);
    let error = room.pull(&format!("{repository}:none")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(chain(&error).contains("only for linux/z80"), "{}", chain(&error));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn layers_may_be_gzip_zstd_or_plain_whatever_they_are_called() {
    let plain = archive("plain", b"1");
    let zstd = archive("zstd", b"2");
    let layers = [
        Layer::new("gzip", 3),
        Layer {
            media_type: "application/vnd.oci.image.layer.v1.tar",
            blob: plain.clone(),
            archive: plain.clone(),
        },
        Layer {
            media_type: "application/vnd.oci.image.layer.v1.tar+zstd",
            blob: zstd::encode_all(zstd.as_slice(), 3).unwrap(),
            archive: zstd,
        },
        Layer {
            media_type: "application/vnd.docker.image.rootfs.diff.tar.gzip",
            blob: plain.clone(),
            archive: plain,
        },
    ];
    let content = Content::image("a", "v1", &layers);
    let server = Server::start(move |request| content.reply(request)).await;
    let room = Room::new().await;
    let image_id = room.pull(&format!("{}/a:v1", server.host())).await.unwrap();
    assert_eq!(room.file(&image_id, "gzip").unwrap().len(), 3);
    assert_eq!(room.file(&image_id, "plain").unwrap(), b"1");
    assert_eq!(room.file(&image_id, "zstd").unwrap(), b"2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_crisp_does_not_take_is_refused_with_the_reason() {
    let layer = Layer::new("file", 10);
    let config = config_of(std::slice::from_ref(&layer)).to_string().into_bytes();
    let mut content = Content::image("a", "good", std::slice::from_ref(&layer));
    let mut foreign = manifest_of(&config, std::slice::from_ref(&layer));
    foreign["layers"][0]["mediaType"] = json!("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip");
    content.add_manifest("a", "foreign", "", &foreign);
    content.add_manifest("a", "old", "", &json!({"schemaVersion": 1, "fsLayers": []}));
    content.add_manifest(
        "a",
        "large",
        "",
        &json!({"schemaVersion": 2, "annotation": "x".repeat(5 << 20)}),
    );
    let mut huge = manifest_of(&config, &[layer]);
    huge["layers"][0]["size"] = json!(1u64 << 60);
    content.add_manifest("a", "huge", "", &huge);
    let server = Server::start(move |request| content.reply(request)).await;
    let room = Room::new().await;
    for (tag, kind, part) in [
        ("foreign", ErrorKind::Unsupported, "foreign"),
        ("old", ErrorKind::Unsupported, "schema 1"),
        ("large", ErrorKind::Exhausted, "more than 4194304 bytes"),
        ("huge", ErrorKind::Exhausted, "only"),
        ("absent", ErrorKind::NotFound, "manifest unknown"),
    ] {
        let error = room.pull(&format!("{}/a:{tag}", server.host())).await.expect_err(tag);
        assert_eq!(error.kind(), kind, "{}", chain(&error));
        assert!(chain(&error).contains(part), "{tag}: {}", chain(&error));
    }
    let error = room.pull("Not A Reference").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(room.images.list().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tag_s_digest_is_computed_here() {
    let content = Content::image("a", "v1", &[Layer::new("file", 10)]);
    let digest = sha256(content.get("/v2/a/manifests/v1").unwrap());
    let without_header = content.clone();
    let server = Server::start(move |request| {
        let mut reply = without_header.reply(request);
        reply
            .headers
            .retain(|(name, _)| name != "docker-content-digest" && name != "content-type");
        reply
    })
    .await;
    let room = Room::new().await;
    let image_id = room.pull(&format!("{}/a:v1", server.host())).await.unwrap();
    let image = room.images.find(image_id.as_str()).unwrap();
    assert_eq!(image.repo_digests, [format!("{}/a@{digest}", server.host())]);

    let lying = Server::start(move |request| match request.path.ends_with("/manifests/v1") {
        true => Reply::new(200, content.get("/v2/a/manifests/v1").unwrap())
            .with("docker-content-digest", sha256(b"something else")),
        false => content.reply(request),
    })
    .await;
    let error = room.pull(&format!("{}/a:v1", lying.host())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{}", chain(&error));
}
