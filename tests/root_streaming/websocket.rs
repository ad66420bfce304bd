//! WebSocket, each of its protocols, by a client of our own. crictl and critest speak the newest of them.

use std::io::{Read, Write};
use std::net::TcpListener;

use crisp::cri::{AttachRequest, NamespaceMode, PortForwardRequest};
use futures_util::{SinkExt, StreamExt};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use crate::node::{Node, eventually};
use crate::wire::{PATIENCE, WebSocket, raw_websocket, request};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const RESIZE: u8 = 4;

/// A protocol's name, and whether its last word is a Status.
const PROTOCOLS: [(&str, bool); 6] = [
    ("v5.channel.k8s.io", true),
    ("v4.channel.k8s.io", true),
    ("v4.base64.channel.k8s.io", true),
    ("channel.k8s.io", false),
    ("base64.channel.k8s.io", false),
    ("", false),
];

fn attach_url(node: &Node, container: &str, tty: bool) -> String {
    let request = AttachRequest {
        container_id: container.to_owned(),
        stdin: true,
        stdout: true,
        stderr: !tty,
        tty,
    };
    let answer = node.wait(async { node.client().await.attach(request).await });
    answer.expect("attach").into_inner().url
}

#[test]
fn exec_speaks_every_protocol() {
    let node = Node::start();
    let container = node.container(&node.pod(NamespaceMode::Pod), &["sleep", "1000"], |_| {});
    for (protocol, has_status) in PROTOCOLS {
        let script = "read line; echo \"out $line\"; echo err >&2; exit 3";
        let url = node.exec_url(&container, &["sh", "-c", script], |request| {
            (request.stdin, request.stderr) = (true, true);
        });
        let said = node.wait(async {
            let mut client = WebSocket::open(&url, protocol).await;
            client.send(STDIN, b"hello\n").await;
            client.rest().await
        });
        assert_eq!(
            (said.text(1).as_str(), said.text(2).as_str(), said.close),
            ("out hello\n", "err\n", Some(CloseCode::Normal)),
            "{protocol:?}"
        );
        if has_status {
            let status: serde_json::Value = serde_json::from_str(&said.text(3)).expect(protocol);
            assert_eq!(status["details"]["causes"][0]["message"], "3", "{protocol:?}");
        } else {
            assert!(said.text(3).ends_with("exit code 3"), "{protocol:?}: {said:?}");
        }
    }
}

#[test]
fn attach_speaks_every_protocol() {
    let node = Node::start();
    let container = node.one_that_has_spoken();
    for (protocol, _) in PROTOCOLS {
        let url = attach_url(&node, &container, false);
        node.wait(async {
            let mut client = WebSocket::open(&url, protocol).await;
            // The greeting, which is empty, comes before the attachment is in force: it is asked for until it answers.
            assert_eq!(client.next().await, Ok((STDOUT, Vec::new())), "{protocol:?}");
            let answer = loop {
                client.send(STDIN, b"me\n").await;
                match tokio::time::timeout(std::time::Duration::from_millis(200), client.next()).await {
                    Ok(answer) => break answer,
                    Err(_) => continue,
                }
            };
            let (channel, text) = answer.unwrap();
            let text = String::from_utf8(text).unwrap();
            assert_eq!(channel, STDOUT, "{protocol:?}");
            assert!(
                text.starts_with("me too\n"),
                "{protocol:?}: nothing of what was before, but {text:?}"
            );
            client.socket.close(None).await.unwrap();
        });
    }
    assert!(node.is_running(&container), "detaching leaves it alone");
}

#[test]
fn the_fifth_protocol_ends_the_input_alone() {
    let node = Node::start();
    let container = node.container(&node.pod(NamespaceMode::Pod), &["sleep", "1000"], |_| {});
    let url = node.exec_url(&container, &["sh", "-c", "cat; echo the end"], |request| {
        request.stdin = true
    });
    let said = node.wait(async {
        let mut client = WebSocket::open(&url, "v5.channel.k8s.io").await;
        client.send(STDIN, b"some input\n").await;
        client.sees(STDOUT, "some input\n").await;
        client.socket.send(Message::binary(vec![255, STDIN])).await.unwrap();
        client.rest().await
    });
    assert_eq!(said.text(1), "the end\n");
    assert!(said.text(3).contains("Success"), "{said:?}");
}

