"""What was made is unmade: in reverse, all of it, also after a failure or a signal."""

import signal
import sys
import traceback


class Interrupted(Exception):
    """A signal asked the command to end."""


class Undo:
    """`with Undo() as undo:` then `undo.push("what", step)` right after each thing made."""

    def __init__(self):
        self._steps = []

    def push(self, what, step, *args):
        self._steps.append((what, step, args))

    def __enter__(self):
        def interrupt(number, _frame):
            raise Interrupted(signal.Signals(number).name)

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, interrupt)
        return self

    def __exit__(self, *_):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        self.run()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        return False

    def run(self):
        while self._steps:
            what, step, args = self._steps.pop()
            try:
                step(*args)
            except Exception:  # one step that fails must not keep the others from running
                print(f"while undoing {what}:", file=sys.stderr)
                traceback.print_exc()
