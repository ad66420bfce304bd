"""Daemons that we start, and every process below us.

We make ourselves the subreaper, so what a daemon leaves behind (a monitor, a shim, a container)
comes to us and cannot hide: nothing is ever looked up, or ended, by its name.
"""

import ctypes
import os
import signal
import subprocess
import time

_PR_SET_CHILD_SUBREAPER = 36
# What /proc counts processor time in.
TICK_MS = 1000 / os.sysconf("SC_CLK_TCK")


class ProcessError(Exception):
    pass


def become_subreaper():
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def _parents():
    """pid -> (parent, state), for every process."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as stat:
                    fields = stat.read().rsplit(")", 1)[1].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            found[int(name)] = (int(fields[1]), fields[0])
    return found


def descendants(root):
    """The pids below `root`, without it; the dead that wait to be reaped are left out."""
    table = _parents()
    children = {}
    for pid, (parent, _) in table.items():
        children.setdefault(parent, []).append(pid)
    below, todo = [], [root]
    while todo:
        for pid in children.get(todo.pop(), ()):
            todo.append(pid)
            if table[pid][1] != "Z":
                below.append(pid)
    return below


def command(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().replace(b"\0", b" ").decode(errors="replace").strip() or f"[{pid}]"
    except (FileNotFoundError, ProcessLookupError):
        return f"[{pid}, gone]"


def reap_orphans():
    """Reaps the dead that came to us as their subreaper, not those that a Daemon waits for."""
    awaited = {popen.pid for popen in Daemon.running}
    for pid, (parent, state) in _parents().items():
        if parent == os.getpid() and state == "Z" and pid not in awaited:
            try:
                os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                pass


def netns_of(pid):
    """The network namespace of `pid`; None if it is gone."""
    try:
        return os.readlink(f"/proc/{pid}/ns/net")
    except (FileNotFoundError, ProcessLookupError):
        return None


def end_all(find):
    """Kills what `find` finds until it finds nothing, reaping what comes to us."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        left = find()
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        reap_orphans()
        if not left:
            return
        time.sleep(0.02)
    raise ProcessError("still there after KILL: " + ", ".join(command(pid) for pid in left))


class Daemon:
    """A process that serves until it is stopped; its output goes to `log`."""

    running = set()

    def __init__(self, argv, log, env=None, setup=None, cwd=None):
        self.argv, self.log = [str(word) for word in argv], log
        with open(log, "ab") as out:
            self._popen = subprocess.Popen(self.argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                           env=env, preexec_fn=setup, cwd=cwd, start_new_session=True)
        Daemon.running.add(self._popen)
        self.pid = self._popen.pid

    def wait_until(self, ready, seconds=30):
        deadline = time.monotonic() + seconds
        while not ready():
            if self._popen.poll() is not None:
                raise ProcessError(f"{self.argv[0]} ended with {self._popen.returncode}:\n{self.tail()}")
            if time.monotonic() > deadline:
                raise ProcessError(f"{self.argv[0]} is not ready after {seconds} s:\n{self.tail()}")
            time.sleep(0.01)

    def alive(self):
        return self._popen.poll() is None

    def stop(self, number=signal.SIGTERM, seconds=15):
        """Gives the exit code; kills it when it does not end in time."""
        if self._popen.poll() is None:
            self._popen.send_signal(number)
            try:
                self._popen.wait(seconds)
            except subprocess.TimeoutExpired:
                self._popen.kill()
                self._popen.wait()
        Daemon.running.discard(self._popen)
        return self._popen.returncode

    def tail(self, lines=15):
        with open(self.log, errors="replace") as file:
            return "".join(file.readlines()[-lines:])
