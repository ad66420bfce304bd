//! A registry in this process: plain HTTP, a thread per connection, honest until told otherwise.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// What the registry does with the blobs of layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduct {
    Honest,
    /// Sends so many bytes, then nothing more, and keeps the connection.
    Hang(usize),
    /// Sends so many bytes of what was asked for, then closes the connection.
    Cut(usize),
    /// Sends other bytes of the same number.
    Lie,
    /// Announces and sends a byte less.
    Short,
}

struct State {
    content: HashMap<String, (&'static str, Vec<u8>)>,
    layers: Vec<String>,
    conduct: Conduct,
    /// Requests for layers that have been begun.
    asked: usize,
    /// Answers that hang.
    hanging: usize,
}

pub struct Registry {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Registry {
    /// Listens on 127.0.0.1 of the calling thread's network namespace.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback is up");
        let address = listener.local_addr().expect("bound");
        let state = State {
            content: HashMap::new(),
            layers: Vec::new(),
            conduct: Conduct::Honest,
            asked: 0,
            hanging: 0,
        };
        let state = Arc::new(Mutex::new(state));
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = shared.clone();
                std::thread::spawn(move || {
                    // The other side may go away at any time.
                    let _ = serve(stream, &shared);
                });
            }
        });
        Self { address, state }
    }

    /// Offers an image of these layers, uncompressed archives. Returns its reference.
    pub fn offer(&self, repository: &str, layers: &[Vec<u8>], settings: Value) -> String {
        let mut state = self.state.lock().unwrap();
        let architecture = if cfg!(target_arch = "aarch64") {
            "arm64"
        } else {
            "amd64"
        };
        let digests: Vec<String> = layers.iter().map(|layer| sha256(layer)).collect();
        let config = json!({
            "os": "linux", "architecture": architecture, "config": settings,
            "rootfs": {"type": "layers", "diff_ids": digests},
        })
        .to_string()
        .into_bytes();
        let described: Vec<Value> = layers
            .iter()
            .zip(&digests)
            .map(|(layer, digest)| json!({"mediaType": LAYER, "digest": digest, "size": layer.len()}))
            .collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "layers": described,
            "config": {"mediaType": CONFIG, "digest": sha256(&config), "size": config.len()},
        })
        .to_string()
        .into_bytes();
        let blob = |digest: &str| format!("/v2/{repository}/blobs/{digest}");
        for (layer, digest) in layers.iter().zip(&digests) {
            state
                .content
                .insert(blob(digest), ("application/octet-stream", layer.clone()));
            state.layers.push(blob(digest));
        }
        state
            .content
            .insert(blob(&sha256(&config)), ("application/octet-stream", config));
        for name in ["v1", &sha256(&manifest)] {
            state.content.insert(
                format!("/v2/{repository}/manifests/{name}"),
                (MANIFEST, manifest.clone()),
            );
        }
        format!("{}/{repository}:v1", self.address)
    }

    pub fn conduct(&self, conduct: Conduct) {
        let mut state = self.state.lock().unwrap();
        state.conduct = conduct;
        state.asked = 0;
    }

    /// How often a layer was asked for since the conduct was set.
    pub fn asked(&self) -> usize {
        self.state.lock().unwrap().asked
    }

    /// Answers that hang and are still waited for.
    pub fn hanging(&self) -> usize {
        self.state.lock().unwrap().hanging
    }
}

/// Answers requests until the other side, or our conduct, ends the connection.
fn serve(stream: TcpStream, state: &Mutex<State>) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let mut words = line.split_whitespace().map(str::to_owned);
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let mut from = 0;
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            match header.trim_end().split_once(':') {
                Some((name, value)) if name.eq_ignore_ascii_case("range") => {
                    let value = value.trim().trim_start_matches("bytes=").trim_end_matches('-');
                    from = value.parse().unwrap_or(0);
                }
                Some(_) => {}
                None => break,
            }
        }
        let (entry, conduct) = {
            let mut state = state.lock().unwrap();
            let is_layer = state.layers.contains(&path) && method == "GET";
            state.asked += usize::from(is_layer);
            (
                state.content.get(&path).cloned(),
                if is_layer { state.conduct } else { Conduct::Honest },
            )
        };
        let Some((media_type, bytes)) = entry else {
            writer.write_all(b"HTTP/1.1 404 x\r\ncontent-length: 0\r\n\r\n")?;
            continue;
        };
        let digest = sha256(&bytes);
        let mut body = bytes[from.min(bytes.len())..].to_vec();
        match conduct {
            Conduct::Lie => body.iter_mut().for_each(|byte| *byte = !*byte),
            Conduct::Short => drop(body.pop()),
            Conduct::Honest | Conduct::Hang(_) | Conduct::Cut(_) => {}
        }
        let status = match from {
            0 => "200 x".to_owned(),
            _ => format!(
                "206 x\r\ncontent-range: bytes {from}-{}/{}",
                bytes.len() - 1,
                bytes.len()
            ),
        };
        write!(writer, "HTTP/1.1 {status}\r\ncontent-length: {}\r\n", body.len())?;
        write!(
            writer,
            "content-type: {media_type}\r\ndocker-content-digest: {digest}\r\n\r\n"
        )?;
        if method == "HEAD" {
            continue;
        }
        match conduct {
            Conduct::Hang(count) => {
                writer.write_all(&body[..count.min(body.len())])?;
                // Until the other side goes away.
                writer.set_read_timeout(Some(Duration::from_secs(120)))?;
                state.lock().unwrap().hanging += 1;
                let ended = reader.read_line(&mut String::new());
                state.lock().unwrap().hanging -= 1;
                return ended.map(drop);
            }
            Conduct::Cut(count) => return writer.write_all(&body[..count.min(body.len())]),
            Conduct::Honest | Conduct::Lie | Conduct::Short => writer.write_all(&body)?,
        }
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// An archive of the static busybox with links for its programs.
pub fn busybox() -> Vec<u8> {
    let program = std::fs::read("/bin/busybox").expect("busybox-static is installed");
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    for directory in ["bin/", "tmp/", "etc/"] {
        header.set_entry_type(tar::EntryType::Directory);
        header.set_size(0);
        header.set_mode(0o755);
        builder
            .append_data(&mut header, directory, io::empty())
            .expect("in memory");
    }
    header.set_entry_type(tar::EntryType::Regular);
    header.set_size(program.len() as u64);
    builder
        .append_data(&mut header, "bin/busybox", program.as_slice())
        .expect("in memory");
    for name in [
        "sh", "sleep", "cat", "true", "yes", "head", "seq", "setsid", "dd", "tail", "kill", "mkfifo", "ps",
    ] {
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        builder
            .append_link(&mut header, format!("bin/{name}"), "busybox")
            .expect("in memory");
    }
    builder.into_inner().expect("in memory")
}
