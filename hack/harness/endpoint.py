"""hack/test --endpoint: the tests of pods, which speak the CRI and look from outside, against another runtime.

It shows that they test the CRI and not crisp. What the other runtime cannot pass is named in hack/endpoint.skips, each
with its reason.
"""

import os
import re
import shutil
import subprocess

from harness import paths, process, registry
from harness.containerd import Containerd
from harness.netns import Netns
from harness.undo import Undo

_SKIPS = paths.HACK / "endpoint.skips"
RUNTIMES = {"containerd": Containerd}


def skips():
    """Names of tests, or the starts of names; each line has its reason."""
    found = []
    for line in _SKIPS.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            name, _, reason = line.partition("|")
            if not reason.strip():
                raise ValueError(f"{_SKIPS.name}: {name.strip()} has no reason")
            found.append(name.strip())
    return found


def run(name, words):
    """Gives the exit code. `words` choose tests."""
    with Undo() as undo:
        process.become_subreaper()
        undo.push("processes left below us", process.end_all, lambda: process.descendants(os.getpid()))
        directory = paths.scratch("endpoint")
        undo.push(f"directory {directory}", shutil.rmtree, directory)
        netns = Netns(undo)
        registry.Registry(netns, directory, undo).provide("bench")
        runtime = RUNTIMES[name](directory / "d", netns, undo)
        skipped = [word for skip in skips() for word in ("--skip", skip)]
        argv = ["cargo", "test", "--all-features", "--test", "pods", "--", *words, *skipped]
        done = subprocess.run(argv, cwd=paths.ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              env=dict(os.environ, CRISP_TEST_ENDPOINT=str(runtime.socket), CRISP_TEST_NETNS=f"/proc/{netns.holder}/ns/net"))
        log = paths.CACHE / "logs" / f"endpoint-{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(done.stdout)
        for line in done.stdout.splitlines():
            if re.match(r"test .* (FAILED|ignored)|test result", line):
                print(line)
        print(f"the log: {log}")
        return done.returncode
