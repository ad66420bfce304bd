"""Images: one that is missing at first and wants a password, and one that fills the disk."""

import os
import subprocess

from fixtures.image import ImageSet
from fixtures.layer import Layer
from harness import mounts
from harness.node import registry
from harness.node.manifest import container, image, pod
from harness.screen import eventually, expect, expect_equal

DISK_MIB, ALARM_PERCENT = 192, 60
_BALLAST = f"{registry.ADDRESS}/node/ballast:1"


def manifests(_node):
    return [pod("late", [container("waits", image=registry.IMAGE)])]


def check(node, screen, private):
    with screen.step("an image that is not there: ErrImagePull, then ImagePullBackOff, and nothing runs") as step:
        expect(private.refuses_strangers(), "the registry wants no password")
        seen = set()

        def backing_off(status):
            waiting = status["state"].get("waiting", {})
            seen.add(waiting.get("reason"))
            return waiting.get("reason") == "ImagePullBackOff" and waiting

        step.note(node.wait_status("late", "waits", "backs off", backing_off)["message"][:300])
        expect(seen <= {"ErrImagePull", "ImagePullBackOff", "ContainerCreating", "PodInitializing", None}, f"reasons {seen}")
    with screen.step("pushed meanwhile: pulled with the kubelet's credentials, without which the registry answers 401"):
        private.push(registry.late())
        node.ready("late")



def small_disk(directory, undo):
    """A file system of its own for the runtime's images, small enough to be filled."""
    directory.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "none", directory], check=True)
    undo.push(f"file system on {directory}", mounts.detach_below, directory)


def check_pressure(node, screen, private):
    """Last of all: a kubelet in need removes what has ended, too."""
    with screen.step(f"less than {ALARM_PERCENT} % of the images' disk is free: the kubelet removes the image that nobody uses, and no other"):
        images = ImageSet()
        images.add("node/ballast", ["1"], [Layer().file("ballast", os.urandom(DISK_MIB // 2 << 20)).seal()], {})
        private.push(images)
        node.runtime.crictl("pull", "--creds", registry.CREDENTIALS, _BALLAST)
        expect(_BALLAST in _tags(node), "the image is not there")
        eventually(f"{_BALLAST} is gone", lambda: _BALLAST not in _tags(node), 60)
        used = {image("toolbox"), image("kubia"), registry.IMAGE}
        expect_equal("the others", used & _tags(node), used)
        evicted = [name for name, found in node.kubelet.pods().items() if found["status"].get("reason") == "Evicted"]
        expect_equal("pods evicted", evicted, [])


def _tags(node):
    return {tag for one in node.runtime.crictl.json("images", "-o", "json")["images"] for tag in one["repoTags"]}
