//! A registry on loopback with one image: busybox.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};

use serde_json::json;
use sha2::{Digest, Sha256};

/// Serves until the process ends, on a thread in the caller's network; gives the image's reference.
pub fn serve() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap();
    let files = files();
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let _ = answer(connection.unwrap(), &files);
        }
    });
    format!("{host}/busybox:1")
}

fn files() -> HashMap<String, (&'static str, Vec<u8>)> {
    const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
    let layer = layer();
    let architecture = if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    };
    let config = json!({
        "architecture": architecture, "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": ["sleep", "1000"]},
        "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
    });
    let config = config.to_string().into_bytes();
    let described = |kind: &str, bytes: &[u8]| json!({"mediaType": kind, "digest": digest(bytes), "size": bytes.len()});
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": described(CONFIG, &config), "layers": [described(LAYER, &layer)],
    });
    let manifest = manifest.to_string().into_bytes();
    HashMap::from([
        ("/v2/busybox/manifests/1".to_owned(), (MANIFEST, manifest.clone())),
        (
            format!("/v2/busybox/manifests/{}", digest(&manifest)),
            (MANIFEST, manifest),
        ),
        (format!("/v2/busybox/blobs/{}", digest(&config)), (CONFIG, config)),
        (format!("/v2/busybox/blobs/{}", digest(&layer)), (LAYER, layer)),
    ])
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// The machine's static busybox under the names that the tests use.
fn layer() -> Vec<u8> {
    let program = std::fs::read("/bin/busybox").expect("busybox-static is installed");
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(program.len() as u64);
    header.set_mode(0o755);
    archive
        .append_data(&mut header, "bin/busybox", program.as_slice())
        .unwrap();
    for name in [
        "sh",
        "cat",
        "sleep",
        "seq",
        "head",
        "sha256sum",
        "stty",
        "nc",
        "wc",
        "true",
        "ps",
        "touch",
        "tty",
        "grep",
        "rm",
        "dd",
        "id",
        "stat",
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        header.set_mode(0o777);
        archive
            .append_link(&mut header, format!("bin/{name}"), "busybox")
            .unwrap();
    }
    archive.into_inner().unwrap()
}

fn answer(mut connection: TcpStream, files: &HashMap<String, (&'static str, Vec<u8>)>) -> std::io::Result<()> {
    let mut lines = BufReader::new(connection.try_clone()?).lines();
    let request = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    // The rest of the head must be read: what is not would cut the answer off.
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    let mut words = request.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = path.split('?').next().unwrap_or_default();
    let nothing = ("text/plain", Vec::new());
    let (status, (kind, bytes)) = match files.get(path) {
        Some(file) => ("200 OK", file),
        None if path == "/v2/" => ("200 OK", &nothing),
        None => ("404 Not Found", &nothing),
    };
    let length = bytes.len();
    write!(
        connection,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    )?;
    if method == "GET" {
        connection.write_all(bytes)?;
    }
    Ok(())
}
