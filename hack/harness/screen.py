"""Steps on the screen: each one named, checked and timed."""

import sys
import time
import traceback

from harness.undo import Interrupted


class StepFailed(Exception):
    """A step did not come out as it should; the text says how."""


def expect(condition, message):
    if not condition:
        raise StepFailed(message)


def expect_equal(what, got, wanted):
    expect(got == wanted, f"{what} is {got!r}, not {wanted!r}")


def eventually(what, check, seconds=10):
    """Waits until `check` gives something true, and gives that."""
    deadline = time.monotonic() + seconds
    while True:
        result = check()
        if result:
            return result
        if time.monotonic() > deadline:
            raise StepFailed(f"{what}: not within {seconds} s")
        time.sleep(0.02)


class Screen:
    def __init__(self):
        self._tty = sys.stdout.isatty()
        self.done = 0
        self.began = time.monotonic()

    def title(self, text):
        print(f"\n{text}", flush=True)

    def note(self, text):
        for line in str(text).splitlines():
            print(f"        {line}", flush=True)

    def step(self, name):
        return _Step(self, name)


class _Step:
    """`with screen.step("pull nginx") as step:` prints the outcome; `step.note(text)` comes below it."""

    def __init__(self, screen, name):
        self._screen, self._name, self._notes = screen, name, []

    def note(self, text):
        self._notes.append(text)

    def __enter__(self):
        if self._screen._tty:
            print(f"   ...  {self._name}", end="\r", flush=True)
        self._began = time.monotonic()
        return self

    def __exit__(self, kind, error, trace):
        took = (time.monotonic() - self._began) * 1000
        print(f" {'ok   ' if kind is None else 'FAILED'} {self._name}  ({took:.0f} ms)", flush=True)
        for text in self._notes:
            self._screen.note(text)
        if kind is None:
            self._screen.done += 1
        elif not issubclass(kind, (StepFailed, Interrupted)):
            print("".join(traceback.format_exception(kind, error, trace, limit=-3)).rstrip(), file=sys.stderr)
        return False
