"""hack/bench --scale: how crisp's cost grows. One table per question; each says what a unit of it costs."""

import os
import pathlib
import statistics
import time

from harness import registry

_PODS, _LAYERS, _MEGABYTES, _LINES_PER_MS = (1, 10, 100, 300, 500), (1, 4, 16, 64), (1, 10, 100, 1000), (10, 100, 1000)
_LOG_SECONDS = 2
_LISTS = ("ListContainers", "ListPodSandbox", "ContainerStatus", "ListPodSandboxStats")


def run(contender, quick):
    contender.registry.provide("scale")
    _pods(contender, _PODS[:3] if quick else _PODS)
    _layers(contender)
    _bytes(contender, _MEGABYTES[:3] if quick else _MEGABYTES)
    _log_lines(contender)


def _table(title, heads, rows):
    print(f"\n{title}")
    print("".join(f"{head:>22}" for head in heads))
    for row in rows:
        print("".join(f"{value:>22,.3g}" if isinstance(value, float) else f"{value:>22}" for value in row), flush=True)


def _pods(contender, counts):
    """Each has two containers, one of which has ended."""
    rows, lists, running = [], [], 0
    for count in counts:
        up = contender.up(count - running, parallel=4, exited=1) if count > running else {}
        running = count
        asked = contender.client("list", count=200)
        daemon, kept = contender.memory_kib()
        rows.append((count, _median(up, "pod up"), _median(contender.client("exec", count=20), "ExecSync"), daemon / 1024, kept / count,
                     contender.idle_ms_per_second(3), contender.restart_ms(count)))
        lists.append((count, *(figure for name in _LISTS for figure in (_median(asked, name), _p99(asked, name)))))
    contender.down(parallel=4)
    _table("pods, started 4 at a time, each with a container that runs and one that has ended",
           ("pods", "pod up, ms", "ExecSync, ms", "daemon, MiB", "KiB per pod", "idle CPU, ms/s", "restart, ms"), rows)
    _table("what is asked of them, ms, of 200 times", ("pods", *(head for name in _LISTS for head in (name, "99 %"))), lists)


def _layers(contender):
    rows = []
    for count in _LAYERS:
        image = f"{registry.ADDRESS}/scale/layers:{count}"
        pulled = contender.client("pull", image)["PullImage"][0]
        up = contender.up(5, image=image)
        contender.down()
        contender.client("remove-image", image)
        rows.append((count, pulled, pulled / count, _median(up, "CreateContainer")))
    _table("layers of 1 MB", ("layers", "pull, ms", "ms per layer", "CreateContainer, ms"), rows)


def _bytes(contender, sizes):
    rows = []
    for size in sizes:
        image = f"{registry.ADDRESS}/scale/bytes:{size}"
        began = contender.cpu_ms()
        pulled = contender.client("pull", image)["PullImage"][0]
        rows.append((size, pulled, pulled / size, (contender.cpu_ms() - began) / size))
        contender.client("remove-image", image)
    _table("bytes, in 4 layers", ("MB", "pull, ms", "ms per MB", "CPU ms per MB"), rows)


def _log_lines(contender):
    """Every line must arrive; the monitor's own CPU is counted."""
    contender.client("pull", f"{registry.ADDRESS}/scale/lines:1")
    rows = []
    for rate in _LINES_PER_MS:
        contender.up(1, command=f"/lines {rate} {_LOG_SECONDS}", image=f"{registry.ADDRESS}/scale/lines:1")
        monitor = _monitor(contender)
        log = max(contender.logs.glob("*/main.log"), key=lambda path: path.stat().st_mtime)
        deadline = time.monotonic() + 60
        while not _said_end(log) and time.monotonic() < deadline:
            time.sleep(0.05)
        with open(log, "rb") as text:
            lines = sum(chunk.count(b"\n") for chunk in iter(lambda: text.read(1 << 20), b""))
        cpu_ms = _cpu_ms(monitor)
        contender.down()
        log.unlink()
        rows.append((rate, lines, cpu_ms * 1000 / lines, cpu_ms / _LOG_SECONDS))
    _table("log lines of 64 bytes", ("lines per ms, asked", "lines, all there", "CPU us per line", "CPU ms per second"), rows)


def _said_end(log):
    with open(log, "rb") as text:
        text.seek(max(0, os.fstat(text.fileno()).st_size - 200))
        return b"end of lines" in text.read()


def _monitor(contender):
    """The process that writes the log: the only one of crisp's with the log open."""
    for pid in contender.processes():
        try:
            targets = [os.readlink(path) for path in pathlib.Path(f"/proc/{pid}/fd").iterdir()]
        except OSError:
            continue
        if any(target.endswith("main.log") for target in targets):
            return pid
    raise RuntimeError("nobody has the log open")


def _cpu_ms(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK")


def _median(samples, name):
    values = samples.get(name)
    return float(statistics.median(values)) if values else float("nan")


def _p99(samples, name):
    return sorted(samples[name])[len(samples[name]) * 99 // 100]
