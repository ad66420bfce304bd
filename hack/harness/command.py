"""How a command of ours ends: what it made is unmade, what it built is its caller's, and a signal is told by the exit code."""

import sys
import time

from harness import owner
from harness.process import ProcessError
from harness.screen import Screen, StepFailed
from harness.tools import ToolError
from harness.undo import Interrupted, Undo


def run(work):
    """The exit code that `work(undo)` gives, none is success; 130 when a signal came."""
    try:
        with Undo() as undo:
            undo.push("the owner of target", owner.give_back)
            return work(undo) or 0
    except Interrupted as interrupted:
        print(f"interrupted by {interrupted}; everything is cleaned up", file=sys.stderr)
        return 130


def play(name, work):
    """As `run`, with `work(undo, screen)` in steps, of which the first that fails is the last."""
    screen = Screen()
    try:
        code = run(lambda undo: work(undo, screen))
    except (StepFailed, ProcessError, ToolError) as failed:
        print(f"\n{name} FAILED after {screen.done} steps: {failed}", file=sys.stderr)
        return 1
    if code == 0:
        print(f"\nall {screen.done} steps as they should be, in {time.monotonic() - screen.began:.1f} s")
    return code
