"""What the kubelet tells of what pods use."""

import json

from harness.screen import eventually, expect


def check(node, screen, source):
    with screen.step(f"/stats/summary ({source}): cpu, memory, network, file systems, processes of pods and containers") as step:
        pod = eventually("full figures", lambda: _complete(node), 60)
        container = next(one for one in pod["containers"] if one["name"] == "one")
        step.note(f"burstable: {pod['memory']['workingSetBytes'] >> 10} KiB, {pod['cpu']['usageCoreNanoSeconds'] / 1e6:.1f} ms of CPU; "
                  f"its first container: {container['memory']['workingSetBytes'] >> 10} KiB")
        expect(container["memory"]["workingSetBytes"] <= pod["memory"]["workingSetBytes"], "a container uses more than its pod")


def _complete(node):
    summary = json.loads(node.kubelet.get("/stats/summary"))
    if not summary["node"].get("runtime", {}).get("imageFs", {}).get("usedBytes"):
        return None
    pods = {one["podRef"]["name"].removesuffix("-node"): one for one in summary["pods"]}
    pod = pods.get("burstable")
    wanted = (lambda: pod["cpu"]["usageCoreNanoSeconds"] and pod["memory"]["workingSetBytes"] and pod["network"]["rxBytes"] is not None
              and pod["process_stats"]["process_count"] and {one["name"] for one in pod["containers"]} == {"one", "two"}
              and all(one["cpu"]["usageCoreNanoSeconds"] and one["memory"]["workingSetBytes"] and one["rootfs"]["usedBytes"]
                      and one["logs"] for one in pod["containers"]))
    try:
        return pod if pod and wanted() else None
    except KeyError:
        return None


def check_cadvisor(node, screen):
    with screen.step("/metrics/cadvisor has the containers by name"):
        eventually("container_memory_working_set_bytes of burstable/one", lambda: any(
            line.startswith("container_memory_working_set_bytes") and 'container="one"' in line and 'pod="burstable-node"' in line
            for line in node.kubelet.get("/metrics/cadvisor").splitlines()), 40)
