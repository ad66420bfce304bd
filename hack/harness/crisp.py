"""crispd, as hack/build leaves it."""

import re

from harness import cni, paths
from harness.runtime import Runtime

# The distribution's OCI runtimes.
HANDLERS = {"runc": "/usr/sbin/runc", "crun": "/usr/bin/crun"}


class Crisp(Runtime):
    name = "crisp"
    cgroups_left = ("/crisp",)
    # The names of its external runtimes.
    handlers = ()
    # How long bridge and table outlive the last pod; here not at all, so that what is left can be looked at once the pods are gone.
    network_idle_seconds = 0

    def __init__(self, *where, cgroup_driver="cgroupfs", log="info", **how):
        self.cgroup_driver, self._log_filter = cgroup_driver, log
        super().__init__(*where, **how)

    def prepare(self):
        self.socket = self.directory / "run" / "crisp.sock"
        self._options = ["--dir", self.directory, "--lib-dir", paths.BIN, "--cgroup-driver", self.cgroup_driver,
                         "--log", self._log_filter]
        config = self.directory / "crisp.toml"
        config.write_text(f"[network]\nidle_seconds = {self.network_idle_seconds}\n"
                          + "".join(f"[runtimes.{name}]\npath = '{HANDLERS[name]}'\n" for name in self.handlers))
        self._options += ["--config", config]
        if self.mirrors:
            self._options += ["--registry-config-dir", self.mirrors]
        if self.network == "cni":
            confs = cni.write_conflist(self.directory / "cni")
            self._options += ["--network", "cni", "--cni-conf-dir", confs, "--cni-bin-dir", cni.plugins()]
        elif self.network == "auto":
            self._options += ["--network", "auto", "--cni-conf-dir", self.directory / "cni" / "net.d", "--cni-bin-dir", cni.plugins()]
        else:
            self._options += ["--network", "embedded"]

    def asked(self, size=0):
        """What its log, beyond the first `size` bytes, says it was asked: names of RPCs."""
        with open(self.log, errors="replace") as log:
            log.seek(size)
            return set(re.findall(r'rpc\{rpc="(\w+)"', log.read()))

    def argv(self):
        return [paths.BIN / "crispd", *self._options]

    def known_ids(self):
        # pods/<sandbox>/ in both directories; per container a directory or a file named by its id below that.
        found = set()
        for pods in (self.directory / "lib" / "pods", self.directory / "run" / "pods"):
            for path in pods.rglob("*") if pods.exists() else ():
                if len(path.stem) >= 32 and all(digit in "0123456789abcdef" for digit in path.stem):
                    found.add(path.stem)
                if len(path.relative_to(pods).parts) == 1:
                    found.add(path.name)
        return found
