"""Where things lie. Everything that is built or cached is below target/, which git ignores."""

import pathlib
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
HACK = ROOT / "hack"
CACHE = ROOT / "target" / "hack"
# The programs under test, as hack/build leaves them.
BIN = ROOT / "target" / "bin"
CNI_PLUGINS = ("/usr/lib/cni", "/opt/cni/bin")


def scratch(name):
    """A new directory for one run. Below /var/tmp: on a disk, and short enough for a socket's path."""
    return pathlib.Path(tempfile.mkdtemp(prefix=f"crisp-{name}-", dir="/var/tmp"))
