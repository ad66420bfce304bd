"""An image that is missing at first, and wants a password."""

from harness.node import registry
from harness.node.manifest import container, pod
from harness.screen import expect


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

