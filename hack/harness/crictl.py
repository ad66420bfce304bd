"""crictl as a function."""

import json
import subprocess

from harness.screen import StepFailed


class CrictlError(StepFailed):
    def __init__(self, argv, done):
        super().__init__(f"crictl {' '.join(argv)}: exit {done.returncode}: {(done.stderr or done.stdout).strip()[-1500:]}")

class Crictl:
    def __init__(self, program, endpoint, directory, prefix=()):
        config = directory / "crictl.yaml"
        config.write_text(f"runtime-endpoint: {endpoint}\nimage-endpoint: {endpoint}\ntimeout: 60\n")
        self._argv = [*prefix, str(program), "--config", str(config)]

    def attempt(self, *words):
        """Runs it and gives what it did, whatever that was."""
        return subprocess.run(self._argv + [str(word) for word in words], stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=300)

    def __call__(self, *words):
        """Gives its standard output; raises CrictlError."""
        words = [str(word) for word in words]
        done = self.attempt(*words)
        if done.returncode != 0:
            raise CrictlError(words, done)
        return done.stdout.strip()

    def json(self, *words):
        return json.loads(self(*words))

    def pods(self):
        return self("pods", "-q").split()

    def containers(self):
        return self("ps", "-a", "-q").split()

    def remove_all(self):
        for pod in self.pods():
            self("stopp", pod)
            self("rmp", "-f", pod)
