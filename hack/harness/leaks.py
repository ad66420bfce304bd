"""What is left over: a snapshot before, a snapshot after, and what the second has that the first has not."""

import os
import re
import subprocess

from harness import cgroups, cni, mounts, process

# What Debian's plugins leave for the next pod, by design: a bridge, and empty chains to hang rules into.
_PLUGINS_LEAVE_LINK = "cni0"


def _lines(argv):
    return subprocess.run([str(word) for word in argv], check=True, text=True, stdin=subprocess.DEVNULL,
                          capture_output=True).stdout.splitlines()


def _links(netns):
    return {line.split(":")[1].split("@")[0].strip() for line in _lines([*netns.prefix, "ip", "-o", "link"])}


def _rules(netns):
    """Every rule, set element and chain, with the chain or set that holds it."""
    found, holder = set(), ""
    for line in _lines([*netns.prefix, "nft", "list", "ruleset"]):
        text = re.sub(r"counter packets \d+ bytes \d+", "counter", line.strip())
        if text.endswith("{"):
            holder = text
        if text and not text.startswith(("}", "#")):
            found.add(f"{holder} {text}" if text != holder else text)
    return found


def _files(directory, ignored):
    """Names below `directory`, as paths relative to it; not those below the `ignored` ones."""
    found = set()
    for path, directories, files in os.walk(directory):
        relative = os.path.relpath(path, directory)
        directories[:] = [name for name in directories if os.path.normpath(os.path.join(relative, name)) not in ignored]
        found.update(os.path.normpath(os.path.join(relative, name)) for name in directories + files)
    return found


def _open_files(pid):
    """What the daemon has open, less what comes and goes with its clients."""
    found = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            found.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
        except FileNotFoundError:
            continue
    return sorted(re.sub(r"\d+", "N", name) for name in found if not name.startswith(("socket:", "pipe:")))


class Snapshot:
    """`ids` are those of the pods and containers that have been; `ignored` are directories of the runtime's that stay."""

    def __init__(self, runtime, ids, ignored):
        process.reap_orphans()
        netns, directory = runtime.netns, runtime.directory
        self.kinds = {
            "process": {f"{pid} {process.command(pid)}" for pid in process.descendants(os.getpid()) if pid != runtime.daemon_pid()},
            "mount": set(mounts.below(directory)),
            "cgroup": {str(path) for path in cgroups.matching(lambda name: name in ids)},
            "link": _links(netns),
            "nft rule": _rules(netns),
            "address": set(cni.leased(directory / "cni")),
            "file": _files(directory, ignored),
            "network namespace": {process.netns_of(pid) for pid in process.descendants(os.getpid())} - {None},
        }
        self.open_files = _open_files(runtime.daemon_pid())


def left_over(before, after, runtime, lasting):
    """Lines that say what is there now and was not there before; files named in `lasting` may be."""
    found = []
    for kind, now in after.kinds.items():
        for item in sorted(now - before.kinds[kind] - (lasting if kind == "file" else set())):
            if runtime.network == "cni" and (kind == "link" and item == _PLUGINS_LEAVE_LINK or kind == "nft rule" and _of_plugins(item)):
                continue
            found.append(f"{kind}: {item}")
    opened = list(after.open_files)
    for name in before.open_files:
        if name in opened:
            opened.remove(name)
    found += [f"open file of the daemon: {name}" for name in opened]
    return found


def _of_plugins(rule):
    """Empty base chains and the jumps between them, not rules for a pod's address."""
    return not re.search(r"\d+\.\d+\.\d+\.\d+(?!/4)", rule.replace("127.0.0.1", ""))
