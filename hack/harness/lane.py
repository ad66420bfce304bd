"""hack/lane: what needs pure cgroup v2, systemd as PID 1 or AppArmor, which a machine of another kind cannot show.

It is built here and runs in virtual machines, which are made of this machine's own packages when they are first needed: emulated
ones run one per processor, each with a part of the steps.
--vm-run or CRISP_VM_RUN names another command that runs one, called as `VM_RUN --share DIR --timeout SECONDS -- COMMAND...`:
DIR is seen read-only as the working directory, the command runs as root, and its exit status is VM_RUN's.
`--here` runs it on this machine, which must be of that kind.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import time

from harness import command, paths, registry, tools, vm
from harness.netns import Netns

_PACK = paths.CACHE / "lane"
_TESTS = _PACK / "tests.json"
_LOGS = paths.CACHE / "logs"
# See `in_machines`.
_FAILED = 100
# The test programs that have something to show here.
_PROGRAMS = ("cgroup", "cgroup_limits", "stats_collector", "pods", "root_streaming", "faults", "lane")


class Step:
    """A capability, and the command that shows it: `words` for the test program `test`, or suites of critest. `handler` makes
    the tests' containers, if it is not crisp itself. `seconds` it took once in an emulated machine: only how steps are divided
    among machines depends on it."""

    def __init__(self, name, *words, test=None, critest=(), driver="cgroupfs", handler="", seconds=60, smoke=False, more=False):
        self.name, self.words, self.test, self.critest = name, words, test, critest
        self.driver, self.handler, self.seconds, self.smoke, self.more = driver, handler, seconds, smoke, more

    def argv(self, programs):
        if self.test:
            words = [programs[self.test], "--test-threads=2", *self.words]
            return ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *words]
        suites = [word for suite in self.critest for word in ("--suite", suite)]
        return [sys.executable, "-m", "harness.critest", "--cgroup-driver", self.driver, "--keep", "AppArmor", *suites]

    def environment(self):
        return dict(os.environ, CRISP_TEST_CGROUP_DRIVER=self.driver, CRISP_TEST_HANDLER=self.handler)


# Of the pods' tests those that cgroup v2, systemd or AppArmor can make come out otherwise.
_PODS = ("cgroups::", "limits::", "oom::", "stats::", "process::", "image_volumes::an_image", "security::", "namespaces::", "life::")
# What another kernel or another mount of cgroups can make come out otherwise, whoever makes the cgroups.
_MACHINE = ("mounts::", "userns::", "cdi::", "events::", "files::")
# Who reads and limits the cgroups beside libcontainer: figures, limits of whole pods, external runtimes.
_OTHERS = ("metrics::", "pod_resources::", "runtimes::")
# What an external runtime does to a container by itself, or leaves to crisp.
_EXTERNAL = ("limits::", "oom::", "process::", "mounts::devices", "mounts::a_directory")
STEPS = (
    Step("cgroup v2: made, joined, killed, removed", test="cgroup", seconds=20, smoke=True),
    Step("cgroup v2: limits reach the kernel", test="cgroup_limits", seconds=15, smoke=True),
    Step("cgroup v2: figures, pressure among them", test="stats_collector", seconds=30),
    Step("systemd: one scope per pod, limits, OOM, death of the daemon", "systemd::", test="lane", driver="systemd", seconds=150, smoke=True),
    Step("AppArmor: default, node's own, none, not loaded", "apparmor::", test="lane", driver="systemd", seconds=60, smoke=True),
    Step("limits, devices, OOM, daemon killed, by systemd", "limits::", test="lane", driver="systemd", seconds=100),
    Step("limits, devices, OOM, daemon killed, by cgroupfs", "limits::", test="lane", seconds=90),
    # `cgroups::below` and `pod_resources::a_pod_below` name paths; what slices are for them is shown above.
    Step("pods on cgroup v2 by systemd", *_PODS, "--skip", "cgroups::below", test="pods", driver="systemd", seconds=290),
    Step("pods on cgroup v2 by cgroupfs", *_PODS, test="pods", seconds=290),
    Step("figures, limits of pods, runc and crun, by systemd", *_OTHERS, "--skip", "pod_resources::a_pod_below", test="pods",
         driver="systemd", seconds=240, more=True),
    Step("figures, limits of pods, runc and crun, by cgroupfs", *_OTHERS, test="pods", seconds=220, more=True),
    Step("limits, OOM, commands and devices by runc", *_EXTERNAL, test="pods", handler="runc", seconds=260, more=True),
    Step("limits, OOM, commands and devices by crun", *_EXTERNAL, test="pods", handler="crun", seconds=200, more=True),
    Step("mounts, files, users and events of pods", *_MACHINE, test="pods", seconds=260, more=True),
    # Gigabytes are no matter of cgroups.
    Step("exec, attach and port-forward, with users of the pod's own too", "exec::", "attach::", "port_forward::", "userns::",
         "--skip", "exec::every_byte", test="root_streaming", seconds=550, more=True),
    Step("critest by systemd: AppArmor, OOM, Container, Security Context", critest=("apparmor", "oom", "container", "security"),
         driver="systemd", seconds=210),
    Step("critest by cgroupfs: OOM, Container, Security Context", critest=("oom", "container", "security"), seconds=170),
    Step("death of daemon, monitor and pause, a fork bomb, by systemd", "daemon_dead::", "pod_dead::", "hostile::a_fork", "hostile::nothing",
         test="faults", driver="systemd", seconds=190),
)


def arguments():
    parser = argparse.ArgumentParser(prog="hack/lane", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--here", action="store_true", help="on this machine: Linux with pure cgroup v2, systemd and AppArmor")
    parser.add_argument("--packed", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--pack-only", action="store_true", help="build and pack, run nothing")
    parser.add_argument("--smoke", action="store_true", help="only the few steps that hack/test runs")
    parser.add_argument("--all", action="store_true", help="also the steps that another kernel is less likely to change")
    parser.add_argument("--only", action="append", metavar="TEXT", help="only the steps whose name contains this text, or one of these")
    parser.add_argument("--vm-run", default=os.environ.get("CRISP_VM_RUN"), metavar="PATH")
    parser.add_argument("--timeout", type=int, default=3600, metavar="SECONDS", help="of the virtual machines (default: %(default)s)")
    parser.add_argument("--list", action="store_true", help="print the steps")
    return parser.parse_args()


def build_tests():
    """Gives the test programs, by name."""
    words = ["cargo", "test", "--all-features", "--no-run", "--message-format=json"]
    words += [word for name in _PROGRAMS for word in ("--test", name)]
    done = subprocess.run(words, cwd=paths.ROOT, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    found = {}
    for line in done.stdout.splitlines():
        said = json.loads(line)
        if said.get("reason") == "compiler-artifact" and said.get("executable") and "test" in said["target"]["kind"]:
            found[said["target"]["name"]] = said["executable"]
    return found


def pack(undo):
    """One file with all that runs, without debug information: a virtual machine's share is slow with many files."""
    _PACK.mkdir(parents=True, exist_ok=True)
    scratch = paths.scratch("lane")
    undo.push(f"directory {scratch}", shutil.rmtree, scratch)
    # A registry of its own: the usual one may have gigabytes for other commands, which a virtual machine would have to read.
    images = _PACK / "images"
    registry.Registry(Netns(undo), scratch, undo, images).provide("critest")
    here = pathlib.Path("target/hack/lane/bin")
    programs = {}
    archive = _PACK / "share" / "lane.tar"
    archive.parent.mkdir(exist_ok=True)
    with tarfile.open(archive, "w") as tar:
        def add(source, name):
            stripped = scratch / "stripped"
            subprocess.run(["strip", "-o", stripped, source], check=True)
            tar.add(stripped, name)

        for name, program in build_tests().items():
            programs[name] = str(here / name)
            add(program, here / name)
        for program in paths.BIN.iterdir():
            add(program, program.relative_to(paths.ROOT))
        _TESTS.write_text(json.dumps(programs))
        packed = scratch / "fixtures-packed"
        packed.touch()
        tar.add(packed, "target/hack/fixtures-packed")
        for name in ("crictl", "critest"):
            tools.tool(name)
            for kept in (name, f".{name}.stamp"):
                tar.add(paths.CACHE / "bin" / kept, f"target/hack/bin/{kept}")
        for path in (_TESTS, paths.HACK):
            tar.add(path, path.relative_to(paths.ROOT))
        for name in ("registry", "fixtures-pinned"):
            tar.add(images / name, f"target/hack/{name}")
        tar.add(shutil.which("docker-registry"), "target/hack/bin/docker-registry")
    return archive.parent


