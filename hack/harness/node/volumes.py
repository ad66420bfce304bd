"""Volumes whose mounts have options, and volumes that are images."""

from harness.node.manifest import container, empty_dir, image, mount, pod
from harness.screen import expect, expect_equal

# A kubelet drops the field without it. With ImageVolumeWithDigest one of 1.37.2 tells no digest, whatever the runtime: it looks for
# the volume's name in mounts that have none, since the CRI has no word for it. critest sees the digest.
GATES = {"VolumeBindMountOptions": True}
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
    with screen.step("an image as a volume, and a directory of one: read-only, and its programs run"):
        for path, program in (("/image", "usr/local/bin/kubia"), ("/part", "kubia")):
            expect("kubia serves" in _run(node, f"cat {path}/{program}"), f"no {program} in {path}")
            expect("Read-only file system" in _run(node, f"touch {path}/new 2>&1 || true"), f"{path} is not read-only")
        expect_equal("a program from it", _run(node, "/image/bin/busybox echo runs"), "runs")


def _run(node, script):
    return node.run("volumes", "mounts", script)


def _mounts(node):
    """The options of each mount, by its place."""
    lines = [line.split() for line in _run(node, "cat /proc/mounts").splitlines()]
    return {line[1]: set(line[3].split(",")) for line in lines}
