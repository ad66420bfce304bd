"""Lists that come in parts."""

from harness.screen import eventually, expect

_STREAMS = {"StreamPodSandboxes", "StreamContainers", "StreamImages", "StreamPodSandboxStats", "StreamPodSandboxMetrics"}


def check(node, screen, size):
    """`size` is how long the daemon's log was when the kubelet came that has the gate CRIListStreaming."""
    with screen.step("CRIListStreaming: pods, containers, images, figures come in parts") as step:
        node.kubelet.get("/stats/summary")
        node.kubelet.get("/metrics/cadvisor")
        eventually(", ".join(sorted(_STREAMS)), lambda: _STREAMS <= node.runtime.asked(size), 60)
        step.note(", ".join(sorted(name for name in node.runtime.asked(size) if name.startswith("Stream"))))
        expect(not node.kubelet.says("not implemented, falling back to List"), "one is not there, says the kubelet's log")