def divided(steps, count):
    """The steps for each of at most `count` machines, so that these take about the same time."""
    shares = [[] for _ in range(min(count, len(steps)))]
    for step in sorted(steps, key=lambda step: -step.seconds):
        min(shares, key=lambda share: sum(other.seconds for other in share)).append(step)
    return shares


def in_machines(share, steps, args, undo):
    """Unpacks in each machine, at the same place: the tests have it compiled in. Gives the number of steps that failed."""
    # `_FAILED` and the number of those is what it ends with there; with any other status it has not come to the steps.
    archive = "lane.tar" if args.vm_run else "/dev/vdb"
    root = vm.quoted(paths.ROOT)

    def script(steps):
        words = [word for step in steps for word in ("--only", step.name)]
        return f"mkdir -p {root} && tar -C {root} -xf {archive} && cd {root} && PATH=$PATH:$PWD/target/hack/bin && " \
               f"exec hack/lane --here --packed --all {vm.quoted(*words)}"

    if args.vm_run:
        shares = [steps]
        argv = [args.vm_run, "--share", share, "--timeout", str(args.timeout), "--", "sh", "-c", script(steps)]
        statuses = [subprocess.run(argv, stdin=subprocess.DEVNULL).returncode]
    else:
        shares = divided(steps, vm.useful_machines())
        statuses = vm.run(share / "lane.tar", [script(steps) for steps in shares], args.timeout, undo)
    failed = [status and status - _FAILED for status in statuses]
    if not all(status == 0 or 0 < count <= len(steps) for status, count, steps in zip(statuses, failed, shares)):
        raise vm.VmError(f"the commands in the virtual machines ended with {statuses}")
    return sum(failed)