#[test]
fn a_terminal_is_resized_while_it_is_in_use() {
    let node = Node::start();
    let pod = node.pod(NamespaceMode::Pod);
    let with_terminal = node.container(&pod, &["sh"], |config| (config.stdin, config.tty) = (true, true));
    let exec = node.exec_url(&with_terminal, &["sh"], |request| {
        (request.stdin, request.tty) = (true, true)
    });
    for url in [exec, attach_url(&node, &with_terminal, true)] {
        node.wait(async {
            let mut client = WebSocket::open(&url, "v5.channel.k8s.io").await;
            for (columns, rows) in [(91, 17), (133, 44)] {
                let size = format!("{{\"Width\":{columns},\"Height\":{rows}}}\n");
                client.send(RESIZE, size.as_bytes()).await;
                // The size goes another way than the typing.
                let wanted = format!("{rows} {columns}\r\n");
                let waiting = format!("until stty size | grep -q '^{rows} {columns}$'; do :; done; stty size\n");
                client.send(STDIN, waiting.as_bytes()).await;
                client.sees(STDOUT, &wanted).await;
            }
        });
    }
}

#[test]
fn pings_are_answered_and_so_is_a_close() {
    let node = Node::start();
    let container = node.container(&node.pod(NamespaceMode::Pod), &["sleep", "1000"], |_| {});
    let url = node.exec_url(&container, &["cat"], |request| request.stdin = true);
    node.wait(async {
        let mut client = WebSocket::open(&url, "v5.channel.k8s.io").await;
        // That it is served: all that `cat` ever says, and the last that comes unasked.
        assert_eq!(client.next().await, Ok((STDOUT, Vec::new())));
        client
            .socket
            .send(Message::Ping(b"are you there".as_slice().into()))
            .await
            .unwrap();
        let pong = tokio::time::timeout(PATIENCE, client.socket.next())
            .await
            .expect("in time");
        let Some(Ok(Message::Pong(pong))) = pong else {
            panic!("{pong:?}")
        };
        assert_eq!(&pong[..], b"are you there");
        let bye = CloseFrame {
            code: CloseCode::Away,
            reason: "bye".into(),
        };
        client.socket.close(Some(bye)).await.unwrap();
        let answered = client.next().await;
        assert_eq!(answered, Err(Some(CloseCode::Away)));
    });
}

/// A client's frame: its first byte, and its payload under a mask of zeros.
fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap();
    let mut frame = vec![first, 0x80 | 126];
    frame.extend(length.to_be_bytes());
    frame.extend([0; 4]);
    frame.extend(payload);
    frame
}

#[test]
fn a_client_that_breaks_the_protocol_is_told_by_the_close_code() {
    let node = Node::start();
    let container = node.container(&node.pod(NamespaceMode::Pod), &["sleep", "1000"], |_| {});
    let huge: Vec<u8> = [&[0x82, 0x80 | 127][..], &(1u64 << 30).to_be_bytes(), &[0; 4]].concat();
    let mut in_parts = masked(0x02, &[0; 60_000]);
    for _ in 0..80 {
        in_parts.extend(masked(0x00, &[0; 60_000]));
    }
    let cases: [(&str, &str, Vec<u8>, Option<u16>); 9] = [
        ("reserved bits", "v5.channel.k8s.io", masked(0xf2, b"\0x"), Some(1002)),
        ("an unknown kind", "v4.channel.k8s.io", masked(0x83, b"\0x"), Some(1002)),
        ("no mask", "v5.channel.k8s.io", vec![0x82, 2, 0, b'x'], Some(1002)),
        ("a gigabyte", "v5.channel.k8s.io", huge, Some(1009)),
        ("too many parts", "channel.k8s.io", in_parts, Some(1009)),
        (
            "text that is none",
            "v4.base64.channel.k8s.io",
            masked(0x81, b"0\xff\xfe"),
            Some(1007),
        ),
        ("no base64", "base64.channel.k8s.io", masked(0x81, b"0***"), Some(1007)),
        ("half a frame", "v5.channel.k8s.io", vec![0x82], None),
        (
            "no WebSocket",
            "v5.channel.k8s.io",
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            Some(1002),
        ),
    ];
    for (what, protocol, bytes, code) in cases {
        let url = node.exec_url(&container, &["cat"], |request| request.stdin = true);
        let mut connection = raw_websocket(&url, protocol);
        // It may be refused in the middle.
        let _ = connection.write_all(&bytes);
        let _ = connection.shutdown(std::net::Shutdown::Write);
        let mut rest = Vec::new();
        let _ = connection.read_to_end(&mut rest);
        let close = rest.windows(4).find(|bytes| bytes[0] == 0x88 && bytes[1] >= 2);
        let told = close.map(|bytes| u16::from_be_bytes([bytes[2], bytes[3]]));
        assert_eq!(told, code, "{what}: {rest:?}");
    }
    let done = node
        .crictl(["exec", "-r", "websocket", &container, "true"])
        .output()
        .unwrap();
    assert!(done.status.success(), "everyone else is served");
    eventually("their commands have ended", || {
        node.sync(&container, "ps | grep -c '[c]at' || true") == "0"
    });
}

