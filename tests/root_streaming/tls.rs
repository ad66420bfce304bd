//! TLS.

use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;

use crisp::cri::NamespaceMode;
use rcgen::{CertifiedKey, KeyPair};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{ClientConfig, ProtocolVersion, RootCertStore, SupportedProtocolVersion};

use crate::node::{Node, fed};
use crate::wire::connect;

fn certificate() -> CertifiedKey<KeyPair> {
    rcgen::generate_simple_self_signed(["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap()
}

/// Puts a certificate where the daemon has it, in one step for each file.
fn install(directory: &Path, certificate: &CertifiedKey<KeyPair>) {
    for (name, text) in [
        ("tls.crt", certificate.cert.pem()),
        ("tls.key", certificate.signing_key.serialize_pem()),
    ] {
        let fresh = directory.join("fresh");
        std::fs::write(&fresh, text).unwrap();
        std::fs::rename(fresh, directory.join(name)).unwrap();
    }
}

fn node() -> (Node, CertifiedKey<KeyPair>) {
    let directory = tempfile::tempdir().unwrap();
    let certificate = certificate();
    install(directory.path(), &certificate);
    let at = |name: &str| directory.path().join(name).display().to_string();
    let settings = format!("tls_cert = {:?}\ntls_key = {:?}\n", at("tls.crt"), at("tls.key"));
    (Node::start_in(directory, &settings), certificate)
}

/// What crictl must be told to check the server's certificate; it wants a certificate of its own for that.
fn trusting(directory: &Path, ca: &str) -> [String; 3] {
    let at = |name: &str| directory.join(name).display().to_string();
    [
        format!("--tls-ca={}", at(ca)),
        format!("--tls-cert={}", at("tls.crt")),
        format!("--tls-key={}", at("tls.key")),
    ]
}

#[test]
fn exec_and_its_input_go_by_tls_with_both_transports() {
    let (node, _) = node();
    let container = node.container(&node.pod(NamespaceMode::Pod), &["sleep", "1000"], |_| {});
    assert!(
        node.exec_url(&container, &["true"], |_| {})
            .starts_with("https://127.0.0.1:")
    );
    let input: Vec<u8> = (0..8_000_000u32)
        .map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    for transport in ["spdy", "websocket"] {
        let mut words = vec![
            "exec".to_owned(),
            "-i".to_owned(),
            "-r".to_owned(),
            transport.to_owned(),
        ];
        words.extend(trusting(node.dir(), "tls.crt"));
        words.extend([
            container.clone(),
            "sh".to_owned(),
            "-c".to_owned(),
            "cat; exit 3".to_owned(),
        ]);
        let done = fed(&mut node.crictl(words), &input);
        let err = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(
            done.stdout == input,
            "{transport}: {} bytes came back; {err}",
            done.stdout.len()
        );
        assert!(err.contains("exit code 3"), "{transport}: {err}");
    }
}

#[test]
fn a_new_certificate_is_shown_to_new_clients_and_a_broken_one_to_none() {
    let (node, _) = node();
    let container = node.container(&node.pod(NamespaceMode::Pod), &["sleep", "1000"], |_| {});
    let dir = node.dir();
    let trusts = |ca: &str| {
        let mut words = vec!["exec".to_owned()];
        words.extend(trusting(dir, ca));
        words.extend([container.clone(), "true".to_owned()]);
        node.crictl(words).output().unwrap().status.success()
    };
    std::fs::copy(dir.join("tls.crt"), dir.join("first.crt")).unwrap();
    assert!(trusts("first.crt"));
    let second = certificate();
    install(dir, &second);
    std::fs::copy(dir.join("tls.crt"), dir.join("second.crt")).unwrap();
    assert!(trusts("second.crt") && !trusts("first.crt"));
    std::fs::write(dir.join("tls.crt"), "-----BEGIN CERTIFICATE-----\nbroken").unwrap();
    let tls = shake(&node, &container, &TLS13, &second);
    assert_eq!(tls, Ok(ProtocolVersion::TLSv1_3), "it keeps the one it has");
    assert!(node.log().contains("streaming keeps its certificate"));
}

/// The version that is agreed on by a client that speaks this one only and trusts this certificate.
fn shake(
    node: &Node,
    container: &str,
    version: &'static SupportedProtocolVersion,
    trusted: &CertifiedKey<KeyPair>,
) -> Result<ProtocolVersion, String> {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(trusted.cert.pem().as_bytes()).unwrap())
        .unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let (connection, _, _) = connect(&node.exec_url(container, &["true"], |_| {}));
    connection.set_nonblocking(true).unwrap();
    node.wait(async {
        let connection = tokio::net::TcpStream::from_std(connection).unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let shaken = TlsConnector::from(Arc::new(config)).connect(name, connection).await;
        let shaken = shaken.map_err(|error| error.to_string())?;
        Ok(shaken.get_ref().1.protocol_version().expect("agreed"))
    })
}

#[test]
fn tls_is_of_version_1_2_at_least_and_nothing_goes_without() {
    let (node, certificate) = node();
    let container = node.container(&node.pod(NamespaceMode::Pod), &["sleep", "1000"], |_| {});
    assert_eq!(
        shake(&node, &container, &TLS12, &certificate),
        Ok(ProtocolVersion::TLSv1_2)
    );
    assert_eq!(
        shake(&node, &container, &TLS13, &certificate),
        Ok(ProtocolVersion::TLSv1_3)
    );
    let stranger = self::certificate();
    assert!(shake(&node, &container, &TLS13, &stranger).is_err());
    // A hello of TLS 1.1: random bytes, no session, one cipher suite (AES128-SHA), no compression.
    let body = [&[3, 2][..], &[7; 32], &[0], &[0, 2, 0, 0x2f], &[1, 0]].concat();
    let hello = [&[1, 0, 0, body.len() as u8][..], &body].concat();
    let record = [&[22, 3, 1, 0, hello.len() as u8][..], &hello].concat();
    let (mut connection, _, _) = connect(&node.exec_url(&container, &["true"], |_| {}));
    connection.write_all(&record).unwrap();
    let mut answer = Vec::new();
    let _ = connection.read_to_end(&mut answer);
    assert_eq!(answer.first(), Some(&21), "an alert: {answer:?}");
    let (mut connection, host, path) = connect(&node.exec_url(&container, &["true"], |_| {}));
    write!(connection, "GET /{path} HTTP/1.1\r\nHost: {host}\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = connection.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
}
