"""The distribution's containerd with runc or crun, as a daemon of our own."""

import pathlib
import shutil

from harness import cgroups, cni, registry
from harness.runtime import Runtime

_CONFIG = """version = 2
root = "{dir}/lib"
state = "{dir}/run"
disabled_plugins = ["io.containerd.internal.v1.tracing", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs"]
[grpc]
  address = "{dir}/run/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "{dir}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{registry}/pause:3.10"
  stream_server_address = "127.0.0.1"
  restrict_oom_score_adj = true
  tolerate_missing_hugetlb_controller = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "{confs}"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{mirrors}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "oci"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.oci]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.oci.options]
      BinaryName = "{program}"
      Root = "{dir}/run/oci"
"""


class Containerd(Runtime):
    name = "containerd"
    oci_runtime = "runc"
    cgroups_left = ("/k8s.io",)

    # Its shims' sockets lie here whatever the configuration says.
    _SHIMS = pathlib.Path("/run/containerd/s")

    def prepare(self):
        self._shims_before = [path for path in (self._SHIMS, self._SHIMS.parent) if path.exists()]
        self.socket = self.directory / "run" / "containerd.sock"
        self._config = self.directory / "containerd.toml"
        self._config.write_text(_CONFIG.format(
            dir=self.directory, registry=registry.ADDRESS, mirrors=self.mirrors or "", plugins=cni.plugins(),
            confs=cni.write_conflist(self.directory / "cni"), program=shutil.which(self.oci_runtime)))

    def argv(self):
        return ["containerd", "--config", self._config, "--log-level", "warn"]

    def known_ids(self):
        return [path.name for path in self.directory.glob("run/io.containerd.runtime.v2.task/k8s.io/*")]

    def scour(self):
        super().scour()
        for path in (self._SHIMS, self._SHIMS.parent):
            if path.exists() and path not in self._shims_before and not any(path.iterdir()):
                path.rmdir()


class ContainerdCrun(Containerd):
    """crun refuses v1 and cgroup2 side by side: it is shown v1 alone."""

    oci_runtime = "crun"

    def argv(self):
        argv = super().argv()
        cgroup2 = cgroups.hierarchies().get("")
        if cgroup2 is None or len(cgroups.hierarchies()) == 1:
            return argv
        return ["unshare", "--mount", "--propagation", "private", "sh", "-ec", 'umount "$0"; exec "$@"', cgroup2, *argv]
