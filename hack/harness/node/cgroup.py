"""The cgroup that the kubelet's pods live in: below one of ours, not at the machine's root."""

import os
import pathlib
import subprocess

from harness import cgroups

# Those that a kubelet insists on, in cgroup2, where the root has them.
_CONTROLLERS = ("cpu", "cpuset", "memory", "hugetlb", "pids")


def delegate(name, undo):
    """Turns on, along the cgroup2 path to `name`, the controllers that a kubelet wants to find there."""
    point = cgroups.hierarchies().get("")
    if point is None:
        return
    wanted = [one for one in _CONTROLLERS if one in (point / "cgroup.controllers").read_text().split()]
    path = point
    for part in name.split("/"):
        missing = [one for one in wanted if one not in (path / "cgroup.subtree_control").read_text().split()]
        for one in missing:
            (path / "cgroup.subtree_control").write_text(f"+{one}")
            undo.push(f"{one} in {path}", _turn_off, path, one)
        path = path / part


def _turn_off(path, controller):
    # What lies below is gone by now, unless somebody else has moved in meanwhile: then it stays on.
    try:
        (path / "cgroup.subtree_control").write_text(f"-{controller}")
    except OSError:
        pass


class _Pods:
    """Where the kubelet's pods are: `root` is what the kubelet is told, `path` what becomes of it."""

    def below(self):
        """The paths of every cgroup below it, in every hierarchy, but those that the kubelet keeps."""
        found = set()
        for point in cgroups.hierarchies().values():
            for path, _, _ in os.walk(point / self.path()):
                found.add(os.path.relpath(path, point))
        kept = ((), ("kubepods",), ("kubepods", "burstable"), ("kubepods", "besteffort"))
        return found - {self.path(*names) for names in kept}


class Directories(_Pods):
    driver, other_driver = "cgroupfs", "systemd"

    def __init__(self, name, undo):
        self.root = name
        cgroups.Group(name, undo)
        delegate(name, undo)

    def path(self, *names):
        return "/".join([self.root, *names])

    @staticmethod
    def around(container):
        """The path around a container's."""
        return str(pathlib.PurePath(container).parent)


class Slices(_Pods):
    """systemd's. Each has all the names above it in its own."""

    driver, other_driver = "systemd", "cgroupfs"

    def __init__(self, name, undo):
        self.root = name.replace("-", "")
        slice_ = f"{self.root}.slice"
        undo.push(slice_, subprocess.run, ["systemctl", "stop", slice_])
        # Its properties are why it has the controllers that a kubelet wants to find there, and keeps them.
        cpus = ((1 << os.cpu_count()) - 1).to_bytes((os.cpu_count() + 7) // 8, "little")
        properties = ["CPUWeight t 100", "MemoryAccounting b true", "TasksAccounting b true",
                      f"AllowedCPUs ay {len(cpus)} {' '.join(str(byte) for byte in cpus)}"]
        manager = ["org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager"]
        subprocess.run(["busctl", "--quiet", "call", *manager, "StartTransientUnit", "ssa(sv)a(sa(sv))", slice_, "fail",
                        str(len(properties)), *" ".join(properties).split(), "0"], check=True, stdin=subprocess.DEVNULL)
        subprocess.run(["systemctl", "start", slice_], check=True)
        delegate(slice_, undo)

    def path(self, *names):
        parts = [self.root, *(name.replace("-", "_") for name in names)]
        return "/".join("-".join(parts[:number]) + ".slice" for number in range(1, len(parts) + 1))

    @staticmethod
    def around(container):
        """The path around a container's, whose pod has a scope."""
        return str(pathlib.PurePath(container).parent.parent)


class Values:
    """The limits of one cgroup, wherever its controllers are mounted: the same words for v1 and v2."""

    def __init__(self, path):
        """`path` is relative to the root of each hierarchy."""
        self._path = path.strip("/")
        self._points = {controller: point for names, point in cgroups.hierarchies().items() for controller in names.split(",")}

    def _read(self, controller, v1, v2):
        if controller in self._points:
            return (self._points[controller] / self._path / v1).read_text().strip()
        return (self._points[""] / self._path / v2).read_text().strip()

    def memory_limit(self):
        return int(self._read("memory", "memory.limit_in_bytes", "memory.max"))

    def cpu_quota_us(self):
        """Of 100 ms."""
        text = self._read("cpu", "cpu.cfs_quota_us", "cpu.max").split()
        return int(text[0])

    def pids_limit(self):
        return int(self._read("pids", "pids.max", "pids.max"))


def of_process(pid, controller="memory"):
    """The path of the cgroup that `pid` is in, by that controller or in cgroup2."""
    unified = None
    for line in open(f"/proc/{pid}/cgroup"):
        _, controllers, path = line.rstrip("\n").split(":", 2)
        if controller in controllers.split(","):
            return path
        if controllers == "":
            unified = path
    return unified
