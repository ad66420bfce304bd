"""Logs, read through the kubelet, and rotated by it."""

import gzip
import re

from harness.node.kubelet import LOG_MAX_KIB
from harness.node.manifest import NAMESPACE, container, pod
from harness.screen import eventually, expect, expect_equal

# About 12 KiB a second: every look of the kubelet finds too much.
_CHATTER = "i=0; while :; do i=$((i+1)); echo line $i of many, and some more so that it grows; [ $((i%20)) != 0 ] || sleep 0.1; done"


def manifests(_node):
    return [pod("chatty", [container("talks", _CHATTER), container("brief", "echo to stdout; echo to stderr >&2; exec sleep 100000")])]


def check(node, screen):
    with screen.step("logs through the kubelet: both streams, times, the last lines"):
        node.ready("chatty")
        eventually("both streams", lambda: set(node.logs("chatty", "brief").splitlines()) == {"to stdout", "to stderr"})
        timed = node.logs("chatty", "brief", timestamps="true", tailLines=1)
        expect(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+\S* to std", timed), timed)
        expect_equal("how many of the last 3", len(node.logs("chatty", "talks", tailLines=3).splitlines()), 3)
    with screen.step(f"a log of more than {LOG_MAX_KIB} KiB is rotated, and no line is lost at the seams") as step:
        eventually("two rotated logs", lambda: len(_files(node)) >= 3, 40)
        expect_complete(node, step)


def expect_complete(node, step):
    """Every line from the oldest that is still there to the newest."""
    numbers, files = _numbers(node)
    step.note(f"{len(files)} files of logs, lines {numbers[0]} to {numbers[-1]}")
    expect_equal("the numbers of the lines", numbers, list(range(numbers[0], numbers[0] + len(numbers))))


def _files(node):
    """The oldest first, the one that is written last."""
    directory = node.kubelet.directory / "logs" / f"{NAMESPACE}_chatty-node_{node.uid('chatty')}" / "talks"
    return sorted(path for path in directory.glob("0.log.*") if not path.name.endswith(".tmp")) + [directory / "0.log"]


def _numbers(node):
    """Of the lines in all files; read again when a rotation comes between."""
    for _ in range(10):
        files = _files(node)
        try:
            texts = [gzip.open(path, "rt").read() if path.suffix == ".gz" else path.read_text() for path in files]
        except FileNotFoundError:
            continue
        if _files(node) == files:
            break
    # The very last line may be half written.
    text = "".join(texts)
    return [int(number) for number in re.findall(r"line (\d+) of .*\n", text)], files
