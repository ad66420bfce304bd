"""The cgroup that the kubelet's pods live in: below one of ours, not at the machine's root."""

import os

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


def below(name):
    """Every cgroup below `name`, in every hierarchy, as paths relative to it."""
    found = set()
    for point in cgroups.hierarchies().values():
        for path, _, _ in os.walk(point / name):
            found.add(os.path.relpath(path, point / name))
    return found - {"."}


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
