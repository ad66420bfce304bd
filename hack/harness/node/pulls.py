"""Images: one that is missing, one that wants a password, and those that nobody needs."""

from harness.node import registry
from harness.node.manifest import container, image, pod
from harness.screen import eventually, expect, expect_equal


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
        private.push()
        node.ready("late")


def leave_unused(node):
    """An image that no container uses; gives its reference."""
    reference = image("nginx")
    node.runtime.crictl("pull", reference)
    return reference


def check_collected(node, screen, reference):
    with screen.step("the kubelet collects images that nobody uses, and no other"):
        eventually(f"{reference} is gone", lambda: reference not in _tags(node), 30)
        used = {image("toolbox"), image("kubia"), registry.IMAGE}
        expect_equal("images still there", used & _tags(node), used)


def _tags(node):
    return {tag for one in node.runtime.crictl.json("images", "-o", "json")["images"] for tag in one["repoTags"]}
