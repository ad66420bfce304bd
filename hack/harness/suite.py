"""hack/test: everything that must hold, stage by stage, one line each. Needs root; fails when any stage fails."""

import argparse
import itertools
import os
import re
import signal
import subprocess
import sys
import time

from harness import command, endpoint, paths
from harness.crisp import HANDLERS
from harness.undo import Interrupted

LOGS = paths.CACHE / "logs"
# Of what a panic says: an assertion of two values has three lines.
PANIC_LINES = 4
# Each program has features of its own: what compiles together must also compile alone.
FEATURE_SETS = (
    ["--all-features", "--all-targets"],
    ["--lib", "--bin", "crispd"],
    ["--no-default-features", "--features", "monitor", "--lib", "--bin", "crisp-monitor"],
    # Without the standard library there is no unwinding: only its own profile fits.
    ["--no-default-features", "--features", "pause", "--bin", "crisp-pause", "--profile", "tiny"],
)


def _fault_tests():
    """The tests that break what runs: a stage of their own."""
    return sorted(path.stem for path in (paths.ROOT / "tests").iterdir() if path.stem.startswith("fault")
                  and (path.suffix == ".rs" or (path / "main.rs").exists()))


def _other_tests():
    return sorted(path.stem for path in (paths.ROOT / "tests").iterdir()
                  if path.stem not in [*_fault_tests(), "lane"] and (path.suffix == ".rs" or (path / "main.rs").exists()))


def _cargo_test(names, *words, after=()):
    """Built on the machine's network, run in one of their own: a test that forgets to be careful harms nothing."""
    chosen = [word for name in names for word in ("--test", name)]
    test = ["cargo", "test", "--all-features", "--no-fail-fast", *chosen]
    yield [*test, *words, "--no-run"]
    # What tests would build, too, where no module can be fetched.
    yield _tool("crictl")
    yield ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *test, *words, "--", *after]


def _tool(name):
    return [sys.executable, "-c", f"from harness import tools; tools.tool({name!r})"]


def _tools():
    for name in ("crictl", "critest", "1.36/critest", "bench-client", "kubelet", "kubelet-client"):
        yield _tool(name)


def _fmt():
    yield ["cargo", "fmt", "--check", "--", "--color", "never"]


def _clippy():
    for features in FEATURE_SETS:
        yield ["cargo", "clippy", *features, "--", "-D", "warnings"]


def _build():
    yield ["hack/build"]


def _unit():
    yield from _cargo_test([], "--lib")


def _integration():
    if _other_tests():
        yield from _cargo_test(_other_tests())


def _faults():
    if not _fault_tests():
        return
    yield from _cargo_test(_fault_tests())


def _handlers():
    """What a pod's containers can do, when an external runtime makes them. None makes one in a user namespace: that this is
    refused is tested with the others. Ports and long lists are no matter of who makes a container."""
    skipped = [word for name in ("userns::", "user_namespace", "port_forward::", "scale::") for word in ("--skip", name)]
    for handler in HANDLERS:
        for argv in _cargo_test(["pods", "root_streaming", *_fault_tests()], after=skipped):
            yield ["env", f"CRISP_TEST_HANDLER={handler}", *argv]


def _endpoint():
    """The black-box tests, on another runtime: they test the CRI."""
    yield [sys.executable, "-m", "harness.suite", "--endpoint"]


def _critest():
    yield ["hack/critest"]
    yield ["hack/critest", "--websocket", "--suite", "streaming"]
    yield ["hack/critest", "--release", "1.36", "--parallel", "4"]


def _critest_runc():
    yield ["hack/critest", "--handler", "runc"]


def _demo():
    yield ["hack/demo"]


def _demo_cni():
    yield ["hack/demo", "--cni"]


def _node():
    yield ["hack/node-test"]


def _lane():
    yield ["hack/lane", "--smoke"]


STAGES = {
    "fmt": _fmt, "clippy": _clippy, "build": _build, "unit": _unit, "integration": _integration, "faults": _faults,
    "handlers": _handlers, "endpoint": _endpoint, "tools": _tools, "critest": _critest, "critest-runc": _critest_runc,
    "demo": _demo, "demo-cni": _demo_cni, "node": _node, "lane": _lane,
}


