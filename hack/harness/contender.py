"""One runtime in the bench: in its own network namespace, with a registry beside it, its cost accounted by a cgroup."""

import json
import pathlib
import statistics
import subprocess
import time

from harness import cgroups, registry, tools
from harness.netns import Netns

SMALL = f"{registry.ADDRESS}/bench/small:1"
BIG = f"{registry.ADDRESS}/bench/big:1"


def median(values):
    return statistics.median(values)


class Contender:
    def __init__(self, name, kind, network, directory, undo):
        self.name = name
        # Daemon and pods below one cgroup, whose sums outlive the pods.
        self._account = cgroups.Group(f"crisp-hack/{directory.name}-{name}", undo)
        daemon = cgroups.Group(f"{self._account.name}/daemon", undo)
        self._pods = f"/{self._account.name}/pods"
        self._netns = Netns(undo)
        (directory / name).mkdir()
        self.registry = registry.Registry(self._netns, directory / name, undo)
        self.registry.provide("bench")
        self.logs = directory / name / "logs"
        self.runtime = kind(directory / name / "d", self._netns, undo, network, group=daemon)
        self.client("pull", SMALL)

    def _client(self, parallel=1, count=1, host_network=False, image=SMALL, command=None, exited=0):
        return [str(tools.tool("bench-client")), "--endpoint", self.runtime.endpoint, f"--n={count}", f"--parallel={parallel}",
                f"--image={image}", f"--logs={self.logs}", f"--cgroup-parent={self._pods}", f"--exited={exited}", *(["--host-network"] if host_network else []),
                *([f"--command={command}"] if command else [])]

    def client(self, *words, **how):
        """Samples by name, in milliseconds."""
        done = subprocess.run([*self._client(**how), *words], stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{self.name}: {' '.join(words)}: {done.stderr.strip()}\n{self.runtime.daemon.tail()}")
        return json.loads(done.stdout or "{}")

    def processes(self):
        """All that runs for it: the daemon, and what there is for its pods."""
        return self._account.pids()

    def cpu_ms(self):
        return self._account.cpu_seconds() * 1000

    def up(self, count, **how):
        return self.client("up", count=count, **how)

    def down(self, **how):
        samples = self.client("down", **how)
        self._remove_pod_cgroups()
        return samples

    def _remove_pod_cgroups(self):
        """Those that a kubelet would have made, and would remove."""
        for point in cgroups.hierarchies().values():
            for path in (point / self._pods.strip("/")).glob("*/"):
                try:
                    path.rmdir()
                except OSError:
                    continue

    def memory_kib(self):
        """(the daemon, all that it keeps running for its pods) proportional; the containers' own processes are not in it."""
        containers = set(self.runtime.crictl.containers())
        of_containers = {pid for path in cgroups.matching(lambda name: name in containers) for pid in cgroups.pids_in(path)}
        daemon = self.runtime.daemon_pid()
        return proportional_kib(daemon), sum(proportional_kib(pid) for pid in self._account.pids() - of_containers - {daemon})

    def restart_ms(self, pods):
        """From the daemon's exec to the first list that has all its `pods`."""
        self.runtime.stop()
        waiting = subprocess.Popen([*self._client(count=pods), "await"], stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, text=True)
        stamp = self.logs.parent / "executed"
        self.runtime.start(wait=False, stamp=stamp)
        listed = int(waiting.communicate()[0])
        return listed / 1e6 - float(stamp.read_text()) * 1e3

    def idle_ms_per_second(self, seconds):
        began = self.cpu_ms()
        time.sleep(seconds)
        return (self.cpu_ms() - began) / seconds


def proportional_kib(pid):
    try:
        text = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")), 0)