def lacking():
    """What this machine lacks to show anything."""
    found = []
    if not pathlib.Path("/sys/fs/cgroup/cgroup.controllers").exists():
        found.append("cgroup v2 alone at /sys/fs/cgroup")
    if not pathlib.Path("/run/systemd/system").is_dir():
        found.append("systemd as PID 1")
    enabled = pathlib.Path("/sys/module/apparmor/parameters/enabled")
    if not enabled.exists() or enabled.read_text().strip() != "Y":
        found.append("AppArmor")
    return found


def run_step(step, programs):
    _LOGS.mkdir(parents=True, exist_ok=True)
    log = _LOGS / f"lane-{step.name.replace(' ', '-')[:60]}.log"
    began = time.monotonic()
    with open(log, "w") as out:
        code = subprocess.run([str(word) for word in step.argv(programs)], cwd=paths.ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                              env=step.environment()).returncode
    print(f"  {'ok    ' if code == 0 else 'FAILED'} {step.name:<64} {time.monotonic() - began:6.1f} s", flush=True)
    if code != 0:
        print("".join(f"         | {line}\n" for line in log.read_text(errors="replace").splitlines()[-60:]), flush=True)
    return code == 0


def here(steps, args, undo):
    """Gives the number of steps that failed."""
    if lacking():
        raise SystemExit(f"hack/lane: this machine lacks {' and '.join(lacking())}")
    if args.packed:
        programs = {name: paths.ROOT / path for name, path in json.loads(_TESTS.read_text()).items()}
    else:
        programs = build_tests()
        scratch = paths.scratch("lane")
        undo.push(f"directory {scratch}", shutil.rmtree, scratch)
        registry.Registry(Netns(undo), scratch, undo).provide("critest")
    return sum(not run_step(step, programs) for step in steps)


def run(args, undo):
    wanted = lambda step: any(text in step.name for text in args.only) if args.only else args.all or not step.more
    chosen = [step for step in STEPS if (not args.smoke or step.smoke) and wanted(step)]
    if args.list:
        print("\n".join(step.name for step in chosen))
        return 0
    if not chosen:
        raise SystemExit("hack/lane: no step is called that")
    if args.packed:
        # Who packed it counts.
        failed = here(chosen, args, undo)
        return _FAILED + failed if failed else 0
    began = time.monotonic()
    if args.here:
        failed = here(chosen, args, undo)
    else:
        share = pack(undo)
        undo.run()
        if args.pack_only:
            return 0
        failed = in_machines(share, chosen, args, undo)
    print(f"{len(chosen) - failed} of {len(chosen)} capabilities hold, {time.monotonic() - began:.0f} s")
    return 1 if failed else 0


def main():
    args = arguments()
    try:
        return command.run(lambda undo: run(args, undo))
    except vm.VmError as error:
        print(f"hack/lane: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
