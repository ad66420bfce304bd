"""What exec probes cost: the processor time of the daemon and of the monitors, and of what these start."""

import pathlib
import re
import time

from harness import process
from harness.node.manifest import container, pod

_PODS, _WARM_UP_SECONDS, _IDLE_SECONDS, _SECONDS = 20, 10, 30, 60


def _manifests(probe):
    probes = {"livenessProbe": probe, "readinessProbe": probe} if probe else {}
    return [pod(f"probed-{number}", [container("well", **probes)]) for number in range(_PODS)]


def measure(node, screen, daemons):
    """Each pod has two exec probes a second; the same pods without any tell what they cost at rest."""
    screen.title(f"{_PODS} pods at rest, then with two exec probes a second each")
    rest = _phase(node, screen, daemons, None, _IDLE_SECONDS)
    busy = _phase(node, screen, daemons, {"exec": {"command": ["true"]}, "periodSeconds": 1, "timeoutSeconds": 5}, _SECONDS)
    screen.note(f"{busy['probes']:.0f} probes a minute; processor time in ms a minute, at rest and with them, and more per probe:")
    for what in ("daemon", "monitors", "what they start"):
        screen.note(f"{what:16} {rest[what]:8.0f} {busy[what]:8.0f} {(busy[what] - rest[what]) / busy['probes']:8.3f}")


def _phase(node, screen, daemons, probe, seconds):
    """Figures of one minute."""
    with screen.step(f"{'with' if probe else 'without'} probes, {seconds} s"):
        pods = _manifests(probe)
        for one in pods:
            node.kubelet.put(one)
        for one in pods:
            node.ready(one["metadata"]["name"], 120)
        time.sleep(_WARM_UP_SECONDS)
        monitors = {node.runtime.crictl.json("inspectp", one)["info"]["monitorPid"] for one in node.runtime.crictl.pods()}
        before = _figures(node, daemons, monitors)
        began = time.monotonic()
        time.sleep(seconds)
        after = _figures(node, daemons, monitors)
        minutes = (time.monotonic() - began) / 60
        for one in pods:
            node.kubelet.drop(one["metadata"]["name"])
        for one in pods:
            node.gone(one["metadata"]["name"], 120)
    return {what: (after[what] - before[what]) / minutes for what in before}


def _figures(node, daemons, monitors):
    """Milliseconds since the start, and the kubelet's own count of probes."""
    ran, children = 0, 0
    for pid in monitors:
        ran += int(pathlib.Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e6
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        children += (int(fields[13]) + int(fields[14])) * process.TICK_MS
    counted = re.findall(r'^prober_probe_total\{.*result="successful".*\} (\S+)$', node.kubelet.get("/metrics/probes"), re.M)
    return {"daemon": daemons.cpu_seconds() * 1000, "monitors": ran, "what they start": children, "probes": sum(map(float, counted))}
