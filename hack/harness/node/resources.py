"""Limits, and what happens at them."""

import pathlib

from harness.node import cgroup
from harness.node.kubelet import POD_PIDS
from harness.node.manifest import container, pod
from harness.screen import expect, expect_equal

WRITTEN_BYTES = 200 << 10
_MIB = 1 << 20


def _limits(of_cpu, of_memory, **requests):
    limits = {"cpu": of_cpu, "memory": of_memory}
    return {"limits": limits, "requests": requests or limits}


def manifests(_node):
    return [
        pod("burstable", [
            container("one", f"head -c {WRITTEN_BYTES} /dev/zero > /written; exec sleep 100000",
                      resources=_limits("200m", "64Mi", cpu="20m", memory="16Mi")),
            container("two", resources=_limits("100m", "32Mi", cpu="20m", memory="16Mi"))]),
        pod("guaranteed", [container("only", resources=_limits("50m", "48Mi"))]),
        pod("oom", [container("eater", "tail /dev/zero", resources=_limits("500m", "24Mi", cpu="20m", memory="16Mi"))], restartPolicy="Never"),
    ]


def check(node, screen, pods):
    with screen.step("limits are in the cgroups of the containers and of their pods, those below their class") as step:
        for pod_name, where, containers in (("burstable", ("kubepods", "burstable"), {"one": (20000, 64), "two": (10000, 32)}),
                                            ("guaranteed", ("kubepods",), {"only": (5000, 48)})):
            node.ready(pod_name)
            parents = set()
            for name, (quota, memory) in containers.items():
                path = node.cgroup(pod_name, name)
                values = cgroup.Values(path)
                expect_equal(f"quota and memory of {name}", (values.cpu_quota_us(), values.memory_limit()), (quota, memory * _MIB))
                parents.add(pods.around(path))
            of_pod = "/" + pods.path(*where, f"pod{node.uid(pod_name)}")
            expect_equal(f"the cgroup around {pod_name}", parents, {of_pod})
            values = cgroup.Values(of_pod)
            total = sum(quota for quota, _ in containers.values()), sum(memory for _, memory in containers.values()) * _MIB
            expect_equal(f"quota and memory of pod {pod_name}", (values.cpu_quota_us(), values.memory_limit()), total)
            expect_equal("its limit of processes", values.pids_limit(), POD_PIDS)
            step.note(of_pod)
    with screen.step("a pod without requests is the first that the kernel would kill, one with some comes later") as step:
        scores = {name: _oom_score_adj(node, name, container) for name, container in (("together", "first"), ("burstable", "one"))}
        step.note(f"oom_score_adj {scores}")
        expect_equal("of the first", scores["together"], 1000)
        expect(0 < scores["burstable"] < 1000, "of the second")
    with screen.step("too much memory: OOMKilled"):
        node.phase("oom", "Failed")
        ended = node.status("oom", "eater")["state"]["terminated"]
        expect_equal("how it ended", (ended["reason"], ended["exitCode"]), ("OOMKilled", 137))


def _oom_score_adj(node, pod_name, name):
    return int(pathlib.Path(f"/proc/{node.pid(pod_name, name)}/oom_score_adj").read_text())
