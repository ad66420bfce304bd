"""What the CNI plugins take by themselves: the floor of every pod on a network of theirs."""

import json
import os
import subprocess
import time

from harness import cni
from harness.netns import Netns


def own_ms(directory, undo, count):
    """Times of ADD and of DEL through the whole list, called as a runtime calls them, with nothing else around."""
    netns = Netns(undo)
    conflist = json.loads(next(cni.write_conflist(directory / "plugins").iterdir()).read_text())
    added, deleted = [], []
    for number in range(count):
        inside = Netns(undo)
        attachment = {"CNI_CONTAINERID": f"floor{number}", "CNI_NETNS": f"/proc/{inside.holder}/ns/net", "CNI_IFNAME": "eth0"}
        began = time.monotonic()
        result = None
        for plugin in conflist["plugins"]:
            result = _call(netns, "ADD", conflist, plugin, result, attachment)
        added.append((time.monotonic() - began) * 1000)
        began = time.monotonic()
        for plugin in reversed(conflist["plugins"]):
            _call(netns, "DEL", conflist, plugin, result, attachment)
        deleted.append((time.monotonic() - began) * 1000)
    return added, deleted


def _call(netns, command, conflist, plugin, previous, attachment):
    config = {**plugin, "name": conflist["name"], "cniVersion": conflist["cniVersion"], "runtimeConfig": {}}
    if previous:
        config["prevResult"] = previous
    done = subprocess.run([*netns.prefix, f"{cni.plugins()}/{plugin['type']}"], input=json.dumps(config), text=True, capture_output=True,
                          env={**os.environ, **attachment, "CNI_COMMAND": command, "CNI_PATH": cni.plugins()})
    if done.returncode != 0:
        raise RuntimeError(f"{plugin['type']} {command}: {done.stdout}{done.stderr}")
    return json.loads(done.stdout) if done.stdout.strip() else None
