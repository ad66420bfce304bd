"""Mounts below a directory."""

import ctypes
import os
import re
import subprocess

_MNT_DETACH = 2


def tmpfs(directory):
    """Makes `directory` what /run is on a node."""
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nosuid,nodev,mode=755", "crisp-hack", directory], check=True, stdin=subprocess.DEVNULL)


def below(directory):
    """Mount points at or below `directory`, the newest first."""
    found, inside = [], str(directory).rstrip("/") + "/"
    with open("/proc/self/mountinfo") as table:
        for line in table:
            point = re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), line.split()[4])
            if point == str(directory) or point.startswith(inside):
                found.append(point)
    return found[::-1]


def detach_below(directory):
    libc = ctypes.CDLL(None, use_errno=True)
    for point in below(directory):
        if libc.umount2(os.fsencode(point), _MNT_DETACH) != 0:
            raise OSError(ctypes.get_errno(), "umount2", point)
