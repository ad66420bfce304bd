"""A second registry: empty, gone with the run, and it wants a password."""

import base64
import json
import os
import shutil

from fixtures import busybox
from fixtures.image import ImageSet
from fixtures.push import push
from harness.process import Daemon

ADDRESS = "127.0.0.1:5001"
IMAGE = f"{ADDRESS}/node/late:1"
_USER, _PASSWORD = "kubelet", "let-me-in"
CREDENTIALS = f"{_USER}:{_PASSWORD}"
# Of the password above, by bcrypt: the only hash that this registry knows.
_HTPASSWD = f"{_USER}:$2b$05$aDsuj.tdfnymlhMdqiiQv.HdsXGyx5upYxFa862t2nvKqDhSx/f1O\n"
_CONFIG = """version: 0.1
log: {{level: warn, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {directory}/storage}}}}
auth: {{htpasswd: {{realm: node, path: {directory}/htpasswd}}}}
http: {{addr: {address}}}
"""


def _basic():
    return base64.b64encode(CREDENTIALS.encode()).decode()


class PrivateRegistry:
    def __init__(self, netns, directory, undo):
        self._netns = netns
        directory.mkdir()
        (directory / "htpasswd").write_text(_HTPASSWD)
        config = directory / "registry.yml"
        config.write_text(_CONFIG.format(directory=directory, address=ADDRESS))
        program = shutil.which("docker-registry") or shutil.which("registry")
        daemon = Daemon([*netns.prefix, program, "serve", config], directory / "registry.log",
                        env=dict(os.environ, OTEL_TRACES_EXPORTER="none"))
        undo.push("the registry with a password", daemon.stop)
        daemon.wait_until(lambda: netns.get(*ADDRESS.split(":"), "/v2/") is not None)

    def refuses_strangers(self):
        return self._netns.get(*ADDRESS.split(":"), "/v2/")[0] == 401

    def push(self, images):
        self._netns.inside(push, images, ADDRESS, f"Basic {_basic()}")


def late():
    images = ImageSet()
    images.add("node/late", ["1"], [busybox.base()], busybox.CONFIG)
    return images


def write_credentials(directory):
    """Where the kubelet looks for what to show to registries."""
    path = directory / "config.json"
    path.write_text(json.dumps({"auths": {ADDRESS: {"auth": _basic()}}}))
    path.chmod(0o600)
