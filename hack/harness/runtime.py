"""What the two runtimes under test have in common."""

import shutil
import subprocess

from harness import cgroups, crictl, mounts, process, tools
from harness.process import Daemon


class Runtime:
    """A daemon under test, with everything of its below `directory`, in the network namespace given.

    `network` is "cni" or, for crisp alone, "embedded". `group` is the cgroup the daemon runs in.
    """

    name = None
    # Parents of the pods' cgroups that the runtime makes and does not remove.
    cgroups_left = ()

    def __init__(self, directory, netns, undo, network="cni", mirrors=None, group=None):
        if group is None:
            group = cgroups.Group(f"crisp-hack/{directory.parent.name}", undo)
        self.directory, self.netns, self.network, self.mirrors, self.group = directory, netns, network, mirrors, group
        directory.mkdir(parents=True, exist_ok=True)
        self.log = directory / f"{self.name}.log"
        self.daemon = None
        # Last of all: whatever the daemon failed to undo.
        undo.push(f"what {self.name} left", self.scour)
        undo.push(f"the pods of {self.name}", self._end_pods)
        mounts.tmpfs(directory / "run")
        self.prepare()
        self.start()
        self.crictl = crictl.Crictl(tools.crictl(), self.endpoint, directory)

    @property
    def endpoint(self):
        return f"unix://{self.socket}"

    def prepare(self):
        """Writes the configuration."""

    def argv(self):
        raise NotImplementedError

    def start(self, wait=True, stamp=None):
        """`stamp`: a file that gets the time at which the daemon was executed, in seconds since 1970."""
        stamped = ["bash", "-c", 'echo "$EPOCHREALTIME" >"$0" && exec "$@"', stamp] if stamp else []
        self.daemon = Daemon([*self.netns.prefix, *stamped, *self.argv()], self.log, setup=self.group.enter, cwd=self.directory)
        if wait:
            self.daemon.wait_until(self._serves)

    def stop(self, **how):
        return self.daemon.stop(**how)

    def daemon_pid(self):
        return self.daemon.pid

    def _serves(self):
        return self.socket.exists() and subprocess.run(
            [tools.crictl(), "-r", self.endpoint, "-i", self.endpoint, "-t", "2s", "info"],
            stdin=subprocess.DEVNULL, capture_output=True).returncode == 0

    def _end_pods(self):
        if self.daemon and self.daemon.alive():
            try:
                self.crictl.remove_all()
            finally:
                self.stop()

    def scour(self):
        if self.daemon:
            self.daemon.stop()
        ids = set(self.known_ids())
        process.end_all(lambda: self.processes(ids))
        mounts.detach_below(self.directory)
        for path in cgroups.matching(lambda name: name in ids):
            path.rmdir()
        for name in self.cgroups_left:
            cgroups.remove_if_empty(name)
        shutil.rmtree(self.directory)

    def processes(self, ids):
        """Every process of the daemon and of the pods and containers `ids`."""
        pods = cgroups.matching(lambda name: name in ids)
        return self.group.pids().union(*(cgroups.pids_in(path) for path in pods))

    def known_ids(self):
        """Ids of the pods and containers that have a directory still."""
        return []
