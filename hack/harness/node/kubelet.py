"""An upstream kubelet, standalone: static pods from a directory, everything of its below one directory."""

import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
import urllib.parse

from harness import mounts, netns, tools
from harness.node import pulls
from harness.process import Daemon
from harness.screen import StepFailed

NODE = "node"
PORT = 10250
RESTART_DELAY_SECONDS = 3
LOG_MAX_KIB = 16
POD_PIDS = 128


def _config(directory, endpoint, pods, driver, gates):
    # How full the machine's own disk is is nothing that this is about.
    alarms = {"memory.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%",
              "imagefs.available": f"{pulls.ALARM_PERCENT}%", "imagefs.inodesFree": "0%"}
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
        "staticPodPath": str(directory / "manifests"), "podLogsDir": str(directory / "logs"),
        "volumePluginDir": str(directory / "plugins"), "containerRuntimeEndpoint": endpoint,
        "address": "127.0.0.1", "port": PORT, "healthzPort": 0,
        "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
        "authorization": {"mode": "AlwaysAllow"},
        "cgroupDriver": driver, "cgroupRoot": f"/{pods.root}", "failCgroupV1": False, "podPidsLimit": POD_PIDS,
        "failSwapOn": False, "protectKernelDefaults": True, "oomScoreAdj": 0,
        "evictionHard": alarms, "evictionPressureTransitionPeriod": "1s",
        "clusterDomain": "cluster.test", "resolvConf": str(directory / "resolv.conf"),
        "syncFrequency": "5s", "crashLoopBackOff": {"maxContainerRestartPeriod": f"{RESTART_DELAY_SECONDS}s"},
        "containerLogMaxSize": f"{LOG_MAX_KIB}Ki", "containerLogMaxFiles": 5, "containerLogMonitorInterval": "3s",
        # 0 would be the default: two minutes.
        "imageGCHighThresholdPercent": 100, "imageMinimumGCAge": "1ms",
        "featureGates": gates, "logging": {"verbosity": 2},
    }


def _ask(method, path):
    context = ssl.create_default_context()
    # The certificate is one that the kubelet has made for itself.
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPSConnection("127.0.0.1", PORT, timeout=20, context=context)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")
    finally:
        connection.close()


class Kubelet:
    def __init__(self, directory, network, group, undo):
        self.directory, self._network, self._group = directory, network, group
        self.log = directory / "kubelet.log"
        self.daemon = None
        for name in ("manifests", "logs", "plugins", "root"):
            (directory / name).mkdir(parents=True)
        (directory / "resolv.conf").write_text("nameserver 192.0.2.53\nsearch node.test\n")
        self._share(undo)

    def _share(self, undo):
        """Makes its directory a mount of its own whose mounts are seen in its namespace and in ours."""
        directory = str(self.directory)
        subprocess.run(["mount", "--bind", directory, directory], check=True)
        undo.push(f"mounts below {directory}", mounts.detach_below, self.directory)
        subprocess.run(["mount", "--make-shared", directory], check=True)

    def start(self, endpoint, pods, driver, undo, **gates):
        config = self.directory / "kubelet.json"
        config.write_text(json.dumps(_config(self.directory, endpoint, pods, driver, gates), indent=1))
        argv = [*self._network.prefix, sys.executable, "-m", "harness.node.inside", self.directory, tools.tool("kubelet"),
                f"--config={config}", f"--root-dir={self.directory / 'root'}", f"--cert-dir={self.directory / 'pki'}",
                f"--hostname-override={NODE}", f"--node-ip={netns.ADDRESS}"]
        self.daemon = Daemon(argv, self.log, setup=self._group.enter)
        undo.push("the kubelet", self.daemon.stop)
        self.daemon.wait_until(self._healthy, 60)

    def version(self):
        return subprocess.run([tools.tool("kubelet"), "--version"], check=True, capture_output=True, text=True).stdout.strip()

    def says(self, *words):
        """Whether one line of its log has all these words."""
        with open(self.log, errors="replace") as log:
            return any(all(word in line for word in words) for line in log)

    def stop(self, number=signal.SIGTERM):
        return self.daemon.stop(number)

    def _healthy(self):
        try:
            return self.ask("/healthz")[0] == 200
        except OSError:
            return False

    # Its API.

    def ask(self, path, method="GET", **query):
        """Status and text."""
        return self._network.inside(_ask, method, path + ("?" + urllib.parse.urlencode(query) if query else ""))

    def get(self, path, **query):
        status, text = self.ask(path, **query)
        if status != 200:
            raise StepFailed(f"GET {path} {query or ''}: {status} {text.strip()[:500]}")
        return text

    def pods(self):
        """The static pods by the name in their manifests."""
        listed = json.loads(self.get("/pods"))["items"] or []
        return {pod["metadata"]["name"].removesuffix(f"-{NODE}"): pod for pod in listed}

    def client(self, *words):
        """The words to run its API's client with."""
        return [*self._network.prefix, str(tools.tool("kubelet-client")), *words]

    # Its pods.

    def put(self, pod):
        """Writes the manifest where the kubelet looks, in one go."""
        name = pod["metadata"]["name"]
        new = self.directory / f"{name}.new"
        new.write_text(json.dumps(pod, indent=1))
        os.rename(new, self.directory / "manifests" / f"{name}.json")

    def drop(self, name):
        (self.directory / "manifests" / f"{name}.json").unlink()

    def put_names(self):
        return {path.stem for path in (self.directory / "manifests").glob("*.json")}
