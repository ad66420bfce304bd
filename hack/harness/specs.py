"""Which of critest's specs to run, and how they came out: by its JSON report."""

import json
import re

from harness import paths

# Suites by the first words of their specs' names.
SUITES = {
    "podsandbox": "PodSandbox ",
    "container": "Container runtime ",
    "oom": "Container OOM ",
    "mount-propagation": "Container Mount Propagation ",
    "mount-readonly": "Container Mount Readonly ",
    "image": "Image Manager ",
    "image-consistency": "Image Consistency ",
    "image-id": "Image Identifier Consistency ",
    "image-volume": "Image Volume ",
    "idempotence": "Idempotence ",
    "multiple-containers": "Multiple Containers ",
    "networking": "Networking ",
    "runtime-info": "Runtime info ",
    "security": "Security Context ",
    "streaming": "Streaming ",
    "apparmor": "AppArmor ",
    "nri": "NRI ",
}


class Outcome:
    def __init__(self, report):
        words = report["ContainerHierarchyTexts"] or []
        self.name = " ".join(words + [report["LeafNodeText"]]).removeprefix("[k8s.io] ")
        self.state = report["State"]
        self.seconds = report["RunTime"] / 1e9
        failure = report.get("Failure") or {}
        self.message = (failure.get("Message") or "") + "".join(
            f"\n{failure[key]}" for key in ("ForwardedPanic",) if failure.get(key))
        where = failure.get("Location") or {}
        self.place = f"{where.get('FileName', '').rsplit('/', 1)[-1]}:{where.get('LineNumber', 0)}"


def read_report(path):
    """Outcomes of the specs (not of the suite's set-up, unless that failed)."""
    with open(path) as file:
        suites = json.load(file)
    return [Outcome(report) for suite in suites for report in suite["SpecReports"] or []
            if report["LeafNodeType"] == "It" or report["State"] not in ("passed", "skipped")]


class Skips:
    """hack/critest.skips: one line each, the start of specs' names, a bar, the reason. Those below its line `[handlers]` count with a
    handler only."""

    _PATH = paths.HACK / "critest.skips"

    def __init__(self, handler=None):
        self.reasons = {}
        for number, line in enumerate(self._PATH.read_text().splitlines(), 1):
            if line == "[handlers]":
                if not handler:
                    break
            elif line.strip() and not line.startswith("#"):
                start, bar, reason = line.partition(" | ")
                if not bar or not reason.strip():
                    raise ValueError(f"{self._PATH}:{number}: a skip needs a reason: `start of the name | reason`")
                self.reasons[start.strip()] = reason.strip()

    def reason(self, name):
        return next((reason for start, reason in self.reasons.items() if name.startswith(start)), None)

    def unused(self, names):
        return [start for start in self.reasons if not any(name.startswith(start) for name in names)]


def regex(names):
    """Matches exactly these specs: ginkgo looks for it in the suite's description and the spec's name."""
    return "(" + "|".join(re.escape(f"[k8s.io] {name}").replace("\\ ", " ").replace("/", "\\/") for name in names) + ")$"
