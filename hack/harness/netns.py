"""A network of our own, so that the machine's links, rules and forwarding stay as they are."""

import concurrent.futures
import ctypes
import http.client
import os
import subprocess

# An address of the "host" inside, beside loopback; from the block that documentation uses.
ADDRESS = "192.0.2.2"
_LOOPBACK_AND_UPLINK = f"""
ip link set lo up
ip link add uplink type veth peer name outside
ip address add {ADDRESS}/24 dev uplink
ip link set outside up
ip link set uplink up
ip route add default via 192.0.2.1 dev uplink
"""


_CLONE_NEWNET = 0x40000000


def _get(address, port, path):
    connection = http.client.HTTPConnection(address, port, timeout=5)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace").strip()
    except OSError:
        return None
    finally:
        connection.close()


class Netns:
    """A network namespace held by a process of ours: it goes when that process goes."""

    def __init__(self, undo):
        # It says when it is inside, and ends when we end, by the pipe to its stdin.
        self._holder = subprocess.Popen(["unshare", "--net", "sh", "-c", "echo inside; exec cat"], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        undo.push("the network namespace", self._end)
        self._holder.stdout.readline()
        # Not `ip netns exec`: that hides /sys/fs/cgroup.
        self.prefix = ["nsenter", f"--net=/proc/{self._holder.pid}/ns/net", "--"]
        self.holder = self._holder.pid
        self.run(["sh", "-ec", _LOOPBACK_AND_UPLINK])

    def run(self, argv, **options):
        return subprocess.run(self.prefix + [str(word) for word in argv], check=True, text=True,
                              stdin=subprocess.DEVNULL, capture_output=True, **options).stdout

    def get(self, address, port, path="/"):
        """Status and text of an HTTP answer, asked for from inside; None if nobody answers."""
        return self.inside(_get, address, port, path)

    def inside(self, work, *args):
        """What `work` gives, done inside."""
        # A thread of its own enters, and ends: only that one changes its network.
        with concurrent.futures.ThreadPoolExecutor(max_workers=1, initializer=self._enter) as inside:
            return inside.submit(work, *args).result()

    def _enter(self):
        with open(f"/proc/{self.holder}/ns/net") as namespace:
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")

    def _end(self):
        self._holder.stdin.close()
        self._holder.wait()


class HostNetwork:
    """The same face, for a command that was asked to stay on the machine's network."""

    prefix = []
    holder = os.getpid()
    run = Netns.run

    def get(self, address, port, path="/"):
        return _get(address, port, path)

    def inside(self, work, *args):
        return work(*args)
