"""hack/node-test: an upstream kubelet on crisp. Static pods show what a kubelet asks of a runtime, each seen from outside.

All of it happens below one directory, in a network namespace and below a cgroup of its own, which are gone afterwards.
"""

import argparse
import shutil
import sys
import time

from harness import owner, paths, process, tools
from harness.node.play import Play
from harness.screen import Screen, StepFailed
from harness.undo import Interrupted, Undo


def arguments():
    parser = argparse.ArgumentParser(prog="hack/node-test", description=__doc__)
    parser.add_argument("--probes", action="store_true", help="measure instead what 40 exec probes per second cost")
    parser.add_argument("--cgroup-driver", choices=("cgroupfs", "systemd"), default="cgroupfs", help="of crisp (default: %(default)s)")
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
    screen = Screen()
    try:
        with Undo() as undo:
            undo.push("the owner of target", owner.give_back)
            play = Play(args, undo, screen)
            try:
                play.play()
            finally:
                keep_logs(play)
    except Interrupted as interrupted:
        print(f"interrupted by {interrupted}; everything is cleaned up", file=sys.stderr)
        return 130
    except (StepFailed, process.ProcessError, tools.ToolError) as failed:
        print(f"\nthe node test FAILED after {screen.done} steps: {failed}", file=sys.stderr)
        return 1
    print(f"\nall {screen.done} steps as they should be, in {time.monotonic() - screen.began:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
