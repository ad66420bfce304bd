"""The Go programs that drive the CRI: built once, kept in target/hack/bin, rebuilt when their sources change."""

import hashlib
import os
import re
import shutil
import subprocess

from harness import paths

# name -> (module below hack/, the words of `go`, the package)
_BUILDS = {
    "crictl": ("cri-tools", ["build"], "sigs.k8s.io/cri-tools/cmd/crictl"),
    "critest": ("cri-tools", ["test", "-c"], "sigs.k8s.io/cri-tools/cmd/critest"),
    "ginkgo": ("cri-tools", ["build"], "github.com/onsi/ginkgo/v2/ginkgo"),
    "1.36/critest": ("cri-tools-1.36", ["test", "-c"], "sigs.k8s.io/cri-tools/cmd/critest"),
    "1.36/ginkgo": ("cri-tools-1.36", ["build"], "github.com/onsi/ginkgo/v2/ginkgo"),
    "bench-client": ("bench-client", ["build"], "."),
    "kubelet": ("kubelet", ["build"], "k8s.io/kubernetes/cmd/kubelet"),
    "kubelet-client": ("kubelet", ["build"], "./kubelet-client"),
}


class ToolError(Exception):
    pass


def _sources(module, package):
    """What a build depends on: the files beside go.mod, and those of a package below."""
    directories = [module] if not package.startswith("./") else [module, module / package]
    return [path for directory in directories for path in sorted(directory.iterdir()) if path.is_file()]


def _version(module):
    """Kubernetes' programs are told their version by the linker."""
    found = re.search(r"^\s*k8s\.io/kubernetes (v\S+)$", (module / "go.mod").read_text(), re.M)
    return f" -X k8s.io/component-base/version.gitVersion={found[1]}" if found else ""


def tool(name):
    """The path of the program, built if need be."""
    module, words, package = _BUILDS[name]
    source = paths.HACK / module
    stamp = hashlib.sha256()
    for path in _sources(source, package):
        stamp.update(path.read_bytes())
    built = paths.CACHE / "bin" / name
    stamp_file = built.with_name(f".{built.name}.stamp")
    if built.exists() and stamp_file.exists() and stamp_file.read_text() == stamp.hexdigest():
        return built
    go = shutil.which("go")
    if go is None:
        raise ToolError(f"{name} must be built, but there is no `go` in PATH (install Go 1.21 or newer)")
    built.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run([go, *words, "-trimpath", "-buildvcs=false", f"-ldflags=-s -w{_version(source)}", "-o", built, package],
                          cwd=source, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          env=dict(os.environ, CGO_ENABLED="0", GOFLAGS="-mod=readonly"))
    if done.returncode != 0:
        raise ToolError(f"go {' '.join(words)} {package}: {done.stderr.strip()[-2000:]}")
    stamp_file.write_text(stamp.hexdigest())
    return built


def crictl():
    """The crictl that is installed, else ours."""
    return shutil.which("crictl") or tool("crictl")
