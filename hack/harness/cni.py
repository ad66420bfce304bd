"""A conflist for the distribution's plugins: bridge with masquerade, and portmap; all state in directories of ours."""

import json
import pathlib

from harness import paths


def plugins():
    """Where the plugins are installed."""
    for directory in paths.CNI_PLUGINS:
        if (pathlib.Path(directory) / "bridge").exists():
            return directory
    raise FileNotFoundError("no CNI plugins in " + " or ".join(paths.CNI_PLUGINS))


def write_conflist(directory, subnet="10.88.0.0/16"):
    """Writes <directory>/net.d/10-demo.conflist; gives net.d."""
    confs = pathlib.Path(directory) / "net.d"
    confs.mkdir(parents=True)
    (confs / "10-demo.conflist").write_text(json.dumps({
        "cniVersion": "1.0.0", "name": "demo", "plugins": [
            {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipMasq": True, "hairpinMode": True,
             "ipam": {"type": "host-local", "dataDir": f"{directory}/ipam", "ranges": [[{"subnet": subnet}]],
                      "routes": [{"dst": "0.0.0.0/0"}]}},
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ]}, indent=1))
    return confs


def leased(directory):
    """Addresses that are still given out."""
    return sorted(path.name for path in pathlib.Path(directory).glob("ipam/*/*") if path.name[0].isdigit())
