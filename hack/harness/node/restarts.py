"""The kubelet goes, the runtime is killed: pods notice neither."""

import signal
import time

from harness.node import logs, probed
from harness.screen import eventually, expect, expect_equal

# They restart by themselves.
_RESTLESS = {"always", "live"}


class Lives:
    """What must not change: every container's id, start and restarts, by the runtime and by the kubelet."""

    def __init__(self, node):
        self.by_runtime, self.by_kubelet = {}, {}
        for one in node.runtime.crictl.json("ps", "-o", "json")["containers"]:
            name = one["labels"]["io.kubernetes.pod.name"].removesuffix("-node")
            if name not in _RESTLESS:
                self.by_runtime[name, one["metadata"]["name"]] = one["id"]
        for name, pod in node.kubelet.pods().items():
            for status in pod["status"].get("containerStatuses", []) + pod["status"].get("initContainerStatuses", []):
                if name not in _RESTLESS:
                    self.by_kubelet[name, status["name"]] = status.get("containerID"), status["restartCount"], sorted(status["state"])


    def changes(self, before):
        """What differs between two, in words."""
        for told_by, was, is_now in (("runtime", before.by_runtime, self.by_runtime), ("kubelet", before.by_kubelet, self.by_kubelet)):
            for name in sorted(set(was) | set(is_now)):
                if was.get(name) != is_now.get(name):
                    yield f"{'/'.join(name)} by the {told_by}: {was.get(name)}, now {is_now.get(name)}"


def _expect_same(node, before):
    changes = list(Lives(node).changes(before))
    expect(not changes, "; ".join(changes))


def _probes_go_on(node):
    """Seen after what has just happened, and some later."""
    count = eventually("a count", lambda: probed.probe_count(node))
    eventually("probes go on", lambda: probed.probe_count(node) >= count + 3, 30)


def check_kubelet(node, screen, restart, how=""):
    with screen.step(f"the kubelet ends and starts again{how}: same containers, none restarted, probes go on") as step:
        before = Lives(node)
        expect_equal("its exit code", node.kubelet.stop(), 0)
        restart()
        _wait_for_same(node, before)
        _probes_go_on(node)
        _expect_same(node, before)
        step.note(f"{len(before.by_runtime)} running containers")


def check_runtime(node, screen):
    with screen.step("KILL to crispd, and another one: same containers, none restarted, probes go on, logs complete") as step:
        before = Lives(node)
        expect_equal("its exit code", node.runtime.stop(number=signal.SIGKILL), -signal.SIGKILL)
        node.runtime.start()
        _probes_go_on(node)
        _expect_same(node, before)
        step.note(f"{len(before.by_runtime)} running containers")
        logs.expect_complete(node, step)
        expect(node.runtime.daemon.alive(), "the daemon has ended")



def _wait_for_same(node, before, seconds=30):
    """A kubelet that has just started knows its pods only after a first look at each."""
    deadline = time.monotonic() + seconds
    while list(Lives(node).changes(before)) and time.monotonic() < deadline:
        time.sleep(0.2)
    _expect_same(node, before)