def _counts(text):
    """What the log says of how much was tested."""
    found = []
    results = re.findall(r"test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored", text)
    if results:
        passed, failed, ignored = (sum(int(result[i]) for result in results) for i in range(3))
        found.append(f"{passed} passed" + (f", {failed} failed" if failed else "") + (f", {ignored} IGNORED" if ignored else ""))
    for specs in re.findall(r"critest [\w.-]+: (.*? passed.*?), \d+ s", text):
        found.append(specs)
    for tests, left_out, skipped in re.findall(r"endpoint \w+: (\d+) passed.*?, (\d+) left out .*?, (\d+) by", text):
        found.append(f"{tests} passed, {left_out} need what is crisp's or new, {skipped} skipped")
    for capabilities in re.findall(r"(\d+ of \d+ capabilities)", text):
        found.append(capabilities)
    for steps in re.findall(r"all (\d+) steps", text):
        found.append(f"{steps} steps")
    return "; ".join(found)


def _ignored(text):
    return any(int(count) for count in re.findall(r"; (\d+) ignored", text))


def _run(argv, out):
    """Gives the exit code. When we are told to end, it is told so too, and has the time to clean up."""
    child = subprocess.Popen(argv, cwd=paths.ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
    try:
        return child.wait()
    except Interrupted:
        os.killpg(child.pid, signal.SIGTERM)
        child.wait()
        raise


def run_stage(name):
    """Runs every command of the stage, all of them even after a failure; gives whether all was well."""
    log = LOGS / f"test-{name}.log"
    began = time.monotonic()
    failed = None
    with open(log, "w") as out:
        for argv in STAGES[name]():
            print("+", " ".join(str(word) for word in argv), file=out, flush=True)
            code = _run(argv, out)
            if code != 0:
                failed = failed or f"{' '.join(argv[:4])}...: exit {code}"
    text = log.read_text(errors="replace")
    if not failed and _ignored(text):
        failed = "tests were ignored; here everything runs"
    print(f"  {'FAILED' if failed else 'ok    '} {name:<12} {_counts(text):<60} {time.monotonic() - began:6.1f} s", flush=True)
    if failed:
        print(f"         {failed}; the end of {log}:")
        for line in _telling(text)[-40:]:
            print(f"         | {line}")
    return failed is None


def _telling(text):
    """The lines about what failed where there are such, and what a panic says; else all; each once."""
    lines = text.splitlines()
    told = []
    for number, line in enumerate(lines):
        if re.search(r"FAILED|panicked|^error|^\s+--> |NOT RUN|^\s+\S+\.go:\d+", line):
            said = lines[number + 1:number + 1 + PANIC_LINES] if "panicked at" in line else []
            told += [line, *itertools.takewhile(lambda line: line and line != "stack backtrace:", said)]
    return list(dict.fromkeys(told or lines))


def _on_endpoint(args):
    try:
        return 0 if endpoint.run(args.endpoint, args.test, args.skipped) else 1
    except Interrupted as interrupted:
        print(f"interrupted by {interrupted}", file=sys.stderr)
        return 130


def main():
    parser = argparse.ArgumentParser(prog="hack/test", description=__doc__)
    parser.add_argument("--only", action="append", choices=STAGES, metavar="STAGE", help="only this stage: " + ", ".join(STAGES))
    parser.add_argument("--endpoint", nargs="?", const="containerd", metavar="RUNTIME",
                        help="instead, the black-box tests on another runtime: the distribution's containerd, or crisp, as daemons of our own, "
                        "or what listens on the socket that is named")
    parser.add_argument("--test", action="append", default=[], metavar="TEXT", help="with --endpoint: only tests whose names contain this")
    parser.add_argument("--skipped", action="store_true", help="with --endpoint: only what hack/endpoint.skips skips; each of it must fail")
    args = parser.parse_args()
    if args.endpoint:
        return _on_endpoint(args)
    LOGS.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    chosen = args.only or list(STAGES)

    def work(_undo):
        good = [name for name in chosen if run_stage(name)]
        minutes, seconds = divmod(int(time.monotonic() - began), 60)
        print(f"\n{len(good)} of {len(chosen)} stages passed in {minutes} min {seconds:02} s"
              + ("" if len(good) == len(chosen) else f"; failed: {', '.join(name for name in chosen if name not in good)}"))
        return 0 if len(good) == len(chosen) else 1
    return command.run(work)


if __name__ == "__main__":
    sys.exit(main())
