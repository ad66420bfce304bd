"""What the kubelet tells of what pods use."""

import json

from harness.node import resources
from harness.screen import StepFailed, eventually, expect

# Figures of a pod and of its containers that must be there, and not be 0 where marked.
_OF_POD = ("cpu.usageCoreNanoSeconds!", "memory.workingSetBytes!", "ephemeral-storage.usedBytes!")
# Its cAdvisor knows the networks of two other runtimes' pods alone.
_BY_THE_RUNTIME = ("network.rxBytes", "process_stats.process_count!")
_OF_CONTAINER = ("cpu.usageCoreNanoSeconds!", "memory.workingSetBytes!", "rootfs.usedBytes", "rootfs.capacityBytes!", "logs.usedBytes")


def _missing(what, figures, wanted):
    for path in wanted:
        value = figures
        for key in path.rstrip("!").split("."):
            value = (value or {}).get(key)
        if value is None or path.endswith("!") and not value:
            yield f"{path.rstrip('!')} of {what}"


def _burstable(node, wanted):
    """The figures of the pod called burstable, and what is missing among them."""
    summary = json.loads(node.kubelet.get("/stats/summary"))
    missing = list(_missing("the node", summary["node"], ("runtime.imageFs.usedBytes!", "memory.workingSetBytes!")))
    pod = next((one for one in summary["pods"] if one["podRef"]["name"] == "burstable-node"), None)
    if pod is None:
        return None, ["the pod"]
    missing += _missing("the pod", pod, wanted)
    containers = {one["name"]: one for one in pod.get("containers", ())}
    for name in ("one", "two"):
        missing += _missing(name, containers.get(name), _OF_CONTAINER)
    return pod, missing


def check(node, screen, from_runtime):
    more = " (by the runtime), and network and processes" if from_runtime else ""
    wanted = _OF_POD + (_BY_THE_RUNTIME if from_runtime else ())
    with screen.step(f"/stats/summary: cpu, memory and file systems of pods and containers{more}") as step:
        try:
            pod = eventually("figures", lambda: _complete(node, wanted), 30)
        except StepFailed:
            pod, missing = _burstable(node, wanted)
            raise StepFailed(f"missing: {', '.join(missing)}; there is {json.dumps(pod)}") from None
        container = next(one for one in pod["containers"] if one["name"] == "one")
        step.note(f"burstable: {pod['memory']['workingSetBytes'] >> 10} KiB, {pod['cpu']['usageCoreNanoSeconds'] / 1e6:.1f} ms of CPU; "
                  f"its first container: {container['memory']['workingSetBytes'] >> 10} KiB")
        expect(container["memory"]["workingSetBytes"] <= pod["memory"]["workingSetBytes"], "a container uses more than its pod")
        expect(container["rootfs"]["usedBytes"] >= resources.WRITTEN_BYTES, f"it has written more than {container['rootfs']['usedBytes']} bytes")


def _complete(node, wanted):
    pod, missing = _burstable(node, wanted)
    return None if missing else pod



def check_metrics(node, screen):
    with screen.step("/metrics/cadvisor, of what the runtime measures: every container by its name"):
        wanted = {"container_memory_working_set_bytes", "container_cpu_usage_seconds_total", "container_fs_usage_bytes"}
        eventually(f"{', '.join(sorted(wanted))} of burstable/one", lambda: wanted <= {
            line.partition("{")[0] for line in node.kubelet.get("/metrics/cadvisor").splitlines()
            if 'container="one"' in line and 'pod="burstable-node"' in line}, 30)
