"""Finding, reading and removing cgroups, in every hierarchy that is mounted (v1, v2 or both)."""

import os
import pathlib
import time


def hierarchies():
    """Mount point of each hierarchy, by its controllers' name; the v2 one is ''."""
    found = {}
    with open("/proc/self/mountinfo") as table:
        for line in table:
            left, right = line.split(" - ", 1)
            kind, _, options = right.split()[:3]
            root, point = left.split()[3:5]
            if kind == "cgroup2" and root == "/":
                found[""] = pathlib.Path(point)
            elif kind == "cgroup" and root == "/":
                names = [word for word in options.split(",") if word not in ("rw", "ro") and not word.startswith("release_agent=")]
                found[",".join(names)] = pathlib.Path(point)
    return found


def matching(wanted):
    """Every cgroup whose name `wanted` accepts, children before parents."""
    found = []
    for point in hierarchies().values():
        for path, _, _ in os.walk(point, topdown=False):
            if path != str(point) and wanted(os.path.basename(path)):
                found.append(pathlib.Path(path))
    return found


def remove_tree(name):
    """Removes the cgroup `name` (from the root of each hierarchy) and all below it; the processes must be gone."""
    for point in hierarchies().values():
        for path, _, _ in os.walk(point / name.strip("/"), topdown=False):
            for _ in range(100):
                try:
                    os.rmdir(path)
                except FileNotFoundError:
                    pass
                except OSError:
                    time.sleep(0.02)
                    continue
                break


def remove_if_empty(name):
    """Removes the cgroup `name` unless something is in it or below it."""
    for point in hierarchies().values():
        try:
            os.rmdir(point / name.strip("/"))
        except OSError:
            pass


def pids_in(path):
    try:
        return [int(pid) for pid in (pathlib.Path(path) / "cgroup.procs").read_text().split()]
    except OSError:
        return []


class Group:
    """One cgroup, made in every hierarchy, to account for what runs in it."""

    def __init__(self, name, undo):
        self.name = name
        undo.push(f"cgroup {name}", self._remove)
        self._points = hierarchies()
        for controllers, point in self._points.items():
            (point / name).mkdir(parents=True, exist_ok=True)
            if "cpuset" in controllers.split(","):
                self._seed_cpuset(point)

    def _remove(self):
        remove_tree(self.name)
        for parent in list(pathlib.PurePath(self.name).parents)[:-1]:
            remove_if_empty(str(parent))

    def _seed_cpuset(self, point):
        path = point
        for part in self.name.strip("/").split("/"):
            for key in ("cpuset.cpus", "cpuset.mems"):
                if not (path / part / key).read_text().strip():
                    (path / part / key).write_text((path / key).read_text())
            path = path / part

    def enter(self):
        """For the child, between fork and exec."""
        for point in self._points.values():
            with open(point / self.name / "cgroup.procs", "w") as procs:
                procs.write("0")

    def cpu_seconds(self):
        for controllers, point in self._points.items():
            if "cpuacct" in controllers.split(","):
                return int((point / self.name / "cpuacct.usage").read_text()) / 1e9
        fields = dict(line.split() for line in (self._points[""] / self.name / "cpu.stat").read_text().splitlines())
        return int(fields["usage_usec"]) / 1e6

    def pids(self):
        """The processes in it and below it."""
        point = next((point for controllers, point in self._points.items() if "cpuacct" in controllers.split(",")), self._points.get(""))
        found = set()
        for path, _, _ in os.walk(point / self.name):
            found.update(pids_in(path))
        return found
