"""hack/critest: the CRI's conformance suite, against crisp or the distribution's containerd.

Every selected spec must pass, at the first attempt; what is left out stands in hack/critest.skips with its reason.
"""

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

from fixtures.pin import pin
from harness import command, paths, process, registry, specs, tools
from harness.containerd import Containerd
from harness.crisp import HANDLERS, Crisp
from harness.netns import Netns

RUNTIMES = {"crisp": Crisp, "containerd": Containerd}
# Where each release of critest is among the tools; the first is the one that hack/critest.skips is about.
RELEASES = {"1.37": "", "1.36": "1.36/"}
NEWEST = next(iter(RELEASES))


def arguments():
    parser = argparse.ArgumentParser(prog="hack/critest", description=__doc__)
    parser.add_argument("--runtime", choices=sorted(RUNTIMES), default="crisp")
    parser.add_argument("--handler", choices=sorted(HANDLERS), help="crisp's runtime handler; default: the built-in one")
    parser.add_argument("--release", choices=RELEASES, default=NEWEST, help="of critest (default: %(default)s)")
    parser.add_argument("--network", choices=("embedded", "cni"), help="default: embedded for crisp, cni for containerd")
    parser.add_argument("--endpoint", help="test a daemon that runs already, at this unix:// endpoint")
    parser.add_argument("--suite", action="append", choices=sorted(specs.SUITES), help="only this suite (may be repeated)")
    parser.add_argument("--focus", help="only specs whose name contains this text; no skip applies")
    parser.add_argument("--repeat", type=int, default=1, metavar="N")
    parser.add_argument("--parallel", type=int, default=1, metavar="N", help="N at a time, those marked serial alone")
    parser.add_argument("--seed", type=int, help="of the specs' order, to repeat a run")
    parser.add_argument("--shuffle", action="store_true", help="all specs, not only the groups that they are in")
    parser.add_argument("--cgroup-driver", choices=("cgroupfs", "systemd"), default="cgroupfs", help="of crisp (default: %(default)s)")
    parser.add_argument("--keep", action="append", default=[], metavar="TEXT", help="run the specs that begin so although they are left out")
    parser.add_argument("--websocket", action="store_true", help="exec, attach and port-forward by WebSocket instead of SPDY")
    parser.add_argument("--timeout", default="25m", help="of one run (default: %(default)s)")
    parser.add_argument("--list", action="store_true", help="print the specs that would run, and the skips")
    args = parser.parse_args()
    if args.handler and args.runtime != "crisp":
        parser.error("--handler is crisp's")
    return args


class Suite:
    """critest with our digest in place of the one it has compiled in."""

    def __init__(self, directory, release):
        self._directory = directory
        self.program = tools.tool(f"{RELEASES[release]}critest")

    def pin(self):
        pinned = self._directory / "critest"
        pin(self.program, pinned, registry.pinned())
        self.program = pinned

    def names(self):
        report = self._directory / "dry-run.json"
        subprocess.run([self.program, "-ginkgo.dry-run", f"-ginkgo.json-report={report}"],
                       check=True, stdin=subprocess.DEVNULL, capture_output=True)
        return [outcome.name for outcome in specs.read_report(report) if outcome.state == "passed"]

    def run(self, names, endpoint, prefix, args, log):
        """Runs exactly `names`; gives their outcomes."""
        report = self._directory / "report.json"
        report.unlink(missing_ok=True)
        words = [*prefix, self.program, f"-runtime-endpoint={endpoint}", f"-image-endpoint={endpoint}", "-ginkgo.no-color",
                 f"-ginkgo.json-report={report}", f"-ginkgo.timeout={args.timeout}", f"-ginkgo.focus={specs.regex(names)}",
                 "-test.timeout=0"]
        if args.seed is not None:
            words.append(f"-ginkgo.seed={args.seed}")
        if args.shuffle:
            words.append("-ginkgo.randomize-all")
        if args.handler:
            words.append(f"-runtime-handler={args.handler}")
        if args.websocket:
            words += ["-websocket-exec", "-websocket-attach", "-websocket-portforward"]
        if args.parallel > 1:
            words.append(f"-parallel={args.parallel}")
        environment = dict(os.environ)
        if shutil.which("sudo") is None:
            # The AppArmor suite loads its profiles by sudo, which root does not need.
            stand_in = self._directory / "bin" / "sudo"
            stand_in.parent.mkdir(exist_ok=True)
            stand_in.write_text('#!/bin/sh\nexec "$@"\n')
            stand_in.chmod(0o755)
            environment["PATH"] += f":{stand_in.parent}"
        if args.parallel > 1:
            environment["PATH"] += f":{tools.tool(f'{RELEASES[args.release]}ginkgo').parent}"
        with open(log, "ab") as out:
            subprocess.run(words, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment, cwd=self._directory)
        if not report.exists():
            tail = pathlib.Path(log).read_text(errors="replace").splitlines()[-20:]
            raise RuntimeError("critest wrote no report:\n" + "\n".join(tail))
        return specs.read_report(report)


