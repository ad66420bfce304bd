//! Attach.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use crisp::cri::NamespaceMode;

use crate::node::{Node, eventually, transports};

/// Somebody who attached, and the lines that they see.
pub struct Attached {
    pub child: Child,
    lines: Receiver<String>,
}

impl Attached {
    pub fn new(node: &Node, transport: &str, container: &str) -> Self {
        let mut command = node.crictl(["attach", "-i", "-r", transport, container]);
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let _ = send.send(line);
            }
        });
        Self { child, lines }
    }

    pub fn say(&mut self, text: &str) {
        self.child.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    /// Types `word`, over and over, until it comes back: attaching takes a moment.
    pub fn ready(&mut self, word: &str) {
        for _ in 0..100 {
            self.say(&format!("echo {word}\n"));
            if self.sees(word, Duration::from_millis(200)) {
                return;
            }
        }
        panic!("nothing comes back");
    }

    pub fn sees(&self, word: &str, patience: Duration) -> bool {
        while let Ok(line) = self.lines.recv_timeout(patience) {
            if line == word {
                return true;
            }
        }
        false
    }
}

pub const SOON: Duration = Duration::from_secs(10);

#[test]
fn several_attach_and_one_leaves() {
    let node = Node::start();
    let container = node.container(&node.pod(NamespaceMode::Pod), &["sh"], |config| config.stdin = true);
    let mut first = Attached::new(&node, "spdy", &container);
    first.ready("one");
    let mut second = Attached::new(&node, transports().pop().unwrap(), &container);
    second.ready("two");
    assert!(first.sees("two", SOON), "both see everything");
    first.child.kill().unwrap();
    first.child.wait().unwrap();
    second.say("echo after\n");
    assert!(second.sees("after", SOON), "the other goes on");
    drop(second.child.stdin.take());
    assert!(second.child.wait().unwrap().success());
    let mut third = Attached::new(&node, "spdy", &container);
    third.ready("three");
    third.say("exit 5\n");
    assert!(
        third.child.wait().unwrap().success(),
        "the container's end is the end of the attachment"
    );
    eventually("the container has exited", || !node.is_running(&container));
}

#[test]
fn stdin_once_ends_with_the_first_who_attached() {
    let node = Node::start();
    let pod = node.pod(NamespaceMode::Pod);
    for (transport, number) in [("spdy", 0), (transports().pop().unwrap(), 1), ("spdy", 2)] {
        let container = node.container(&pod, &["sh", "-c", "cat; echo end; sleep 1"], |config| {
            config.metadata.as_mut().unwrap().attempt = number;
            (config.stdin, config.stdin_once) = (true, true);
        });
        let mut attached = Attached::new(&node, transport, &container);
        for _ in 0..100 {
            attached.say("there\n");
            if attached.sees("there", Duration::from_millis(200)) {
                break;
            }
        }
        if number == 2 {
            attached.child.kill().unwrap();
        } else {
            drop(attached.child.stdin.take());
            assert!(
                attached.sees("end", SOON),
                "{transport}: output goes on after the end of the input"
            );
        }
        attached.child.wait().unwrap();
        eventually("the container saw the end of its input", || {
            !node.is_running(&container)
        });
    }
}
