"""Exec, attach and port-forward through the kubelet, by the client library that kubectl uses."""

import hashlib
import subprocess

from harness.node.manifest import container, pod
from harness.screen import expect, expect_equal

_BIG = 4 << 20


def manifests(_node):
    return [pod("talks", [container("echo", "while read -r line; do echo heard $line; done", stdin=True),
                          container("answers", "exec httpd -f -p 7000 -h /etc")])]


def check(node, screen):
    node.ready("talks")
    target = node.target("talks", "echo")
    for protocol, words in (("SPDY", ()), ("WebSocket", ("-websocket",))):
        with screen.step(f"exec by {protocol}: streams apart, 4 MiB through, an exit code, a terminal of a given size"):
            done = _run(node, *words, "exec", target, "sh", "-c", "echo out; echo err >&2; exit 42")
            expect_equal("what came back", (done.stdout, done.stderr, done.returncode), (b"out\n", b"err\n", 42))
            data = bytes(range(256)) * (_BIG // 256)
            done = _run(node, *words, "-i", "exec", target, "sh", "-c", "tee /tmp/data; sha256sum /tmp/data >&2", data=data)
            expect_equal("4 MiB, there and back", (done.stdout == data, done.stderr.split()[:1], done.returncode),
                         (True, [hashlib.sha256(data).hexdigest().encode()], 0))
            done = _run(node, *words, "-t", "-size=91x37", "exec", target, "sh", "-c", "sleep 0.5; stty size; tty")
            expect_equal("the terminal", done.stdout.split()[:2], [b"37", b"91"])
        with screen.step(f"attach by {protocol}: a line in, its answer out"):
            _attach(node, target, words, f"hello by {protocol}")
    with screen.step("port-forward"):
        done = _run(node, "port-forward", node.target("talks"), "7000", data=b"GET /passwd HTTP/1.0\r\n\r\n")
        expect(done.stdout.startswith(b"HTTP/1.1 200") and b"root:x:0:0" in done.stdout, f"{done.stdout[:300]!r} {done.stderr!r}")
    with screen.step("port-forward to a port where nobody listens says so"):
        done = _run(node, "port-forward", node.target("talks"), "7001", data=b"anyone?")
        expect(done.stdout == b"" and b"onnection refused" in done.stderr, f"{done.stdout!r} {done.stderr!r}")


def _run(node, *words, data=b""):
    return subprocess.run(node.kubelet.client(*words), input=data, capture_output=True, timeout=60)


def _attach(node, target, words, line):
    client = subprocess.Popen(node.kubelet.client(*words, "-i", "attach", target), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        client.stdin.write(f"{line}\n".encode())
        client.stdin.flush()
        expect_equal("the answer", client.stdout.readline().decode(), f"heard {line}\n")
    finally:
        client.kill()
        client.communicate()
