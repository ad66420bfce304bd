"""Order, restarts and ends."""

from harness.node.kubelet import RESTART_DELAY_SECONDS
from harness.node.manifest import container, empty_dir, host_path, mount, pod
from harness.node.node import when
from harness.screen import eventually, expect, expect_equal

GRACE_SECONDS = 5
_NOTE = r"cut -d\  -f1 /proc/uptime >> /out"


def manifests(node):
    shared = [mount("shared", "/shared")]
    graceful = f"trap '{_NOTE}/term' TERM; echo ready; while :; do {_NOTE}/alive; sleep 0.1; done"
    return [
        pod("ordered", [container("main", "echo main >> /shared/order; exec sleep 100000", volumeMounts=shared)],
            initContainers=[
                container("first", "sleep 1; echo first >> /shared/order", volumeMounts=shared),
                container("sidecar", "sleep 1; echo sidecar >> /shared/order; touch /shared/up; exec sleep 100000",
                          volumeMounts=shared, restartPolicy="Always",
                          startupProbe={"exec": {"command": ["test", "-e", "/shared/up"]}, "periodSeconds": 1, "failureThreshold": 60}),
                container("second", "echo second >> /shared/order", volumeMounts=shared)],
            volumes=[empty_dir("shared")]),
        pod("always", [container("again", "echo $(hostname); sleep 2")]),
        pod("onfailure", [container("twice", "test -e /kept/mark || { touch /kept/mark; exit 3; }", volumeMounts=[mount("kept", "/kept")])],
            restartPolicy="OnFailure", volumes=[empty_dir("kept")]),
        pod("never", [
            container("writes", "echo -n 'what went wrong' > /dev/termination-log; exit 7"),
            container("says", "echo the last words; exit 1", terminationMessagePolicy="FallbackToLogsOnError")],
            restartPolicy="Never"),
        pod("graceful", [container("deaf", graceful, volumeMounts=[mount("out", "/out")], lifecycle={
            "preStop": {"exec": {"command": ["sh", "-c", f"{_NOTE}/stopping; sleep 1; {_NOTE}/stopping"]}}})],
            terminationGracePeriodSeconds=GRACE_SECONDS, volumes=[host_path("out", node.shared / "grace", "DirectoryOrCreate")]),
    ]


def check(node, screen):
    with screen.step("init containers, and a sidecar among them, start in their order") as step:
        node.ready("ordered")
        got = node.run("ordered", "main", "cat /shared/order").split()
        step.note(" ".join(got))
        expect_equal("the order", got, ["first", "sidecar", "second", "main"])
        for name in ("first", "second"):
            expect_equal(f"how {name} ended", node.status("ordered", name)["state"]["terminated"]["reason"], "Completed")
        expect("running" in node.status("ordered", "sidecar")["state"], "the sidecar does not run on")
    with screen.step("restartPolicy Never: two failures, no restart; termination messages from file and from log"):
        node.phase("never", "Failed")
        for name, code, message in (("writes", 7, "what went wrong"), ("says", 1, "the last words\n")):
            status = node.status("never", name)
            ended = status["state"]["terminated"]
            expect_equal(name, (ended["exitCode"], ended["message"], status["restartCount"]), (code, message, 0))
    with screen.step("restartPolicy OnFailure: 3, then 0, in the same volume"):
        node.phase("onfailure", "Succeeded")
        status = node.status("onfailure", "twice")
        codes = status["lastState"]["terminated"]["exitCode"], status["state"]["terminated"]["exitCode"]
        expect_equal("exit codes and restarts", (*codes, status["restartCount"]), (3, 0, 1))
    with screen.step(f"restartPolicy Always: again and again, {RESTART_DELAY_SECONDS} s later") as step:
        node.wait_status("always", "again", "its third run", lambda status: status["restartCount"] >= 2)
        waited = eventually("one run after another", lambda: _pause(node), 20)
        step.note(f"{waited:.2f} s between an end and the next start")
        expect(RESTART_DELAY_SECONDS - 1 <= waited < RESTART_DELAY_SECONDS + 10, f"it waited {waited:.2f} s")
        expect_equal("the log of the one before", node.logs("always", "again", previous="true").strip(), "always-node")


def _pause(node):
    """Seconds between the end of one run and the start of the next, by the runtime's clock; None if there is no next one."""
    runs = node.attempts("always", "again")
    if len(runs) < 2 or runs[-1]["state"] != "CONTAINER_RUNNING":
        return None
    expect_equal("the attempts", runs[-1]["metadata"]["attempt"] - runs[-2]["metadata"].get("attempt", 0), 1)
    return when(runs[-1]["startedAt"]) - when(runs[-2]["finishedAt"])


def check_end(node, screen):
    with screen.step(f"a pod goes: preStop, TERM after it, KILL when {GRACE_SECONDS} s are over in all") as step:
        node.kubelet.drop("graceful")
        node.gone("graceful")
        began, hooked = _times(node, "stopping")
        term, killed = _times(node, "term")[0], _times(node, "alive")[-1]
        step.note(f"hook 0.00-{hooked - began:.2f} s, TERM {term - began:.2f} s, last sign of life {killed - began:.2f} s")
        expect(hooked - began >= 1, "the hook did not run to its end")
        expect(term >= hooked, "TERM came before the hook had ended")
        expect(GRACE_SECONDS - 1 <= killed - began < GRACE_SECONDS + 4, "KILL did not come when it should")


def _times(node, name):
    return [float(line) for line in (node.shared / "grace" / name).read_text().split()]
