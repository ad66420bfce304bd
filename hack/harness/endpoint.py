"""hack/test --endpoint: the black-box tests of pods and streaming, against another runtime than crisp.

It shows that they test the CRI and not crisp. What the other runtime gets wrong, or cannot know, is in hack/endpoint.skips, each with
its reason. A test that needs crisp's own daemon or files says so itself and is left out by that.
"""

import os
import re
import select
import shutil
import signal
import subprocess
import time

from harness import paths, process, registry
from harness.containerd import Containerd
from harness.crisp import Crisp
from harness.netns import HostNetwork, Netns
from harness.undo import Undo

SUITES = ("pods", "root_streaming")
RUNTIMES = {"containerd": Containerd, "crisp": Crisp}
_SKIPS = paths.HACK / "endpoint.skips"
# Nothing that a test waits for may take longer: a suite that says nothing for so long hangs.
_SILENCE_SECONDS = 150


# What tests/support/endpoint.rs says.
_LEFT_OUT = ("only crisp: ", "the runtime lacks: ")


class Skips:
    """One line each: `suite::test: reason`. A reason that begins with "sometimes, " is of a test that can pass."""

    def __init__(self):
        self.reasons = {}
        for number, line in enumerate(_SKIPS.read_text().splitlines(), 1):
            if line.strip() and not line.startswith("#"):
                name, colon, reason = line.partition(": ")
                if not colon or not reason.strip() or name in self.reasons:
                    raise ValueError(f"{_SKIPS}:{number}: it says `suite::test: reason`, once for each test")
                self.reasons[name] = reason.strip()

    def check(self, names):
        unknown = sorted(set(self.reasons) - set(names))
        if unknown:
            raise ValueError(f"{_SKIPS.name}: no test is called {', '.join(unknown)}")


class Suite:
    """A test program, as cargo builds it."""

    def __init__(self, name):
        self.name = name
        argv = ["cargo", "test", "--all-features", "--test", name, "--no-run", "--message-format", "short"]
        built = subprocess.run(argv, cwd=paths.ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        found = re.search(r"Executable .*\((.*)\)", built.stderr)
        if built.returncode != 0 or not found:
            raise RuntimeError(f"{' '.join(argv)}: {built.stderr[-2000:]}")
        self.program = paths.ROOT / found[1]

    def tests(self):
        listed = subprocess.run([self.program, "--list", "--format", "terse"], check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        return [f"{self.name}::{line.removesuffix(': test')}" for line in listed.stdout.splitlines() if line.endswith(": test")]

    def run(self, tests, environment, log):
        """Runs exactly `tests`; gives {test: "ok", "FAILED" or what it needs}, without those that did not end."""
        words = [test.removeprefix(f"{self.name}::") for test in tests]
        # Not captured: of a suite that hangs it would be lost.
        argv = [self.program, "--exact", "--nocapture", "--test-threads", "4", *words]
        child = subprocess.Popen(argv, cwd=paths.ROOT, env=dict(environment, RUST_BACKTRACE="0"),
                                 stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            text = _read_to_end(child, log)
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        return self._outcomes(text)

    def _outcomes(self, text):
        outcomes = dict(re.findall(r"test (\S+) \.\.\. (ok|FAILED)", text))
        # The first that each test said: what followed is the unwinding.
        for name, told in reversed(re.findall(r"thread '(\S+)' .*panicked at .*\n(.*)", text)):
            if outcomes.get(name) != "ok" and name in outcomes:
                outcomes[name] = told if told.startswith(_LEFT_OUT) else "FAILED"
        return {f"{self.name}::{name}": outcome for name, outcome in outcomes.items()}


def _read_to_end(child, log):
    """What the child prints; also in `log`. Ends with the child, or when it has been silent for too long."""
    text = bytearray()
    with open(log, "ab") as out:
        while True:
            ready, _, _ = select.select([child.stdout], [], [], _SILENCE_SECONDS)
            piece = os.read(child.stdout.fileno(), 1 << 16) if ready else b""
            if not piece:
                return text.decode(errors="replace")
            text += piece
            out.write(piece)
            out.flush()


class Run:
    def __init__(self, name, suites, skips):
        self.suites, self.skips = suites, skips
        self.all = {suite.name: suite.tests() for suite in suites}
        skips.check([test for tests in self.all.values() for test in tests])
        if name == "crisp":
            skips.reasons.clear()
        self.passed, self.failed, self.left_out = [], [], {}

    def tests(self, environment, log, words, skipped):
        """All tests, or those that have one of `words` in their names; with `skipped` only those that are skipped else."""
        for suite in self.suites:
            chosen = [test for test in self.all[suite.name]
                      if (test in self.skips.reasons) == skipped and (not words or any(word in test for word in words))]
            if not chosen:
                continue
            # What hangs must not keep the others from running.
            outcomes = {}
            for tests in [[test] for test in chosen] if skipped else [chosen]:
                outcomes.update(suite.run(tests, environment, log))
            for test in chosen:
                outcome = outcomes.get(test, "did not end")
                if outcome.startswith(_LEFT_OUT):
                    self.left_out.setdefault(outcome, []).append(test)
                else:
                    (self.passed if outcome == "ok" else self.failed).append((test, outcome))

    def report(self, name, skipped):
        """Gives whether all is as it should be."""
        for needs, tests in sorted(self.left_out.items()):
            print(f"  left out {len(tests)}, {needs}")
        wrong = self.failed
        if skipped:
            wrong = [(test, outcome) for test, outcome in self.passed if not self.skips.reasons[test].startswith("sometimes, ")]
        for test, outcome in wrong:
            print(f"  {'PASSES, but is skipped' if skipped else outcome} {test}")
        if skipped:
            # What needs crisp needs no line.
            wrong = wrong + [(test, "") for tests in self.left_out.values() for test in tests]
        left_out = sum(len(tests) for tests in self.left_out.values())
        print(f"endpoint {name}: {len(self.passed)} passed, {len(self.failed)} failed, {left_out} left out by what they need, "
              + f"{len(self.skips.reasons)} by hack/{_SKIPS.name}")
        return not wrong


def run(name, words=(), skipped=False):
    """`name`: of a runtime, or the path of a socket. Gives whether all was well."""
    took = time.monotonic()
    with Undo() as undo:
        run = Run(name, [Suite(suite) for suite in SUITES], Skips())
        process.become_subreaper()
        undo.push("processes left below us", process.end_all, lambda: process.descendants(os.getpid()))
        directory = paths.scratch("endpoint")
        undo.push(f"directory {directory}", shutil.rmtree, directory)
        log = paths.CACHE / "logs" / "test-endpoint-tests.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.unlink(missing_ok=True)
        runtime, socket = None, name
        if name in RUNTIMES:
            netns = Netns(undo)
            registry.Registry(netns, directory, undo).provide("bench")
            runtime = RUNTIMES[name](directory / "d", netns, undo, "embedded" if name == "crisp" else "cni")
            undo.push("the daemon's log", shutil.copyfile, runtime.log, log.with_name(f"endpoint-{name}-daemon.log"))
            socket = runtime.socket
        environment = dict(os.environ, CRISP_TEST_ENDPOINT=str(socket), TMPDIR=str(directory))
        run.tests(environment, log, words, skipped)
        good = run.report(name, skipped)
        if runtime and not runtime.daemon.alive():
            print(f"{name} ended in the middle, with {runtime.stop()}:\n{runtime.daemon.tail()}")
            good = False
        print(f"in {time.monotonic() - took:.0f} s; the log: {log}")
        return good
