"""A virtual machine that runs one command: Debian with systemd, cgroup v2 alone and AppArmor, thrown away afterwards.

Its disk is made once by mmdebstrap from this machine's own apt sources and kept below target/hack/vm. An archive is given to it
as a second disk; what the command prints comes over the serial line, its exit status in the last line.
"""

import base64
import hashlib
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import time

from harness import paths

_CACHE = paths.CACHE / "vm"
_HOST_PACKAGES = ("qemu-system-x86", "mmdebstrap", "e2fsprogs")
_PACKAGES = ("systemd", "systemd-sysv", "dbus", "udev", "kmod", "initramfs-tools", "zstd", "iproute2", "nftables", "procps", "util-linux",
             "busybox-static", "apparmor", "python3-minimal", "python3", "ca-certificates", "bsdutils", "findutils", "runc", "crun")
# The oldest kernel that crisp runs on.
_KERNEL = (6, 6)
_DISK = "4G"
_MEMORY = 3072  # MiB
_DONE = "lane-vm: the command ended with "
_RUN = """#!/bin/bash
exec < /dev/null > /dev/ttyS0 2>&1
stty -F /dev/ttyS0 raw -echo
ip link set lo up
export HOME=/root USER=root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8
command=$(sed -n 's/.*lane=\\([^ ]*\\).*/\\1/p' /proc/cmdline | base64 -d)
cd /root && bash -c "$command"
echo "$DONE$?"
sync
systemctl poweroff -ff
"""
_UNIT = """[Unit]
Description=the command
After=basic.target dbus.service apparmor.service
Wants=dbus.service
[Service]
ExecStart=/usr/local/sbin/lane-run
Delegate=yes
KillMode=process
TasksMax=infinity
LimitNOFILE=1048576
OOMPolicy=continue
"""
_MODULES = "virtio_pci virtio_blk ext4 crc32c"


class VmError(Exception):
    pass


def _run(*argv, **how):
    done = subprocess.run([str(word) for word in argv], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **how)
    if done.returncode != 0:
        raise VmError(f"{argv[0]}: exit {done.returncode}:\n{done.stdout[-3000:]}")
    return done.stdout


def _install():
    missing = [name for name in _HOST_PACKAGES if "install ok installed" not in subprocess.run(
        ["dpkg-query", "-W", "-f", "${Status}", name], capture_output=True, text=True).stdout]
    if missing:
        print("installing", *missing, flush=True)
        _run("apt-get", "update", "-qq")
        _run("apt-get", "install", "-qq", "-y", "--no-install-recommends", *missing, env=dict(os.environ, DEBIAN_FRONTEND="noninteractive"))


def _kernel():
    """The newest kernel package that apt offers."""
    machine = _run("dpkg", "--print-architecture").strip()
    versions = {}
    # Of several names of one version the shortest is the one that stays.
    for name in sorted(_run("apt-cache", "pkgnames", "linux-image-").split(), key=len, reverse=True):
        found = re.fullmatch(rf"linux-image-(\d+)\.(\d+)(?:[.+-][^-]*(?:-\d+)?)?-{machine}", name)
        if found:
            versions[int(found[1]), int(found[2])] = name
    if not versions or max(versions) < _KERNEL:
        raise VmError(f"apt offers no kernel of {_KERNEL[0]}.{_KERNEL[1]} or newer, which crisp needs")
    return versions[max(versions)]


def _sources():
    for path in (pathlib.Path("/etc/apt/sources.list.d/debian.sources"), pathlib.Path("/etc/apt/sources.list")):
        if path.exists() and path.read_text().strip():
            return path
    raise VmError("apt's own sources are not where Debian has them")


def _suite():
    found = re.search(r"^VERSION_CODENAME=(\S+)", pathlib.Path("/etc/os-release").read_text(), re.M)
    if not found:
        raise VmError("/etc/os-release names no release")
    return found[1]


def image():
    """The directory with disk, kernel and initrd; made if it is not there."""
    _install()
    kernel = _kernel()
    stamp = hashlib.sha256(repr((_suite(), kernel, _PACKAGES, _RUN, _UNIT, _MODULES)).encode()).hexdigest()[:16]
    directory = _CACHE / stamp
    if (directory / "disk").exists():
        return directory
    began = time.monotonic()
    print(f"making the virtual machine's disk: {_suite()}, {kernel}", flush=True)
    shutil.rmtree(_CACHE, ignore_errors=True)
    work = _CACHE / "work"
    work.mkdir(parents=True)
    root = work / "root"
    _run("mmdebstrap", "--mode=root", "--variant=minbase", f"--include={','.join((*_PACKAGES, kernel))}", _suite(), root, _sources())
    (root / "etc/initramfs-tools/conf.d/lane").write_text("MODULES=list\nCOMPRESS=zstd\n")
    (root / "etc/initramfs-tools/modules").write_text("".join(f"{name}\n" for name in _MODULES.split()))
    _run("chroot", root, "update-initramfs", "-u")
    (root / "etc/fstab").write_text("")
    (root / "etc/hostname").write_text("lane\n")
    (root / "etc/machine-id").write_text("")
    script = root / "usr/local/sbin/lane-run"
    script.write_text(_RUN.replace("$DONE", _DONE))
    script.chmod(0o755)
    (root / "etc/systemd/system/lane.service").write_text(_UNIT)
    wants = root / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(exist_ok=True)
    (wants / "lane.service").symlink_to("../lane.service")
    for unit in ("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "fstrim.timer",
                 "serial-getty@ttyS0.service", "getty@tty1.service", "systemd-firstboot.service"):
        (root / "etc/systemd/system" / unit).symlink_to("/dev/null")
    for name in ("vmlinuz", "initrd.img"):
        shutil.copyfile(max((root / "boot").glob(f"{name}-*")), work / name)
    _run("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-E", "lazy_itable_init=1", "-d", root, work / "disk", _DISK)
    shutil.rmtree(root)
    work.rename(directory)
    print(f"made in {time.monotonic() - began:.0f} s", flush=True)
    return directory


