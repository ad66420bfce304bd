"""The demo's pods and containers, as the JSON that crictl takes."""

import json

from harness import registry

PROTOCOL_TCP = 0
PID_POD, PID_CONTAINER = 0, 1

HOST_PORT = 18080
NAMESPACE = "demo"
WEB_HOSTNAME = "web-7f9c"
LABELS = {"app": "web", "tier.example.org/name": "front end, with spaces: ünïcode"}
DNS = {"servers": ["192.0.2.53"], "searches": ["demo.svc.cluster.local", "svc.cluster.local"], "options": ["ndots:5"]}


def image(name):
    return f"{registry.ADDRESS}/demo/{name}:1"


def _namespaces(pid):
    """Network and IPC are the pod's."""
    return {"network": 0, "pid": pid, "ipc": 0}


class Configs:
    """Writes them into `directory`; logs and cgroups go where it is told."""

    def __init__(self, directory, logs, cgroup_parent):
        self._directory, self._logs, self._cgroup_parent = directory, logs, cgroup_parent
        directory.mkdir()

    def _write(self, name, value):
        path = self._directory / f"{name}.json"
        path.write_text(json.dumps(value, indent=1))
        return path

    def pod(self, name, pid=PID_CONTAINER, attempt=0, **more):
        logs = self._logs / name
        logs.mkdir(parents=True, exist_ok=True)
        return self._write(name, {
            "metadata": {"name": name, "namespace": NAMESPACE, "uid": f"uid-of-{name}", "attempt": attempt},
            "hostname": name, "labels": LABELS, "annotations": {"example.org/note": "kept byte for byte"},
            "log_directory": str(logs), "dns_config": DNS,
            "linux": {"cgroup_parent": f"/{self._cgroup_parent}",
                      "security_context": {"namespace_options": _namespaces(pid)}},
            **more,
        })

    def container(self, pod, name, of_image, command=(), volume=None, attempt=0, pid=PID_CONTAINER):
        config = {
            "metadata": {"name": name, "attempt": attempt}, "image": {"image": image(of_image)},
            "log_path": f"{name}/{attempt}.log",
            "linux": {"security_context": {"namespace_options": _namespaces(pid)}},
            "labels": {"io.kubernetes.pod.name": pod, "io.kubernetes.pod.namespace": NAMESPACE, "io.kubernetes.container.name": name},
        }
        if command:
            config["command"] = list(command)
        if volume:
            config["mounts"] = [{"container_path": "/data", "host_path": str(volume)}]
        return self._write(f"container-{name}-{attempt}", config)


def web_ports():
    return [{"protocol": PROTOCOL_TCP, "container_port": 80, "host_port": HOST_PORT}]
