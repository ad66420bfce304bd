"""Probes: by exec, HTTP and TCP."""

from harness.node.manifest import container, image, pod
from harness.node.node import when
from harness.screen import expect, expect_equal

_HTTP_SECONDS, _TCP_SECONDS = 4, 2
_EVERY_SECOND = {"periodSeconds": 1, "timeoutSeconds": 5}


def manifests(_node):
    live = {"exec": {"command": ["sh", "-c", "test ! -e /tmp/sick && echo >> /tmp/probed"]}, "failureThreshold": 1, **_EVERY_SECOND}
    return [
        pod("live", [container("sick", "sleep 3; touch /tmp/sick; exec sleep 100000", livenessProbe=live)]),
        pod("steady", [container("well", livenessProbe=live)]),
        pod("slow", [
            container("http", f"sleep {_HTTP_SECONDS}; exec kubia", image=image("kubia"),
                      startupProbe={"httpGet": {"path": "/", "port": 8080}, "failureThreshold": 60, **_EVERY_SECOND},
                      livenessProbe={"httpGet": {"path": "/", "port": 8080}, **_EVERY_SECOND}),
            container("tcp", f"sleep {_TCP_SECONDS}; exec httpd -f -p 9090",
                      readinessProbe={"tcpSocket": {"port": 9090}, **_EVERY_SECOND})]),
    ]


def check(node, screen):
    with screen.step("exec: a liveness probe that fails restarts its container, and no other") as step:
        status = node.wait_status("live", "sick", "restarted", lambda status: status["restartCount"] >= 1 and status)
        ended = status["lastState"].get("terminated") or node.status("live", "sick")["lastState"]["terminated"]
        step.note(f"exit code {ended['exitCode']}, {ended['reason']}")
        expect_equal("its exit code", ended["exitCode"], 137)
        expect_equal("restarts of the healthy one", node.status("steady", "well")["restartCount"], 0)
    with screen.step("HTTP startup and TCP readiness probes, over the pod's network: ready when they answer, not before") as step:
        found = node.ready("slow")
        ready = next(when(one["lastTransitionTime"]) for one in found["status"]["conditions"] if one["type"] == "ContainersReady")
        for name, seconds in (("http", _HTTP_SECONDS), ("tcp", _TCP_SECONDS)):
            status = node.status("slow", name)
            expect_equal(f"restarts of {name}", status["restartCount"], 0)
            took = ready - when(status["state"]["running"]["startedAt"])
            step.note(f"{name}: {took:.0f} s")
            # The API tells whole seconds.
            expect(took >= seconds - 1, f"{name} was called ready after {took:.0f} s")


def probe_count(node):
    """How often the exec probe of the healthy container has run."""
    return int(node.run("steady", "well", "wc -l < /tmp/probed"))
