//! SPDY, each version of the protocols on it, by a client of our own. crictl and the kubelet's clients speak the newest.

use std::time::Duration;

use crisp::cri::{AttachRequest, NamespaceMode};
use crisp::streaming::spdy::frame::Head;

use crate::endpoint;
use crate::node::Node;
use crate::wire::Spdy;

/// A version's name, and whether its last word is a Status. The empty one is that of clients that name none.
const VERSIONS: [(&str, bool); 5] = [
    ("v4.channel.k8s.io", true),
    ("v3.channel.k8s.io", false),
    ("v2.channel.k8s.io", false),
    ("channel.k8s.io", false),
    ("", false),
];

/// Those that are asked for; Go's servers refuse who names none.
fn versions() -> &'static [(&'static str, bool)] {
    match endpoint::socket() {
        Some(_) => &VERSIONS[..4],
        None => &VERSIONS,
    }
}

const STDIN: u32 = 3;
const STREAMS: [&str; 4] = ["error", "stdin", "stdout", "stderr"];

#[test]
fn every_version_has_its_streams_and_its_last_word() {
    let node = Node::start();
    let container = node.container(&node.pod(NamespaceMode::Pod), &["sleep", "1000"], |_| {});
    for &(version, has_status) in versions() {
        let script = "read line; echo \"out $line\"; echo err >&2; exit 3";
        let url = node.exec_url(&container, &["sh", "-c", script], |request| {
            (request.stdin, request.stderr) = (true, true);
        });
        let mut client = Spdy::open_as(&url, version, &STREAMS);
        client.send(STDIN, false, b"hello\n");
        let [error, _, stdout, stderr] = client.rest();
        assert_eq!(
            (stdout.as_str(), stderr.as_str()),
            ("out hello\n", "err\n"),
            "{version:?}"
        );
        if has_status {
            let status: serde_json::Value = serde_json::from_str(&error).expect("a Status");
            assert_eq!(status["details"]["causes"][0]["message"], "3", "{version:?}");
        } else {
            // Text, in words that each runtime chooses.
            assert!(error.ends_with("exit code 3"), "{version:?}: {error}");
        }
    }
}

#[test]
fn every_version_attaches_and_sees_what_comes_from_then_on() {
    let node = Node::start();
    let container = node.one_that_has_spoken();
    for &(version, _) in versions() {
        let request = AttachRequest {
            container_id: container.clone(),
            stdin: true,
            stdout: true,
            stderr: true,
            tty: false,
        };
        let answer = node.wait(async { node.client().await.attach(request).await });
        let mut client = Spdy::open_as(&answer.expect("attach").into_inner().url, version, &STREAMS);
        // The streams are granted a moment before the attachment is in force: it is asked for until it answers.
        client
            .connection
            .set_read_timeout(Some(Duration::from_millis(500)))
            .unwrap();
        let text = loop {
            client.send(STDIN, false, b"me\n");
            if let Some((Head::Data { stream: 5, .. }, text)) = client.frame() {
                break String::from_utf8(text).unwrap();
            }
        };
        assert!(
            text.starts_with("me too\n"),
            "{version:?}: nothing of what was before, but {text:?}"
        );
    }
    assert!(node.is_running(&container), "detaching leaves it alone");
}
