//! Images made of the host's busybox, and a registry for them.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, OnceLock};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Where the registry is in every world.
pub const ADDRESS: &str = "127.0.0.1:5005";

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

pub const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1000:Alice:/home/alice:/bin/sh\n";
pub const GROUP: &str = "root:x:0:\nusers:x:1000:\nstaff:x:50:alice\naudio:x:63:bob,alice\nvideo:x:44:bob\n";

pub fn sha256(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// A reference to a tag that this registry has.
pub fn reference(name: &str) -> String {
    format!("{ADDRESS}/{name}:1")
}

/// What paths below `/v2` answer: content type and body.
type Content = BTreeMap<String, (String, Vec<u8>)>;

struct Archive(tar::Builder<Vec<u8>>);

impl Archive {
    fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn entry(&mut self, kind: tar::EntryType, path: &str, mode: u32, owner: u64, content: &[u8]) {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(mode);
        header.set_uid(owner);
        header.set_gid(owner);
        self.0.append_data(&mut header, path, content).expect("memory takes it");
    }

    fn directory(&mut self, path: &str, mode: u32) {
        self.entry(tar::EntryType::Directory, path, mode, 0, &[]);
    }

    fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entry(tar::EntryType::Regular, path, mode, 0, content);
    }

    fn link(&mut self, path: &str, target: &str) {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        self.0.append_link(&mut header, path, target).expect("memory takes it");
    }

    fn finish(self) -> Vec<u8> {
        self.0.into_inner().expect("memory takes it")
    }
}

/// The layer that all images share.
fn busybox() -> Vec<u8> {
    let program = std::fs::read("/bin/busybox").expect("busybox-static is installed");
    let listed = std::process::Command::new("/bin/busybox")
        .arg("--list")
        .output()
        .expect("busybox runs");
    let mut archive = Archive::new();
    for (path, mode) in [
        ("bin", 0o755),
        ("etc", 0o755),
        ("root", 0o700),
        ("tmp", 0o1777),
        ("home", 0o755),
        ("data", 0o755),
    ] {
        archive.directory(path, mode);
    }
    archive.file("bin/busybox", 0o755, &program);
    for applet in String::from_utf8(listed.stdout)
        .expect("names")
        .lines()
        .filter(|name| *name != "busybox")
    {
        archive.link(&format!("bin/{applet}"), "busybox");
    }
    archive.file("etc/passwd", 0o644, PASSWD.as_bytes());
    archive.file("etc/group", 0o644, GROUP.as_bytes());
    archive.entry(tar::EntryType::Directory, "home/alice", 0o755, 1000, &[]);
    archive.entry(tar::EntryType::Regular, "data/note", 0o640, 1000, b"from the image");
    archive.file("etc/not-executable", 0o644, b"#!/bin/sh\n");
    archive.file("bin/no-interpreter", 0o755, b"#!/no/such/interpreter\n");
    archive.file("bin/itself", 0o755, b"#!/proc/self/exe\n");
    archive.finish()
}

fn add(content: &mut Content, name: &str, tags: &[&str], config: Value, layers: &[&[u8]]) {
    let diff_ids: Vec<String> = layers.iter().map(|layer| sha256(layer)).collect();
    let architecture = if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    };
    let config = json!({
        "os": "linux", "architecture": architecture, "config": config,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = config.to_string().into_bytes();
    let mut blob = |bytes: &[u8]| {
        let digest = sha256(bytes);
        content.insert(
            format!("/v2/{name}/blobs/{digest}"),
            ("application/octet-stream".to_owned(), bytes.to_vec()),
        );
        digest
    };
    let described: Vec<Value> = layers
        .iter()
        .map(|layer| json!({"mediaType": LAYER, "digest": blob(layer), "size": layer.len()}))
        .collect();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "layers": described,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json", "digest": blob(&config), "size": config.len(),
        },
    });
    let bytes = manifest.to_string().into_bytes();
    let digest = sha256(&bytes);
    for tag in tags.iter().copied().chain([digest.as_str()]) {
        content.insert(
            format!("/v2/{name}/manifests/{tag}"),
            (MANIFEST.to_owned(), bytes.clone()),
        );
    }
}

/// A layer with one file of `size` bytes that no other image has.
fn ballast(size: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let bytes: Vec<u8> = std::iter::repeat_with(|| {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 56) as u8
    })
    .take(size)
    .collect();
    let mut archive = Archive::new();
    archive.file("ballast", 0o644, &bytes);
    archive.finish()
}

fn content() -> Content {
    let (base, mut content) = (busybox(), Content::new());
    let path = "PATH=/usr/bin:/bin";
    add(
        &mut content,
        "toolbox",
        &["1"],
        json!({"Cmd": ["sh"], "Env": [path]}),
        &[&base],
    );
    // Says of itself whatever an image can say.
    let talkative = json!({
        "Entrypoint": ["/bin/sh", "-c", "echo \"entry $0 $*\"; echo \"env $FROM $OVER\"; pwd; id -u; sleep 1000"],
        "Cmd": ["image-argument"], "Env": [path, "FROM=image", "OVER=image"], "User": "alice", "WorkingDir": "/made/by/crisp",
        "Volumes": {"/data": {}, "/fresh": {}}, "StopSignal": "SIGUSR1",
    });
    add(&mut content, "talkative", &["1"], talkative, &[&base]);
    add(&mut content, "silent", &["1"], json!({}), &[&base]);
    add(&mut content, "empty", &["1"], json!({"Cmd": ["/bin/sh"]}), &[]);
    let mut links = Archive::new();
    links.link("escape", "../../../../etc");
    links.link("absolute", "/etc");
    let links = links.finish();
    add(
        &mut content,
        "layered",
        &["1"],
        json!({"Cmd": ["sh"]}),
        &[&base, &links],
    );
    for (n, name) in ["moves", "tags", "in-use", "forms", "foreign", "filtered", "volume"]
        .into_iter()
        .enumerate()
    {
        let own = ballast(1 << 20, n as u64 * 2 + 77);
        let user = if name == "forms" {
            json!({"Cmd": ["sh"], "User": "1000:50"})
        } else {
            json!({"Cmd": ["sh"]})
        };
        add(&mut content, name, &["1", "2"], user, &[&base, &own]);
    }
    content
}

/// Serves on `listener` as long as the test program runs.
pub fn serve(listener: TcpListener) {
    static CONTENT: OnceLock<Arc<Content>> = OnceLock::new();
    let content = CONTENT.get_or_init(|| Arc::new(content())).clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let content = content.clone();
            // A client that goes away in the middle is none of the registry's business.
            std::thread::spawn(move || drop(answer(stream, &content)));
        }
    });
}

fn answer(mut stream: TcpStream, content: &Content) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let (mut line, mut header) = (String::new(), String::new());
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let mut length = 0;
        while reader.read_line(&mut header)? > 2 {
            if let Some(value) = header.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
            header.clear();
        }
        reader.by_ref().take(length).read_to_end(&mut Vec::new())?;
        let mut words = line.split_whitespace();
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let (status, kind, body) = match content.get(path) {
            Some((kind, body)) => ("200 OK", kind.as_str(), body.as_slice()),
            None => (
                "404 Not Found",
                "application/json",
                br#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#.as_slice(),
            ),
        };
        write!(
            stream,
            "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n",
            body.len()
        )?;
        if method != "HEAD" {
            stream.write_all(body)?;
        }
    }
}
