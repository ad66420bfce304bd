"""Volumes whose mounts have options, and volumes that are images."""

from harness.node.manifest import container, empty_dir, image, mount, pod
from harness.screen import expect, expect_equal

# Fields and figures that a kubelet has only with these.
GATES = {"VolumeBindMountOptions": True, "ImageVolumeWithDigest": True}
_OPTIONS = ("noexec", "nodev", "nosuid")


def manifests(_node):
    of_image = {"name": "image", "image": {"reference": image("kubia"), "pullPolicy": "IfNotPresent"}}
    return [pod("volumes", [container("mounts", volumeMounts=[
        mount("data", "/strict", bindMountOptions=list(_OPTIONS)), mount("data", "/plain"), mount("data", "/noexec", bindMountOptions=["noexec"]),
        mount("image", "/image"), mount("image", "/part", subPath="usr/local/bin")])], volumes=[empty_dir("data"), of_image])]


def check(node, screen):
    with screen.step("bindMountOptions: one volume, mounted three times, and each mount has its own"):
        node.ready("volumes")
        mounted = _mounts(node)
        for path, wanted in (("/strict", set(_OPTIONS)), ("/plain", set()), ("/noexec", {"noexec"})):
            expect_equal(f"of {path}", mounted[path] & set(_OPTIONS), wanted)
        _run(node, "cp /bin/busybox /plain/echo")
        expect_equal("a program, by the mount without", _run(node, "/plain/echo runs"), "runs")
        for path in ("/noexec", "/strict"):
            expect("Permission denied" in _run(node, f"{path}/echo runs 2>&1 || true"), f"it runs by {path}, too")
    with screen.step("an image as a volume, and a directory of one: read-only, runs, and the pod's status has its digest") as step:
        for path, program in (("/image", "usr/local/bin/kubia"), ("/part", "kubia")):
            expect("kubia serves" in _run(node, f"cat {path}/{program}"), f"no {program} in {path}")
            expect("Read-only file system" in _run(node, f"touch {path}/new 2>&1 || true"), f"{path} is not read-only")
        expect_equal("a program from it", _run(node, "/image/bin/busybox echo runs"), "runs")
        told = node.wait_status("volumes", "mounts", "has digests", _digests)
        step.note(f"{sorted(told)[0]}")
        reference = node.runtime.crictl.json("inspecti", image("kubia"))["status"]["repoDigests"]
        expect_equal("its digest", told, set(reference))


def _run(node, script):
    return node.run("volumes", "mounts", script)


def _mounts(node):
    """The options of each mount, by its place."""
    lines = [line.split() for line in _run(node, "cat /proc/mounts").splitlines()]
    return {line[1]: set(line[3].split(",")) for line in lines}


def _digests(status):
    """What the kubelet says of the volumes that are images; nothing until it says it of both."""
    told = [one.get("volumeStatus", {}).get("image", {}).get("imageRef") for one in status.get("volumeMounts", ()) if one["name"] == "image"]
    return set(told) if len(told) == 2 and all(told) else None
