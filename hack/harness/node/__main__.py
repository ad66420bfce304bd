"""hack/node-test: an upstream kubelet on crisp. Static pods show what a kubelet asks of a runtime, each seen from outside.

All of it happens below one directory, in a network namespace and below a cgroup of its own, which are gone afterwards.
"""

import argparse
import shutil
import sys

from harness import command, paths
from harness.containerd import Containerd
from harness.crisp import Crisp
from harness.node import probes
from harness.node.play import Play
from harness.undo import Undo


def arguments():
    parser = argparse.ArgumentParser(prog="hack/node-test", description=__doc__)
    parser.add_argument("--probes", action="store_true", help="measure instead what 40 exec probes per second cost, beside containerd")
    parser.add_argument("--cgroup-driver", choices=("cgroupfs", "systemd"), default="cgroupfs", help="of crisp (default: %(default)s)")
    return parser.parse_args()


def keep_logs(play):
    """Beside those of the other tests."""
    logs = paths.CACHE / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    for name, holder in (("kubelet", getattr(play, "kubelet", None)), ("daemon", getattr(play, "runtime", None))):
        if holder and holder.log.exists():
            shutil.copyfile(holder.log, logs / f"node-{name}.log")


def on(kind, what, screen, **how):
    """What `what` gives of a kubelet on that runtime."""
    with Undo() as undo:
        play = Play(undo, screen, kind, **how)
        try:
            return what(play)
        finally:
            keep_logs(play)


def compare(screen):
    """The same probes on the distribution's containerd and on crisp, one after the other."""
    def cost(play):
        play.set_up()
        return probes.measure(play)

    probes.tell(screen, {kind.name: on(kind, cost, screen) for kind in (Containerd, Crisp)})


def main():
    args = arguments()

    def work(_, screen):
        if args.probes:
            compare(screen)
        else:
            on(Crisp, Play.play, screen, cgroup_driver=args.cgroup_driver, log="info,crisp::api::respond=debug")
    return command.play("the node test", work)


if __name__ == "__main__":
    sys.exit(main())