#[test]
fn port_forward_speaks_every_protocol() {
    let node = Node::start();
    let pod = node.pod(NamespaceMode::Node);
    let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let ports = listeners
        .each_ref()
        .map(|listener| listener.local_addr().unwrap().port());
    let protocols = [
        "v4.channel.k8s.io",
        "v4.base64.channel.k8s.io",
        "portforward.k8s.io",
        "channel.k8s.io",
        "base64.channel.k8s.io",
        "",
    ];
    for protocol in protocols {
        let request = PortForwardRequest {
            pod_sandbox_id: pod.clone(),
            port: ports.map(i32::from).to_vec(),
        };
        let answer = node.wait(async { node.client().await.port_forward(request).await });
        let url = answer.unwrap().into_inner().url;
        let mut client = node.wait(WebSocket::open(&url, protocol));
        let mut servers = listeners.each_ref().map(|listener| listener.accept().unwrap().0);
        for (index, server) in servers.iter_mut().enumerate() {
            let channel = 2 * index as u8;
            server.set_read_timeout(Some(PATIENCE)).unwrap();
            let question = format!("question {index}");
            node.wait(client.send(channel, question.as_bytes()));
            let mut heard = vec![0; question.len()];
            server.read_exact(&mut heard).unwrap();
            assert_eq!(heard, question.as_bytes(), "{protocol:?}");
            server.write_all(format!("answer {index}").as_bytes()).unwrap();
        }
        drop(servers);
        let said = node.wait(client.rest());
        for (index, port) in ports.iter().enumerate() {
            let begins = port.to_le_bytes();
            let data = [&begins[..], format!("answer {index}").as_bytes()].concat();
            assert_eq!(said.channels[2 * index], data, "{protocol:?}");
            assert_eq!(said.channels[2 * index + 1], begins, "{protocol:?}: no error");
        }
        assert_eq!(said.close, Some(CloseCode::Normal), "{protocol:?}");
    }
}

#[test]
fn a_request_that_cannot_be_served_is_answered_and_not_upgraded() {
    let node = Node::start();
    let pod = node.pod(NamespaceMode::Pod);
    let container = node.container(&pod, &["sleep", "1000"], |_| {});
    let websocket = |more: &[(&'static str, &'static str)]| {
        let mut headers = vec![("Connection", "Upgrade"), ("Upgrade", "websocket")];
        headers.extend(more);
        request(&node.exec_url(&container, &["true"], |_| {}), &headers).0
    };
    let key = ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==");
    let version = ("Sec-WebSocket-Version", "13");
    for (headers, status) in [
        (
            &[key, version, ("Sec-WebSocket-Protocol", "v9.channel.k8s.io")][..],
            "403",
        ),
        (&[key, ("Sec-WebSocket-Version", "8")][..], "426"),
        (&[version][..], "400"),
        (
            &[key, version, ("Sec-WebSocket-Protocol", "v9, v4.channel.k8s.io")][..],
            "101",
        ),
        // Which page a browser shows does not matter: the token says who may.
        (&[key, version, ("Origin", "http://elsewhere.example")][..], "101"),
    ] {
        let head = websocket(headers);
        assert_eq!(head.split(' ').nth(1), Some(status), "{headers:?}: {head}");
    }
    let no_upgrade = request(&node.exec_url(&container, &["true"], |_| {}), &[]).0;
    assert_eq!(no_upgrade.split(' ').nth(1), Some("400"), "{no_upgrade}");
}
