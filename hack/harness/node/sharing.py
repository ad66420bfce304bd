"""What containers of a pod share, and what the kubelet gives them: volumes, environment, security."""

import pathlib

from harness.node.kubelet import NODE
from harness.node.manifest import container, empty_dir, env, host_path, mount, pod
from harness.screen import expect, expect_equal

_SETTINGS = "colour: green\n"
_GROUP = 4242


def manifests(node):
    (node.shared / "settings").write_text(_SETTINGS)
    writes = [mount("disk", "/disk"), mount("memory", "/memory"), mount("disk", "/below", subPath="sub/directory")]
    reads = [mount("disk", "/disk", readOnly=True), mount("memory", "/memory"), mount("settings", "/etc/settings", readOnly=True),
             mount("told", "/told")]
    downward = {"name": "told", "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}}
    return [
        pod("sharing", [
            container("writer", "echo on disk > /disk/note; echo in memory > /memory/note; echo below > /below/note; exec sleep 100000",
                      volumeMounts=writes, livenessProbe={"exec": {"command": ["test", "-e", "/below/note"]}, "periodSeconds": 5}),
            container("reader", volumeMounts=reads, resources={"limits": {"memory": "40Mi"}, "requests": {"memory": "1Mi"}}, env=[
                env("POD", "metadata.name"), env("ADDRESS", "status.podIP"), env("NODE", "spec.nodeName"),
                {"name": "LIMIT", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
                {"name": "ALL", "value": "$(POD) at $(ADDRESS)"}])],
            metadata={"labels": {"colour": "green"}},
            volumes=[empty_dir("disk"), empty_dir("memory", medium="Memory", sizeLimit="8Mi"),
                     host_path("settings", node.shared / "settings", "File"), downward]),
        pod("together", [container("first"), container("second", "exec sleep 200002")], shareProcessNamespace=True),
        pod("secured", [container("locked", volumeMounts=[mount("data", "/data")], securityContext={
            "runAsUser": 1000, "runAsGroup": 2000, "readOnlyRootFilesystem": True, "allowPrivilegeEscalation": False,
            "seccompProfile": {"type": "RuntimeDefault"}, "capabilities": {"drop": ["ALL"]}})],
            securityContext={"fsGroup": _GROUP, "supplementalGroups": [3000]}, volumes=[empty_dir("data")]),
        pod("mapped", [container("root", "touch /data/mine; exec sleep 100000", volumeMounts=[mount("data", "/data")])],
            hostUsers=False, volumes=[empty_dir("data")]),
    ]


def check(node, screen):
    with screen.step("volumes: emptyDir on disk and in memory, a subPath, a file of the host, the pod's labels"):
        node.ready("sharing")
        for file, text in (("/disk/note", "on disk"), ("/memory/note", "in memory"), ("/disk/sub/directory/note", "below"),
                           ("/etc/settings", _SETTINGS.strip()), ("/told/labels", 'colour="green"')):
            expect_equal(file, node.run("sharing", "reader", f"cat {file}"), text)
        mounted = {line.split()[1]: line.split() for line in node.run("sharing", "reader", "cat /proc/mounts").splitlines()}
        expect_equal("the kind of /memory", mounted["/memory"][2], "tmpfs")
        expect("size=8192k" in mounted["/memory"][3], f"/memory has the options {mounted['/memory'][3]}")
        for path in ("/disk", "/etc/settings"):
            expect(mounted[path][3].startswith("ro"), f"{path} is not read-only")
    with screen.step("the environment, from the pod's own fields"):
        address = node.kubelet.pods()["sharing"]["status"]["podIP"]
        got = node.run("sharing", "reader", 'echo "$POD,$ADDRESS,$NODE,$LIMIT,$ALL"')
        expect_equal("it", got, f"sharing-{NODE},{address},{NODE},40,sharing-{NODE} at {address}")
    with screen.step("shareProcessNamespace: one process table, pause first"):
        node.ready("together")
        seen = node.run("together", "first", "ps -o pid,args")
        first = seen.splitlines()[1].split()
        expect(first[0] == "1" and "pause" in first[1], f"process 1 is {first}")
        expect("sleep 200002" in seen, "the other container's process is not seen")
    with screen.step("securityContext: user, groups, no privileges, seccomp, read-only root, a volume of the group") as step:
        node.ready("secured")
        process = node.process("secured", "locked")
        told = {key: process[key] for key in ("Uid", "Gid", "Groups", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp")}
        step.note(", ".join(f"{key} {' '.join(value.split())}" for key, value in told.items()))
        expect_equal("users", set(told["Uid"].split()), {"1000"})
        expect_equal("groups", set(told["Gid"].split()), {"2000"})
        expect({"3000", str(_GROUP)} <= set(told["Groups"].split()), "supplementary groups are missing")
        expect_equal("capabilities", (int(told["CapEff"], 16), int(told["CapBnd"], 16)), (0, 0))
        expect_equal("no new privileges, and a filter", (told["NoNewPrivs"], told["Seccomp"]), ("1", "2"))
        got = node.run("secured", "locked", "touch /new 2>&1; touch /data/new && stat -c %g /data/new")
        expect("Read-only file system" in got and got.endswith(str(_GROUP)), got)
    with screen.step("hostUsers false: root in the pod is nobody on the host, and yet the owner of what it writes") as step:
        node.ready("mapped")
        pid = node.pid("mapped", "root")
        inside, outside, length = (int(number) for number in pathlib.Path(f"/proc/{pid}/uid_map").read_text().split())
        step.note(f"users {inside} to {inside + length - 1} are {outside} to {outside + length - 1} on the host")
        expect_equal("the first user inside, and how many", (inside, length), (0, 65536))
        expect(outside >= 65536, "the host's users are among them")
        expect_equal("who runs it, on the host", set(node.process("mapped", "root")["Uid"].split()), {str(outside)})
        volume = node.kubelet.directory / "root" / "pods" / node.uid("mapped") / "volumes" / "kubernetes.io~empty-dir" / "data"
        expect_equal("the owner of its file, inside and on the host",
                     (node.run("mapped", "root", "stat -c %u /data/mine"), (volume / "mine").stat().st_uid), ("0", 0))
