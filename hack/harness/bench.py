"""hack/bench: what a pod costs, on crisp and on the distribution's containerd with runc and with crun, in one run.

Same images, same client, same cgroups, same kind of network namespace; the contenders take turns in rounds.
Figures are medians. The table goes to the screen, all samples to target/hack/bench.json, a picture of the
ratios to target/hack/bench.svg. --scale shows instead how crisp's cost grows with pods, layers, bytes and log lines.
"""

import argparse
import json
import os
import shutil
import sys
import time

from harness import chart, command, paths, plugins, process, scale
from harness.contender import BIG, Contender
from harness.containerd import Containerd, ContainerdCrun
from harness.crisp import Crisp
from harness.table import AtMost, Axis, Over, Share, Table

CONTENDERS = {
    "containerd": (Containerd, "cni"),
    "containerd-crun": (ContainerdCrun, "cni"),
    "crisp": (Crisp, "embedded"),
    "crisp-cni": (Crisp, "cni"),
}
ROUNDS = 3
# CPU per second, below which a contender has nothing left to do.
SETTLED_MS = 50
SETTLING_SECONDS = 30


def arguments():
    parser = argparse.ArgumentParser(prog="hack/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few iterations: a look, not a figure")
    parser.add_argument("--only", action="append", choices=sorted(CONTENDERS), help="only this contender (may be repeated)")
    parser.add_argument("--axis", action="append", choices=sorted(Bench.AXES), help="only this group of axes (may be repeated)")
    parser.add_argument("--scale", action="store_true", help="crisp alone: 1 to 300 pods, 1 to 64 layers, 1 MB to 1 GB, 10 to 1000 log lines per ms")
    parser.add_argument("--check", action="store_true", help="fail when a figure that must be reached is not")
    return parser.parse_args()


