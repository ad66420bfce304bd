"""Pods as a static pod directory holds them."""

from harness import registry

NAMESPACE = "default"
SLEEP = "exec sleep 100000"


def image(name):
    return f"{registry.ADDRESS}/demo/{name}:1"


def container(name, script=SLEEP, of_image="toolbox", **more):
    """One that runs `script` by the shell, as process 1."""
    return {"name": name, "image": image(of_image), "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", script], **more}


def pod(name, containers, **spec):
    """`metadata` may be among `spec`."""
    metadata = spec.pop("metadata", {})
    return {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": NAMESPACE, **metadata},
        "spec": {"containers": containers, "terminationGracePeriodSeconds": 1, "enableServiceLinks": False,
                 "automountServiceAccountToken": False, **spec},
    }


def mount(volume, path, **more):
    return {"name": volume, "mountPath": path, **more}


def empty_dir(name, **how):
    return {"name": name, "emptyDir": how}


def host_path(name, path, kind):
    return {"name": name, "hostPath": {"path": str(path), "type": kind}}


def env(name, field):
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": field}}}
