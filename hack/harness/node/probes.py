"""What exec probes cost: the processor time of the runtime, of all that it starts and of the pods, without the kubelet's."""

import re
import time

from harness.node.manifest import container, pod

_PODS, _WARM_UP_SECONDS, _IDLE_SECONDS, _SECONDS = 20, 10, 30, 60


class Cost:
    """Figures of a minute, in milliseconds: of the pods `at_rest`, and of `probing` them `count` times."""

    def __init__(self, rest, busy):
        self.at_rest, self.probing, self.count = rest["cpu"], busy["cpu"] - rest["cpu"], busy["probes"]


def measure(play):
    """Each pod has two exec probes a second; the same pods without any tell what they cost at rest."""
    probe = {"exec": {"command": ["true"]}, "periodSeconds": 1, "timeoutSeconds": 5}
    return Cost(_phase(play, None, _IDLE_SECONDS), _phase(play, probe, _SECONDS))


def tell(screen, costs):
    """`costs` by the runtime's name."""
    screen.title(f"Processor time, ms a minute: {_PODS} pods at rest, what two exec probes a second each add, and one probe")
    for name, cost in costs.items():
        screen.note(f"{name:12} {cost.at_rest:8.0f} {cost.probing:8.0f} {cost.probing / cost.count:8.2f}   ({cost.count:.0f} probes)")
    per_probe = [cost.probing / cost.count for cost in costs.values()]
    screen.note(f"a probe costs {per_probe[0] / per_probe[-1]:.1f} times as much on {list(costs)[0]} as on {list(costs)[-1]}")


def _phase(play, probe, seconds):
    """Figures of one minute."""
    node = play.node
    with play.screen.step(f"{'with' if probe else 'without'} probes, {seconds} s"):
        probes = {"livenessProbe": probe, "readinessProbe": probe} if probe else {}
        pods = [pod(f"probed-{number}", [container("well", **probes)]) for number in range(_PODS)]
        for one in pods:
            node.kubelet.put(one)
        for one in pods:
            node.ready(one["metadata"]["name"], 120)
        time.sleep(_WARM_UP_SECONDS)
        before, began = _figures(play), time.monotonic()
        time.sleep(seconds)
        after, minutes = _figures(play), (time.monotonic() - began) / 60
        for one in pods:
            node.kubelet.drop(one["metadata"]["name"])
        for one in pods:
            node.gone(one["metadata"]["name"], 120)
    return {what: (after[what] - before[what]) / minutes for what in before}


def _figures(play):
    """Milliseconds since the start, and the kubelet's own count of probes."""
    text = play.kubelet.get("/metrics/probes")
    counted = re.findall(r'^prober_probe_total\{.*result="successful".*\} (\S+)$', text, re.M)
    return {"cpu": (play.account.cpu_seconds() - play.kubelets.cpu_seconds()) * 1000, "probes": sum(map(float, counted))}