def select(names, args):
    """Gives (names to run, {name left out: reason})."""
    if args.focus:
        return [name for name in names if args.focus in name], {}
    skips = specs.Skips(args.handler)
    if args.release == NEWEST and skips.unused(names):
        raise ValueError(f"hack/critest.skips: nothing is called {', '.join(skips.unused(names))}")
    unknown = [name for name in names if not name.startswith(tuple(specs.SUITES.values()))]
    if unknown:
        raise ValueError(f"of no suite that hack/harness/specs.py knows: {', '.join(unknown)}")
    starts = [specs.SUITES[suite] for suite in args.suite or specs.SUITES]
    asked = [name for name in names if name.startswith(tuple(starts))]
    left_out = {name: skips.reason(name) for name in asked if skips.reason(name) and not name.startswith(tuple(args.keep))}
    return [name for name in asked if name not in left_out], left_out


def run_once(suite, chosen, endpoint, prefix, args, log):
    """One run over all that is chosen; prints what failed and gives the outcomes."""
    outcomes = suite.run(chosen, endpoint, prefix, args, log)
    outcomes = [outcome for outcome in outcomes if outcome.state != "skipped" or outcome.name in chosen]
    for outcome in outcomes:
        if outcome.state != "passed":
            message = " ".join(re.sub(r"<\*status\.Error.*?>: (.*?)\{ s: \{.*", r"\1", outcome.message, flags=re.S).split())
            print(f"  {outcome.state.upper()} {outcome.name}\n        {outcome.place}: {message[:400]}", flush=True)
    for name in sorted(set(chosen) - {outcome.name for outcome in outcomes}):
        print(f"  NOT RUN {name}", flush=True)
    return outcomes


def run(args, undo):
    scratch = paths.scratch("critest")
    undo.push(f"directory {scratch}", shutil.rmtree, scratch)
    suite = Suite(scratch, args.release)
    chosen, left_out = select(suite.names(), args)
    if args.list:
        print("\n".join(chosen))
        print("\n".join(f"- {name}: {reason}" for name, reason in left_out.items()))
        return True
    if not chosen:
        raise ValueError("no spec is called that")
    process.become_subreaper()
    name = "-".join(filter(None, (args.runtime, args.handler, args.release if args.release != NEWEST else None)))
    undo.push("processes left below us", process.end_all, lambda: process.descendants(os.getpid()))
    logs = paths.CACHE / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    runtime, prefix, endpoint = None, [], args.endpoint
    if endpoint is None:
        netns = Netns(undo)
        prefix = netns.prefix
        registry.Registry(netns, scratch, undo).provide("critest")
        network = args.network or ("cni" if args.runtime == "containerd" else "embedded")
        Crisp.handlers = (args.handler,) if args.handler else ()
        options = {"cgroup_driver": args.cgroup_driver} if args.runtime == "crisp" else {}
        runtime = RUNTIMES[args.runtime](scratch / args.runtime, netns, undo, network, registry.write_mirrors(scratch), **options)
        endpoint = runtime.endpoint
        undo.push("the daemon's log", shutil.copyfile, runtime.log, logs / f"critest-{name}-daemon.log")
    suite.pin()
    passed = True
    for number in range(1, args.repeat + 1):
        log = logs / f"critest-{name}-{number}.log"
        log.unlink(missing_ok=True)
        began = time.monotonic()
        outcomes = run_once(suite, chosen, endpoint, prefix, args, log)
        good = sum(outcome.state == "passed" and outcome.name in chosen for outcome in outcomes)
        print(f"critest {name}: {good} of {len(chosen)} specs passed, {len(left_out)} left out by hack/critest.skips, "
              f"{time.monotonic() - began:.0f} s ({log})", flush=True)
        passed = passed and good == len(chosen) and all(outcome.state == "passed" for outcome in outcomes)
        if runtime and not runtime.daemon.alive():
            print(f"the daemon ended in the middle, with {runtime.stop()}:\n{runtime.daemon.tail()}")
            return False
    return passed


def main():
    args = arguments()
    return command.run(lambda undo: 0 if run(args, undo) else 1)


if __name__ == "__main__":
    sys.exit(main())
