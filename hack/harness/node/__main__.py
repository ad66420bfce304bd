"""hack/node-test: an upstream kubelet on crisp. Static pods show what a kubelet asks of a runtime, each seen from outside.

All of it happens below one directory, in a network namespace and below a cgroup of its own, which are gone afterwards.
"""

import argparse
import shutil
import sys

from harness import command, paths
from harness.node.play import Play


def arguments():
    parser = argparse.ArgumentParser(prog="hack/node-test", description=__doc__)
    parser.add_argument("--probes", action="store_true", help="measure instead what 40 exec probes per second cost")
    return parser.parse_args()


def keep_logs(play):
    """Beside those of the other tests."""
    logs = paths.CACHE / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    for name, holder in (("kubelet", getattr(play, "kubelet", None)), ("daemon", getattr(play, "runtime", None))):
        if holder and holder.log.exists():
            shutil.copyfile(holder.log, logs / f"node-{name}.log")


def main():
    args = arguments()

    def work(undo, screen):
        play = Play(args, undo, screen)
        try:
            play.play()
        finally:
            keep_logs(play)
    return command.play("the node test", work)


if __name__ == "__main__":
    sys.exit(main())
