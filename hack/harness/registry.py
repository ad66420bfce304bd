"""A real registry on loopback, with the fixtures in it. Its storage is kept between runs."""

import hashlib
import os
import pathlib
import platform
import shutil
import subprocess
import sys

from harness import paths
from harness.process import Daemon

ADDRESS = "127.0.0.1:5000"
_CONFIG = """version: 0.1
log: {{level: warn, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {storage}}}, maintenance: {{uploadpurging: {{enabled: false}}}}}}
http: {{addr: {address}}}
"""


def _stamp():
    """Changes with whatever goes into the images."""
    hashed = hashlib.sha256(platform.machine().encode())
    sources = [path for path in (paths.HACK / "fixtures").rglob("*") if path.suffix in (".py", ".c")]
    for path in sorted(sources) + [pathlib.Path("/bin/busybox"), pathlib.Path("/usr/sbin/nginx")]:
        hashed.update(path.read_bytes() if path.exists() else b"absent")
    return hashed.hexdigest()


class Registry:
    """Its storage and what is known of its content are in `home`."""

    def __init__(self, netns, directory, undo, home=paths.CACHE):
        self._netns, self._home = netns, home
        storage = home / "registry"
        config = directory / "registry.yml"
        config.write_text(_CONFIG.format(storage=storage, address=ADDRESS))
        program = shutil.which("docker-registry") or shutil.which("registry")
        if program is None:
            raise FileNotFoundError("docker-registry is not installed")
        storage.mkdir(parents=True, exist_ok=True)
        self._daemon = Daemon([*netns.prefix, program, "serve", config], directory / "registry.log",
                              env=dict(os.environ, OTEL_TRACES_EXPORTER="none"))
        undo.push("the registry", self._daemon.stop)
        self._daemon.wait_until(self._answers)

    def _answers(self):
        return self._netns.get(*ADDRESS.split(":"), "/v2/") is not None

    def provide(self, *sets):
        """Builds and pushes the named sets of fixtures, those that are not there yet."""
        # Packed for another machine, which need not have what they are built from.
        if (paths.CACHE / "fixtures-packed").exists():
            return
        stamp = _stamp()
        for name in sets:
            done = self._home / f"fixtures-{name}.stamp"
            if done.exists() and done.read_text() == stamp:
                continue
            subprocess.run([*self._netns.prefix, sys.executable, "-m", "fixtures", "--registry", ADDRESS,
                            "--pinned-to", self._home / "fixtures-pinned", name],
                           check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            done.write_text(stamp)


def pinned():
    """The digest that stands for the one critest has compiled in; `provide("critest")` first."""
    return (paths.CACHE / "fixtures-pinned").read_text()


def write_mirrors(directory):
    """hosts.toml for every registry at once: ask ours. Gives the directory to configure."""
    default = pathlib.Path(directory) / "hosts" / "_default"
    default.mkdir(parents=True)
    (default / "hosts.toml").write_text(f'[host."http://{ADDRESS}"]\n  capabilities = ["pull", "resolve"]\n')
    return default.parent
