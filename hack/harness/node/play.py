"""The order of things: everything is started at once, seen one by one, disturbed, and taken away."""

import os
import shutil
import time

from harness import cgroups, leaks, mounts, netns, paths, process, registry, tools
from harness.crisp import Crisp
from harness.node import cgroup, lifecycle, lists, logs, network, probed, pulls, resources, restarts, sharing, stats, streaming, volumes
from harness.node.kubelet import Kubelet
from harness.node.node import Node
from harness.node.registry import PrivateRegistry, write_credentials
from harness.screen import StepFailed, expect, expect_equal

_SCENARIOS = (pulls, lifecycle, probed, resources, sharing, volumes, network, streaming, logs)
# What the kubelet's own tables are called.
_OF_THE_KUBELET = ("KUBE-", "table ip mangle", "table ip6 ")


class Play:
    def __init__(self, undo, screen, kind=Crisp, cgroup_driver="cgroupfs", log="info"):
        self.undo, self.screen, self.kind, self.cgroup_driver, self.log = undo, screen, kind, cgroup_driver, log

    def play(self):
        self.set_up()
        self.see()
        self.end()

    # Making it.

    def set_up(self):
        self.screen.title(f"A kubelet on {self.kind.name}")
        process.become_subreaper()
        self.undo.push("processes left below us", process.end_all, lambda: process.descendants(os.getpid()))
        self.directory = paths.scratch("node")
        self.undo.push(f"directory {self.directory}", shutil.rmtree, self.directory)
        self._make_cgroups()
        with self.screen.step("kubelet, its client, crictl, as built"):
            for name in ("kubelet", "kubelet-client"):
                tools.tool(name)
            tools.crictl()
        self.network = netns.Netns(self.undo)
        with self.screen.step("two registries on loopback, one of them empty and with a password"):
            registry.Registry(self.network, self.directory, self.undo).provide("demo")
            self.private = PrivateRegistry(self.network, self.directory / "private", self.undo)
        pulls.small_disk(self.directory / "d" / "lib", self.undo)
        with self.screen.step(f"{self.kind.name} serves"):
            network, how = ("auto", {"cgroup_driver": self.pods.driver, "log": self.log}) if self.kind is Crisp else ("cni", {})
            self.runtime = self.kind(self.directory / "d", self.network, self.undo, network, group=self.daemons, **how)
        self.before = leaks.Snapshot(self.runtime, (), self._ignored())
        self.kubelet = Kubelet(self.directory / "kubelet", self.network, self.kubelets, self.undo)
        write_credentials(self.kubelet.directory / "root")
        with self.screen.step("a kubelet is ready on it") as step:
            self._start_kubelet()
            step.note(self.kubelet.version())
        self.node = Node(self.kubelet, self.runtime, self.network, self.directory)

    def _make_cgroups(self):
        """Daemon, kubelet and pods below one cgroup, whose figures outlive the pods; systemd has its pods in a slice."""
        name = f"crisp-hack/{self.directory.name}"
        self.account = cgroups.Group(name, self.undo)
        self.daemons, self.kubelets = cgroups.Group(f"{name}/daemon", self.undo), cgroups.Group(f"{name}/kubelet", self.undo)
        if self.cgroup_driver == "systemd":
            self.pods = cgroup.Slices(self.directory.name, self.undo)
        else:
            self.pods = cgroup.Directories(f"{name}/pods", self.undo)

    def _start_kubelet(self, **gates):
        # Wrong on purpose where the runtime says which driver it is (KubeletCgroupDriverFromCRI), and wins.
        driver = self.pods.other_driver if self.kind is Crisp else self.pods.driver
        self.kubelet.start(self.runtime.endpoint, self.pods, driver, self.undo, **volumes.GATES, **gates)

    def _ignored(self):
        """What stays by design: images."""
        return ("lib/images",)

    # Seeing it.

    def see(self):
        node, screen = self.node, self.screen
        with screen.step("the kubelet takes the cgroup driver from the runtime, against its own configuration"):
            expect(self.kubelet.says("Using cgroup driver setting received from the CRI runtime", f'cgroupDriver="{self.pods.driver}"'),
                   "its log does not say so")
        with screen.step("static pods for all that follows") as step:
            pods = [pod for scenario in _SCENARIOS for pod in scenario.manifests(node)]
            for pod in pods:
                self.kubelet.put(pod)
            step.note(f"{len(pods)} pods, {sum(len(pod['spec']['containers']) for pod in pods)} containers")
        screen.title("What the kubelet asks of a runtime, seen from outside")
        pulls.check(node, screen, self.private)
        lifecycle.check(node, screen)
        probed.check(node, screen)
        sharing.check(node, screen)
        volumes.check(node, screen)
        resources.check(node, screen, self.pods)
        network.check(node, screen)
        streaming.check(node, screen)
        logs.check(node, screen)
        lifecycle.check_end(node, screen)
        stats.check(node, screen, from_runtime=False)
        screen.title("Disturbed")
        restarts.check_runtime(node, screen)
        # The one that comes asks in the ways that are still young.
        young = {"PodAndContainerStatsFromCRI": True, "CRIListStreaming": True}
        log = self.runtime.log.stat().st_size
        restarts.check_kubelet(node, screen, lambda: self._start_kubelet(**young))
        lists.check(node, screen, log)
        stats.check(node, screen, from_runtime=True)
        stats.check_metrics(node, screen)
        # With EventedPLEG 1.37.2 takes no container for one of its pod's present sandbox, and runs init containers over and over
        # (kubernetes issue 133371): the pod that has some goes before.
        self.kubelet.drop("ordered")
        node.gone("ordered")
        restarts.check_kubelet(node, screen, lambda: self._start_kubelet(EventedPLEG=True, **young), ", now by events")
        network.check_cni(node, screen)
        pulls.check_pressure(node, screen, self.private)

    # Taking it away.

    def end(self):
        screen = self.screen
        screen.title("The end")
        ids = set(self.runtime.crictl("ps", "-a", "-q").split()) | set(self.runtime.crictl("pods", "-q").split())
        with screen.step("every manifest goes: every container ends, every pod is forgotten") as step:
            names = self.kubelet.put_names()
            for name in names:
                self.kubelet.drop(name)
            self._until("running containers", lambda: self.runtime.crictl("ps", "-q").split())
            self._until("pods of the kubelet", self.kubelet.pods)
            step.note(f"{len(names)} pods")
        with screen.step("the kubelet collects: no pod, container, log, volume, mount, cgroup is left") as step:
            for what, find in self._collected():
                self._until(what, find, 90)
        with screen.step("the kubelet ends; nothing is left of its pods: process, link, rule, address, file, namespace"):
            expect_equal("its exit code", self.kubelet.stop(), 0)
            self._nothing_left(ids)
        with screen.step("TERM ends the daemon"):
            expect_equal("its exit code", self.runtime.stop(), 0)

    def _collected(self):
        root = self.kubelet.directory / "root"
        yield "pods of the runtime", self.runtime.crictl.pods
        yield "containers of the runtime", self.runtime.crictl.containers
        yield "log directories", lambda: list((self.kubelet.directory / "logs").iterdir())
        yield "volume directories", lambda: list((root / "pods").iterdir())
        yield "mounts", lambda: mounts.below(root)
        yield "cgroups", self.pods.below

    def _until(self, what, find, seconds=60):
        deadline = time.monotonic() + seconds
        while left := find():
            if time.monotonic() > deadline:
                raise StepFailed(f"{what}, after {seconds} s: {', '.join(str(one) for one in left)}")
            time.sleep(0.2)

    def _nothing_left(self, ids):
        # The embedded bridge goes when it has been idle for a while.
        deadline = time.monotonic() + 60
        while True:
            after = leaks.Snapshot(self.runtime, ids, self._ignored())
            lasting = {"run/network/subnet", "run/network/cni", "cni", "cni/net.d", "cni/net.d/10-demo.conflist", "cni/ipam", "cni/ipam/demo"}
            lasting |= {f"cni/ipam/demo/{name}" for name in ("last_reserved_ip.0", "lock")}
            found = [item for item in leaks.left_over(self.before, after, self.runtime, lasting) if not any(name in item for name in _OF_THE_KUBELET)]
            if not found or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        expect(not found, f"{len(found)} things are left:\n" + "\n".join(found[:20]))