def _accelerator():
    flags = pathlib.Path("/proc/cpuinfo").read_text()
    if os.access("/dev/kvm", os.W_OK) and re.search(r"\b(vmx|svm)\b", flags):
        return ["-accel", "kvm", "-cpu", "host"]
    # One thread for all processors. With one each, a processor may still meet the breakpoint that another has set and taken away again
    # to change the kernel's instructions (static keys), which is a panic: seen with QEMU 7.2 and 10.0, within a thousand changes.
    return ["-accel", "tcg,thread=single,tb-size=512", "-cpu", "max,la57=off,smap=off,erms=off,fsrm=off"]


def useful_machines():
    """How many machines at once get the most of this one: an emulated one has one thread."""
    if "kvm" in _accelerator():
        return 1
    available = int(re.search(r"^MemAvailable:\s*(\d+) kB", pathlib.Path("/proc/meminfo").read_text(), re.M)[1]) >> 10
    return max(1, min(os.cpu_count(), available // (_MEMORY + 512), 4))


class _Machine:
    """One that runs a command: it has ended when `status` is there."""

    def __init__(self, process):
        self.process, self.status = process, None
        self._pending, self._last = b"", []
        os.set_blocking(process.stdout.fileno(), False)

    def follow(self):
        """Prints what it has said since; tells whether there was anything."""
        read = self.process.stdout.read()
        if not read:
            return False
        *lines, self._pending = (self._pending + read).replace(b"\r", b"").split(b"\n")
        for line in (line.decode(errors="replace") for line in lines):
            if line.startswith(_DONE):
                self.status = int(line.removeprefix(_DONE))
            else:
                print(line, flush=True)
            self._last = [*self._last[-20:], line]
        return True

    def error(self, what):
        return VmError(f"the virtual machine {what}; it last said:\n" + "\n".join(self._last))


def run(archive, commands, timeout, undo):
    """Runs each of the shell texts `commands` in a machine of its own, all at once, `archive` being /dev/vdb in each; prints what they
    print, gives their exit statuses. `timeout` is in seconds, for all of them together."""
    where = image()
    machines = [_start(where, archive, command, undo) for command in commands]
    deadline = time.monotonic() + timeout
    while any(machine.status is None for machine in machines):
        # Who has ended may have left words behind.
        ended = [machine for machine in machines if machine.process.poll() is not None]
        heard = [machine for machine in machines if machine.follow()]
        for machine in machines:
            if machine.status is None and machine in ended and machine not in heard:
                raise machine.error("ended without a word on its command")
            if machine.status is None and time.monotonic() > deadline:
                raise machine.error("has not ended in time")
        if not heard:
            time.sleep(0.05)
    return [machine.status for machine in machines]


def _start(where, archive, command, undo):
    line = base64.b64encode(command.encode()).decode()
    append = f"console=ttyS0 root=/dev/vda rw quiet loglevel=2 panic=-1 mitigations=off apparmor=1 lsm=landlock,yama,apparmor,bpf " \
             f"systemd.show_status=0 systemd.unified_cgroup_hierarchy=1 cgroup_no_v1=all lane={line}"
    argv = ["qemu-system-x86_64", *_accelerator(), "-machine", "q35", "-m", _MEMORY, "-smp", min(4, os.cpu_count()), "-display", "none",
            "-nodefaults", "-no-reboot", "-serial", "stdio", "-kernel", where / "vmlinuz", "-initrd", where / "initrd.img", "-append", append,
            "-drive", f"file={where / 'disk'},format=raw,if=virtio,snapshot=on,cache=unsafe",
            "-drive", f"file={archive},format=raw,if=virtio,readonly=on", "-device", "virtio-rng-pci"]
    process = subprocess.Popen([str(word) for word in argv], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               start_new_session=True)
    undo.push("the virtual machine", process.wait)
    undo.push("the virtual machine", process.kill)
    return _Machine(process)


def quoted(*words):
    return " ".join(shlex.quote(str(word)) for word in words)


if __name__ == "__main__":
    print(image())
    sys.exit(0)