class Bench:
    def __init__(self, args, undo):
        self.quick = args.quick
        self.lives, self.execs, self.lists = (6, 9, 15) if args.quick else (30, 60, 90)
        self.standing, self.crowd, self.pulls, self.idle_seconds = (30, 16, 1, 3) if args.quick else (30, 60, 3, 10)
        process.become_subreaper()
        undo.push("processes left below us", process.end_all, lambda: process.descendants(os.getpid()))
        directory = paths.scratch("bench")
        undo.push(f"directory {directory}", shutil.rmtree, directory)
        self.directory, self.undo = directory, undo
        # As it is on a node.
        Crisp.network_idle_seconds = 30
        self.table = Table()
        self.contenders = []
        for name in ["crisp"] if args.scale else args.only or CONTENDERS:
            kind, network = CONTENDERS[name]
            print(f"starting {name}", flush=True)
            self.contenders.append(Contender(name, kind, network, directory, undo))

    def _record(self, contender, axis, values):
        self.table.record(axis, contender.name, values)

    def _lives(self, where, host_network):
        """Pods, one at a time: up and down, the parts of both, and the CPU of the whole."""
        for contender in self.contenders:
            contender.up(1, host_network=host_network)
            contender.down()
        count = self.lives // ROUNDS
        for _ in range(ROUNDS):
            costs = [0] * len(self.contenders)
            # All up, then all down: where many inodes went a moment ago a file system is slow to find others, and whoever
            # is up next would pay.
            for phase in (lambda contender: contender.up(count, host_network=host_network), Contender.down):
                for at, contender in enumerate(self.contenders):
                    began = contender.cpu_ms()
                    samples = phase(contender)
                    costs[at] += contender.cpu_ms() - began
                    for name, values in samples.items():
                        if name != "wall":
                            self._record(contender, f"{name}, {where}", values)
            for contender, cost in zip(self.contenders, costs):
                self._record(contender, f"CPU of a life, {where}", [cost / count])

    def lives_pod_network(self):
        self._lives("pod network", False)
        added, deleted = plugins.own_ms(self.directory, self.undo, 5 if self.quick else 15)
        self.table.record("CNI plugins alone, ADD", "floor", added)
        self.table.record("CNI plugins alone, DEL", "floor", deleted)

    def lives_host_network(self):
        self._lives("host network", True)

    def standing_pods(self):
        """What is asked of, and kept for, pods that just run."""
        for contender in self.contenders:
            contender.up(self.standing, parallel=4)
        for _ in range(ROUNDS):
            for contender in self.contenders:
                began = contender.cpu_ms()
                self._record(contender, "ExecSync true", contender.client("exec", count=self.execs // ROUNDS)["ExecSync"])
                self._record(contender, "ExecSync true, CPU", [(contender.cpu_ms() - began) / (self.execs // ROUNDS)])
                for name, values in contender.client("list", count=self.lists // ROUNDS).items():
                    self._record(contender, name, values)
        for contender in self.contenders:
            daemon, kept = contender.memory_kib()
            self._record(contender, "memory per pod", [kept / self.standing])
            self._record(contender, "memory of the daemon", [daemon / 1024])
            self._record(contender, "idle CPU", [contender.idle_ms_per_second(self.idle_seconds)])
            self._record(contender, "restart to the first full list", [contender.restart_ms(self.standing) for _ in range(ROUNDS)])
            contender.down(parallel=4)

    def crowd_of_pods(self):
        for contender in self.contenders:
            wall = contender.up(self.crowd, parallel=8)["wall"][0]
            self._record(contender, "pods per second, 8 ways, up", [self.crowd * 1000 / wall])
            wall = contender.down(parallel=8)["wall"][0]
            self._record(contender, "pods per second, 8 ways, down", [self.crowd * 1000 / wall])

    def _settle(self):
        """Until nobody is busy with what was before, and the disk has all that was written."""
        for _ in range(SETTLING_SECONDS):
            busy = [contender.cpu_ms() for contender in self.contenders]
            time.sleep(1)
            if all(contender.cpu_ms() - before < SETTLED_MS for contender, before in zip(self.contenders, busy)):
                break
        os.sync()

    def pull(self):
        for _ in range(self.pulls):
            for contender in self.contenders:
                self._settle()
                began = contender.cpu_ms()
                self._record(contender, "pull of 300 MB, wall", [contender.client("pull", BIG)["PullImage"][0] / 1000])
                self._record(contender, "pull of 300 MB, CPU", [(contender.cpu_ms() - began) / 1000])
            # Not before: where many inodes went a moment ago a file system is slow to find others, and the next would pay.
            for contender in self.contenders:
                contender.client("remove-image", BIG)

    AXES = {
        "lives": lives_pod_network,
        "host-network": lives_host_network,
        "standing": standing_pods,
        "crowd": crowd_of_pods,
        "pull": pull,
    }

    def run(self, chosen):
        for name in chosen or self.AXES:
            print(f"measuring {name}", flush=True)
            self.AXES[name](self)


# Every axis: its unit, what crisp must reach and what it aims at. `Share` is of containerd's figure in the same run,
# `AtMost` a figure, `Over` the plugins' own time and so much more.
AXES = [
    Axis("pod up, pod network", "ms", must=Share(1 / 6), aim=Share(1 / 10), by_cni=Over("CNI plugins alone, ADD", 10)),
    Axis("RunPodSandbox, pod network", "ms"),
    Axis("CreateContainer, pod network", "ms"),
    Axis("StartContainer, pod network", "ms"),
    Axis("pod down, pod network", "ms", aim=Share(1 / 10), by_cni=Over("CNI plugins alone, DEL", 8)),
    Axis("StopContainer, pod network", "ms"),
    Axis("StopPodSandbox, pod network", "ms"),
    Axis("RemovePodSandbox, pod network", "ms"),
    Axis("CNI plugins alone, ADD", "ms"),
    Axis("CNI plugins alone, DEL", "ms"),
    Axis("pod up, host network", "ms", aim=Share(1 / 10)),
    Axis("pod down, host network", "ms"),
    Axis("CPU of a life, pod network", "ms", aim=Share(1 / 12)),
    Axis("CPU of a life, host network", "ms"),
    Axis("ExecSync true", "ms", must=Share(1 / 8), aim=Share(1 / 8)),
    Axis("ExecSync true, CPU", "ms", aim=Share(1 / 8)),
    Axis("pods per second, 8 ways, up", "/s", aim=Share(8), more_is_better=True),
    Axis("pods per second, 8 ways, down", "/s", aim=Share(8), more_is_better=True),
    Axis("memory per pod", "KiB", must=AtMost(0.3 * 1024), aim=AtMost(200)),
    Axis("memory of the daemon", "MiB", must=AtMost(25), aim=AtMost(15)),
    Axis("idle CPU", "ms/s", aim=AtMost(1)),
    Axis("ListContainers", "ms", aim=Share(1)),
    Axis("ListPodSandbox", "ms", aim=Share(1)),
    Axis("ContainerStatus", "ms", aim=Share(1)),
    Axis("ListContainerStats", "ms", aim=Share(1 / 10)),
    Axis("ListPodSandboxStats", "ms", aim=Share(1 / 10)),
    Axis("restart to the first full list", "ms", aim=AtMost(50)),
    Axis("pull of 300 MB, wall", "s", aim=Share(1 / 2)),
    Axis("pull of 300 MB, CPU", "s", aim=Share(1 / 2)),
]


def run(args, undo):
    bench = Bench(args, undo)
    if args.scale:
        scale.run(bench.contenders[0], args.quick)
        return 0
    bench.run(args.axis)
    (paths.CACHE / "bench.json").write_text(json.dumps(bench.table.samples, indent=1))
    missed = bench.table.show(AXES)
    (paths.CACHE / "bench.svg").write_text(chart.svg(bench.table, AXES))
    if missed:
        print(f"\nmust be reached and is not: {', '.join(missed)}")
    return 1 if missed and args.check else 0


def main():
    args = arguments()
    return command.run(lambda undo: run(args, undo))


if __name__ == "__main__":
    sys.exit(main())
