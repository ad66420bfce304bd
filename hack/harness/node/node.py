"""What the scenarios ask: of the kubelet's API, of crictl, of the kernel."""

import datetime
import json
import time

from harness.node import cgroup
from harness.node.manifest import NAMESPACE
from harness.node.kubelet import NODE
from harness.screen import StepFailed


def when(text):
    """Seconds since 1970 of a time in the API, which tells whole seconds."""
    return datetime.datetime.fromisoformat(text).timestamp()


class Node:
    def __init__(self, kubelet, runtime, network, directory):
        self.kubelet, self.runtime, self.netns, self.directory = kubelet, runtime, network, directory
        # Files that pods and the test share.
        self.shared = directory / "shared"
        self.shared.mkdir()

    # What the kubelet says.

    def wait(self, pod, what, wanted, seconds=60):
        """Waits until `wanted(pod)` gives something true, and gives that."""
        deadline = time.monotonic() + seconds
        while True:
            found = self.kubelet.pods().get(pod)
            result = wanted(found) if found else None
            if result:
                return result
            if time.monotonic() > deadline:
                told = json.dumps(found["status"] if found else None, indent=1)
                raise StepFailed(f"pod {pod}: {what}: not within {seconds} s; its status: {told[-3000:]}")
            time.sleep(0.2)

    def phase(self, pod, phase):
        return self.wait(pod, phase, lambda found: found["status"].get("phase") == phase and found)

    def ready(self, pod, seconds=60):
        def all_ready(found):
            conditions = {one["type"]: one["status"] for one in found["status"].get("conditions", ())}
            return conditions.get("ContainersReady") == "True" and found

        return self.wait(pod, "ready", all_ready, seconds)

    def gone(self, pod, seconds=60):
        """Waits until the kubelet no longer knows the pod, and none of its containers is running."""
        deadline = time.monotonic() + seconds
        while pod in self.kubelet.pods() or self._running(pod):
            if time.monotonic() > deadline:
                raise StepFailed(f"pod {pod} is not gone within {seconds} s")
            time.sleep(0.2)

    def _running(self, pod):
        return self.runtime.crictl("ps", "-q", "--label", f"io.kubernetes.pod.name={pod}-{NODE}")

    def status(self, pod, container):
        return _status(self.kubelet.pods()[pod], container)

    def wait_status(self, pod, container, what, wanted, seconds=60):
        """As `wait`, with the status of one container."""
        def look(found):
            status = _status(found, container)
            return status and wanted(status)

        return self.wait(pod, f"{container} {what}", look, seconds)

    def uid(self, pod):
        return self.kubelet.pods()[pod]["metadata"]["uid"]

    def target(self, pod, container=None):
        """The name of a pod or container in the kubelet's API."""
        return f"{NAMESPACE}/{pod}-{NODE}" + (f"/{container}" if container else "")

    def logs(self, pod, container, **query):
        return self.kubelet.get(f"/containerLogs/{self.target(pod, container)}", **query)

    # What the runtime says.

    def id(self, pod, container):
        """The running container's id, from the runtime."""
        listed = self.runtime.crictl.json("ps", "-o", "json", "--name", f"^{container}$", "--state", "Running",
                                          "--label", f"io.kubernetes.pod.name={pod}-{NODE}")["containers"]
        if len(listed) != 1:
            raise StepFailed(f"{len(listed)} containers {container} of pod {pod} are running")
        return listed[0]["id"]

    def attempts(self, pod, container):
        """Every container of that name that the runtime still has, the oldest first, as crictl inspects it."""
        ids = self.runtime.crictl("ps", "-a", "-q", "--name", f"^{container}$", "--label", f"io.kubernetes.pod.name={pod}-{NODE}").split()
        # One may be removed between the two questions.
        told = [done.stdout for done in (self.runtime.crictl.attempt("inspect", one) for one in ids) if done.returncode == 0]
        found = [json.loads(text)["status"] for text in told]
        return sorted(found, key=lambda status: status["metadata"].get("attempt", 0))

    def run(self, pod, container, script):
        """What the script prints in the container, by ExecSync."""
        return self.runtime.crictl("exec", "-s", self.id(pod, container), "sh", "-c", script).strip()

    # What the kernel says.

    def pid(self, pod, container):
        return self.runtime.crictl.json("inspect", self.id(pod, container))["info"]["pid"]

    def process(self, pod, container):
        """/proc/<pid>/status of the container's first process, as a dictionary."""
        with open(f"/proc/{self.pid(pod, container)}/status") as file:
            return {key: value.strip() for key, value in (line.split(":", 1) for line in file)}

    def cgroup(self, pod, container):
        return cgroup.of_process(self.pid(pod, container))


def _status(pod, container):
    status = pod["status"]
    every = status.get("initContainerStatuses", []) + status.get("containerStatuses", [])
    return next((one for one in every if one["name"] == container), None)
