"""python3 -m harness.node.inside DIRECTORY PROGRAM...: runs a kubelet so that the machine stays as it is.

A kubelet sets the kernel's tunables and keeps some things at fixed places. In a mount namespace of its own it finds the
tunables set already, and /var/lib and /var/log empty; only its mounts below DIRECTORY are everybody's, because the
runtime must see its volumes.
"""

import ctypes
import os
import pathlib
import sys

from harness import mounts

_CLONE_NEWNS = 0x20000
_EMPTY = (pathlib.Path("/var/lib"), pathlib.Path("/var/log"))
_MS_BIND, _MS_PRIVATE = 0x1000, 1 << 18
# What it wants them to be; with protectKernelDefaults it looks, and complains, but never writes.
_TUNABLES = {"vm/overcommit_memory": 1, "vm/panic_on_oom": 0, "kernel/panic": 10, "kernel/panic_on_oops": 1,
             "kernel/keys/root_maxkeys": 1000000, "kernel/keys/root_maxbytes": 25000000}


def _call(function, *args):
    if function(*args) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{function.__name__} {args}: {os.strerror(number)}")


def main():
    directory, program = pathlib.Path(sys.argv[1]), sys.argv[2:]
    libc = ctypes.CDLL(None, use_errno=True)
    _call(libc.unshare, _CLONE_NEWNS)
    # Or what is mounted there would be mounted for everybody where systemd has made all mounts shared.
    for point in mounts.below("/"):
        if any(place.is_relative_to(point) for place in [*_EMPTY, pathlib.Path("/proc/sys")]):
            _call(libc.mount, None, os.fsencode(point), None, _MS_PRIVATE, None)
    tunables = directory / "tunables"
    for name, value in _TUNABLES.items():
        file = tunables / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{value}\n")
        _call(libc.mount, os.fsencode(file), os.fsencode(f"/proc/sys/{name}"), None, _MS_BIND, None)
    for place in _EMPTY:
        _call(libc.mount, b"none", os.fsencode(place), b"tmpfs", 0, b"mode=755")
    os.execv(program[0], program)


if __name__ == "__main__":
    main()
