"""The Go programs that drive the CRI: built once, kept in target/hack/bin, rebuilt when their sources change."""

import hashlib
import os
import shutil
import subprocess

from harness import paths

# name -> (module below hack/, the words of `go`, the package)
_BUILDS = {
    "crictl": ("cri-tools", ["build"], "sigs.k8s.io/cri-tools/cmd/crictl"),
    "critest": ("cri-tools", ["test", "-c"], "sigs.k8s.io/cri-tools/cmd/critest"),
    "ginkgo": ("cri-tools", ["build"], "github.com/onsi/ginkgo/v2/ginkgo"),
    "bench-client": ("bench-client", ["build"], "."),
}


class ToolError(Exception):
    pass


def tool(name):
    """The path of the program, built if need be."""
    module, words, package = _BUILDS[name]
    source = paths.HACK / module
    stamp = hashlib.sha256()
    for path in sorted(source.iterdir()):
        stamp.update(path.read_bytes())
    built, stamp_file = paths.CACHE / "bin" / name, paths.CACHE / "bin" / f".{name}.stamp"
    if built.exists() and stamp_file.exists() and stamp_file.read_text() == stamp.hexdigest():
        return built
    go = shutil.which("go")
    if go is None:
        raise ToolError(f"{name} must be built, but there is no `go` in PATH (install Go 1.21 or newer)")
    built.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run([go, *words, "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", built, package],
                          cwd=source, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          env=dict(os.environ, CGO_ENABLED="0", GOFLAGS="-mod=readonly"))
    if done.returncode != 0:
        raise ToolError(f"go {' '.join(words)} {package}: {done.stderr.strip()[-2000:]}")
    stamp_file.write_text(stamp.hexdigest())
    return built


def crictl():
    """The crictl that is installed, else ours."""
    return shutil.which("crictl") or tool("crictl")
