//! Debian's docker-registry, with a password.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crisp::image::registry::Auth;
use crisp::image::{ErrorKind, PullRequest};

use crate::content::{Layer, OCI_MANIFEST, Room, chain, config_of, manifest_of, sha256};

/// `user` and the bcrypt hash of `secret`.
const HTPASSWD: &str = "user:$2y$04$aEjJvaWp3jpN7Y4eJnIzoOm1evfgGBmx2DazWnb23.XBR17izGYfS\n";

struct Registry {
    process: Child,
    address: String,
    dir: tempfile::TempDir,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Registry {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        let path = |name: &str| dir.path().join(name).display().to_string();
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http: {{addr: {address}}}\nauth: {{htpasswd: {{realm: test, path: {}}}}}\n",
            path("data"),
            path("htpasswd")
        );
        std::fs::write(path("config.yml"), config).unwrap();
        std::fs::write(path("htpasswd"), HTPASSWD).unwrap();
        let process = Command::new("docker-registry")
            .args(["serve", &path("config.yml")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is installed");
        let registry = Self { process, address, dir };
        let begin = Instant::now();
        while tokio::net::TcpStream::connect(&registry.address).await.is_err() {
            assert!(
                begin.elapsed() < Duration::from_secs(10),
                "docker-registry does not listen"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        registry
    }

    async fn push_blob(&self, bytes: &[u8]) {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let uploads = format!("http://{}/v2/a/b/blobs/uploads/", self.address);
        let begun = http
            .post(uploads)
            .basic_auth("user", Some("secret"))
            .send()
            .await
            .unwrap();
        assert_eq!(begun.status(), 202);
        let location = begun.headers()["location"].to_str().unwrap();
        let mut place = begun.url().join(location).unwrap();
        place.query_pairs_mut().append_pair("digest", &sha256(bytes));
        let put = http
            .put(place)
            .basic_auth("user", Some("secret"))
            .body(bytes.to_vec())
            .send()
            .await
            .unwrap();
        assert_eq!(put.status(), 201);
    }

    async fn push(&self, tag: &str, layers: &[Layer]) {
        for layer in layers {
            self.push_blob(&layer.blob).await;
        }
        let config = config_of(layers).to_string().into_bytes();
        self.push_blob(&config).await;
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let url = format!("http://{}/v2/a/b/manifests/{tag}", self.address);
        let request = http
            .put(url)
            .basic_auth("user", Some("secret"))
            .header("content-type", OCI_MANIFEST);
        let put = request
            .body(manifest_of(&config, layers).to_string())
            .send()
            .await
            .unwrap();
        assert_eq!(put.status(), 201);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_comes_from_a_real_registry() {
    let registry = Registry::start().await;
    let layers: Vec<_> = (0..3).map(|i| Layer::new(&format!("file{i}"), 1_000_000)).collect();
    registry.push("v1", &layers).await;
    assert!(registry.dir.path().join("data").exists());
    let room = Room::new().await;
    let reference = format!("{}/a/b:v1", registry.address);
    let request = |password: &str| PullRequest {
        reference: reference.clone(),
        auth: Some(Auth {
            username: "user".to_owned(),
            password: password.to_owned(),
            ..Auth::default()
        }),
    };
    assert_eq!(
        room.images.pull(request("wrong")).await.unwrap_err().kind(),
        ErrorKind::Denied
    );
    let image_id = room
        .images
        .pull(request("secret"))
        .await
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
    for i in 0..3 {
        assert_eq!(room.file(&image_id, &format!("file{i}")).unwrap().len(), 1_000_000);
    }
    assert_eq!(room.images.pull(request("secret")).await.unwrap(), image_id);
    // That it is here already lets nobody in.
    assert_eq!(
        room.images.pull(request("wrong")).await.unwrap_err().kind(),
        ErrorKind::Denied
    );
}
