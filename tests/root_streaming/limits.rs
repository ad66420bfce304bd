//! Tokens, and clients that do not behave.

use std::io::{Read, Write};

use crisp::cri::{ExecRequest, NamespaceMode};
use tonic::Code;

use crate::node::Node;
use crate::wire::upgrade;

fn request(container: &str) -> ExecRequest {
    ExecRequest {
        container_id: container.to_owned(),
        cmd: vec!["cat".to_owned()],
        stdout: true,
        ..ExecRequest::default()
    }
}

#[test]
fn a_token_is_for_one_use_one_purpose_and_not_to_be_guessed() {
    let node = Node::start();
    let container = node.container(&node.pod(NamespaceMode::Pod), &["sleep", "1000"], |_| {});
    let url = || {
        let answer = node.wait(async { node.client().await.exec(request(&container)).await });
        answer.unwrap().into_inner().url
    };
    let first = url();
    assert!(
        upgrade(&first.replace("/exec/", "/attach/")).0.contains("404"),
        "another purpose"
    );
    assert!(upgrade(&first).0.contains("101"));
    assert!(upgrade(&first).0.contains("404"), "a second time");
    assert!(upgrade(&format!("{}0", url())).0.contains("404"), "a guess");
    assert!(first.starts_with("http://127.0.0.1:"), "{first}");
    let (token, log) = (first.rsplit('/').next().unwrap(), node.log());
    assert!(log.contains("rpc=\"Exec\"") && !log.contains(token), "at no level");
}

#[test]
fn a_thousand_urls_may_wait_and_bad_requests_have_their_codes() {
    // Nobody else's: until these are over no other session begins.
    let node = Node::start_with("");
    let pod = node.pod(NamespaceMode::Pod);
    let container = node.container(&pod, &["sleep", "1000"], |_| {});
    node.wait(async {
        let mut client = node.client().await;
        let terminal = ExecRequest {
            tty: true,
            stderr: true,
            ..request(&container)
        };
        assert_eq!(client.exec(terminal).await.unwrap_err().code(), Code::InvalidArgument);
        let nothing = ExecRequest {
            stdout: false,
            ..request(&container)
        };
        assert_eq!(client.exec(nothing).await.unwrap_err().code(), Code::InvalidArgument);
        assert_eq!(client.exec(request("nobody")).await.unwrap_err().code(), Code::NotFound);
        for _ in 0..1000 {
            client.exec(request(&container)).await.unwrap();
        }
        assert_eq!(
            client.exec(request(&container)).await.unwrap_err().code(),
            Code::ResourceExhausted
        );
    });
}

#[test]
fn nonsense_after_the_upgrade_ends_that_connection_and_nothing_else() {
    let node = Node::start();
    let container = node.container(&node.pod(NamespaceMode::Pod), &["sleep", "1000"], |_| {});
    let nonsense: [&[u8]; 5] = [
        b"GET / HTTP/1.1\r\n\r\n",
        &[0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff],
        &[0x80, 3, 0, 1, 0, 0, 0, 14, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4],
        &[0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1],
        &[0xff; 4096],
    ];
    for bytes in nonsense {
        let answer = node.wait(async { node.client().await.exec(request(&container)).await });
        let (_, mut connection) = upgrade(&answer.unwrap().into_inner().url);
        let _ = connection.write_all(bytes);
        let _ = connection.shutdown(std::net::Shutdown::Write);
        let mut rest = Vec::new();
        let _ = connection.read_to_end(&mut rest);
        assert!(rest.len() < 100, "{rest:?}");
    }
    let done = node.crictl(["exec", &container, "true"]).output().unwrap();
    assert!(done.status.success());
}
