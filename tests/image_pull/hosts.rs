//! Mirrors, authorities and client certificates, as `hosts.toml` has them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crisp::image::ErrorKind;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig, crypto};

use crate::content::{Content, Layer, Room, chain};
use crate::server::{Reply, Server, Step};

fn layer() -> Layer {
    Layer::new("file", 2_000_000)
}

fn content() -> Content {
    Content::image("a", "v1", &[layer()])
}

async fn honest() -> Server {
    let content = content();
    Server::start(move |request| content.reply(request)).await
}

fn mirrors(hosts: &[&Server]) -> String {
    hosts
        .iter()
        .map(|server| format!("[host.\"http://{}\"]\n", server.host()))
        .collect()
}

async fn pulls(room: &Room, registry: &str) {
    let image_id = room
        .pull(&format!("{registry}/a:v1"))
        .await
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(room.file(&image_id, "file").unwrap().len(), 2_000_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_is_asked_for_the_registry_s_repositories() {
    let mirror = honest().await;
    let room = Room::new().await;
    room.configure("docker.io", &mirrors(&[&mirror]));
    let image_id = room.pull("docker.io/a/../a:v1").await;
    assert_eq!(image_id.unwrap_err().kind(), ErrorKind::Invalid);
    room.configure("registry.invalid", &mirrors(&[&mirror]));
    pulls(&room, "registry.invalid").await;
    assert!(
        mirror
            .requests()
            .iter()
            .all(|request| request.query == "ns=registry.invalid")
    );
    let image = room.images.find("registry.invalid/a:v1").unwrap();
    assert_eq!(
        image.repo_tags,
        ["registry.invalid/a:v1"],
        "the mirror is not in the names"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_host_is_asked_when_one_is_down_or_has_it_not() {
    let down = Server::start(|_| Reply::new(500, "")).await;
    let empty = Server::start(|_| Reply::new(404, "")).await;
    let refusing = Server::start(|_| Reply::new(403, "")).await;
    let (good, unneeded) = (honest().await, honest().await);
    let gone = Server::start(|_| Reply::new(500, "")).await;
    let room = Room::with(|config| config.registry.backoff = Duration::from_secs(30)).await;
    room.configure(
        "registry.invalid",
        &mirrors(&[&gone, &down, &empty, &refusing, &good, &unneeded]),
    );
    drop(gone);
    let begin = Instant::now();
    pulls(&room, "registry.invalid").await;
    assert!(
        begin.elapsed() < Duration::from_secs(10),
        "no pause before the next host"
    );
    assert!(unneeded.requests().is_empty());
    assert_eq!(
        down.requests().len(),
        1,
        "what was down comes last for the rest of the pull"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_layer_begun_at_one_host_is_finished_at_the_next() {
    let content = content();
    let digest = layer().digest();
    let suffix = digest.clone();
    let dying = Server::start(move |request| {
        let reply = content.reply(request);
        if !request.path.ends_with(&suffix) {
            return reply;
        }
        let blob = content.get(&request.path).unwrap();
        let mut reply = reply.announcing(blob.len());
        reply.steps = vec![Step::Send(blob[..1_000_000].to_vec()), Step::Cut];
        reply
    })
    .await;
    let good = honest().await;
    let room = Room::new().await;
    room.configure("registry.invalid", &mirrors(&[&dying, &good]));
    pulls(&room, "registry.invalid").await;
    let requests = good.requests();
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].range_start(), Some(1_000_000));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_lying_mirror_serves_is_fetched_anew_elsewhere() {
    let lies = content();
    let liar = Server::start(move |request| {
        let mut reply = lies.reply(request);
        if request.path.contains("/blobs/")
            && let Some(Step::Send(bytes)) = reply.steps.first_mut()
        {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        }
        reply
    })
    .await;
    let good = honest().await;
    let room = Room::new().await;
    room.configure("registry.invalid", &mirrors(&[&liar, &good]));
    pulls(&room, "registry.invalid").await;
    assert_eq!(good.count("GET", &layer().digest()), 1);
    assert_eq!(
        good.requests()
            .iter()
            .filter(|request| request.range_start().is_some())
            .count(),
        0
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_that_may_only_be_pulled_from_is_not_asked_for_tags() {
    let (content_only, both) = (honest().await, honest().await);
    let room = Room::new().await;
    let text = format!(
        "[host.\"http://{}\"]\ncapabilities = [\"pull\"]\n[host.\"http://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
        content_only.host(),
        both.host()
    );
    room.configure("registry.invalid", &text);
    pulls(&room, "registry.invalid").await;
    assert_eq!(content_only.count("GET", "/manifests/v1"), 0);
    assert_eq!(content_only.count("GET", &layer().digest()), 1);
    assert_eq!(both.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_configuration_is_read_at_each_pull_and_its_mistakes_are_told() {
    let mirror = honest().await;
    let room = Room::new().await;
    room.configure("registry.invalid", "capabilities = 3\n[host.\"nowhere://x\"]");
    let error = room.pull("registry.invalid/a:v1").await.unwrap_err();
    let text = chain(&error);
    assert!(
        text.contains("nowhere://x") && text.contains("capabilities") && text.contains("hosts.toml"),
        "{text}"
    );
    room.configure("registry.invalid", &mirrors(&[&mirror]));
    pulls(&room, "registry.invalid").await;
}

struct Pki {
    authority: CertifiedIssuer<'static, KeyPair>,
}

impl Pki {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self {
            authority: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap(),
        }
    }

    /// Certificate and key in PEM form, and the certificate in DER form.
    fn issue(&self, name: &str) -> (String, String, rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.authority).unwrap();
        (certificate.pem(), key.serialize_pem(), certificate, key)
    }

    fn server(&self, wants_client: bool) -> ServerConfig {
        let (_, _, certificate, key) = self.issue("127.0.0.1");
        let provider = Arc::new(crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = if wants_client {
            let mut roots = RootCertStore::empty();
            roots.add(self.authority.der().clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .unwrap();
            builder.with_client_cert_verifier(verifier)
        } else {
            builder.with_no_client_auth()
        };
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        builder.with_single_cert(vec![certificate.der().clone()], key).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_own_authority_and_a_client_certificate_are_used() {
    let pki = Pki::new();
    let content = content();
    let server = Server::start_tls(pki.server(true), move |request| content.reply(request)).await;
    let room = Room::new().await;
    let registry = server.host();
    let base = format!("server = \"https://{registry}\"\n");

    room.configure(&registry, &base);
    let error = room.pull(&format!("{registry}/a:v1")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "an unknown authority");
    assert!(chain(&error).contains("certificate"), "{}", chain(&error));

    let directory = room.dir.path().join("certs.d").join(&registry);
    std::fs::write(directory.join("ca.pem"), pki.authority.pem()).unwrap();
    room.configure(&registry, &format!("{base}ca = \"ca.pem\"\n"));
    let error = room.pull(&format!("{registry}/a:v1")).await.unwrap_err();
    assert_eq!(
        error.kind(),
        ErrorKind::Unavailable,
        "no client certificate: {}",
        chain(&error)
    );

    let (certificate, key, ..) = pki.issue("client");
    std::fs::write(directory.join("client.pem"), certificate).unwrap();
    std::fs::write(directory.join("client-key.pem"), key).unwrap();
    room.configure(
        &registry,
        &format!("{base}ca = \"ca.pem\"\nclient = [[\"client.pem\", \"client-key.pem\"]]\n"),
    );
    pulls(&room, &registry).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verification_can_be_skipped_and_is_not_by_default() {
    let pki = Pki::new();
    let content = content();
    let server = Server::start_tls(pki.server(false), move |request| content.reply(request)).await;
    let room = Room::new().await;
    let registry = server.host();
    room.configure(
        &registry,
        &format!("server = \"https://{registry}\"\nskip_verify = true\n"),
    );
    pulls(&room, &registry).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_s_directories_without_hosts_toml_are_read() {
    let pki = Pki::new();
    let content = content();
    let server = Server::start_tls(pki.server(true), move |request| content.reply(request)).await;
    let mirror = server.host();
    let room = Room::new().await;
    let directory = room.dir.path().join("certs.d").join(mirror.replace(':', "_") + "_");
    std::fs::create_dir_all(&directory).unwrap();
    let (certificate, key, ..) = pki.issue("client");
    std::fs::write(directory.join("ca.crt"), pki.authority.pem()).unwrap();
    std::fs::write(directory.join("client.cert"), certificate).unwrap();
    std::fs::write(directory.join("client.key"), key).unwrap();
    pulls(&room, &mirror).await;
}

/// The environment is the process's, so the pull runs in a process of its own: this test again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proxies_of_the_environment_are_used() {
    const CHILD: &str = "CRISP_TEST_BEHIND_PROXY";
    if std::env::var_os(CHILD).is_some() {
        let room = Room::new().await;
        room.configure("registry.invalid", "server = \"http://registry.invalid\"");
        return pulls(&room, "registry.invalid").await;
    }
    let content = content();
    let proxy = Server::start(move |request| {
        let mut request = request.clone();
        // A proxy is asked by the whole address.
        request.path = request
            .path
            .strip_prefix("http://registry.invalid")
            .expect("an address")
            .to_owned();
        content.reply(&request)
    })
    .await;
    let child = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "hosts::proxies_of_the_environment_are_used"])
        .env(CHILD, "1")
        .env("HTTP_PROXY", format!("http://{}", proxy.host()))
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
    assert_eq!(proxy.requests().len(), 3);
}
