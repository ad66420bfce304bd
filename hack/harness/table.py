"""The bench's table: medians side by side, ratios, and what was to be reached."""

import statistics

PEER, PEER_CRUN, OURS, OURS_BY_CNI, _FLOOR = "containerd", "containerd-crun", "crisp", "crisp-cni", "floor"


class Share:
    """So much of containerd's figure for the same axis."""

    def __init__(self, of_peer):
        self._of_peer = of_peer

    def figure(self, axis, table):
        peer = table.figure(axis.name, PEER)
        return None if peer is None else peer * self._of_peer


class AtMost:
    def __init__(self, figure):
        self._figure = figure

    def figure(self, _axis, _table):
        return self._figure


class Over:
    """The plugins' own time, and so much more."""

    def __init__(self, floor_axis, more):
        self._floor_axis, self._more = floor_axis, more

    def figure(self, _axis, table):
        floor = table.figure(self._floor_axis, _FLOOR)
        return None if floor is None else floor + self._more


class Axis:
    """One line: `must` and `aim` are for the built-in network, `by_cni` for the plugins."""

    def __init__(self, name, unit, must=None, aim=None, by_cni=None, more_is_better=False):
        self.name, self.unit, self.must, self.aim, self.by_cni, self.more_is_better = name, unit, must, aim, by_cni, more_is_better


def _text(value):
    if value is None:
        return "-"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


class Table:
    """Samples by axis and column."""

    def __init__(self):
        self.samples = {}

    def record(self, axis, column, values):
        self.samples.setdefault(axis, {}).setdefault(column, []).extend(values)

    def figure(self, axis, column):
        values = self.samples.get(axis, {}).get(column)
        return statistics.median(values) if values else None

    def show(self, axes):
        """Prints it; gives the names of the axes whose `must` is missed."""
        missed = []
        print(f"\n{'':<37}{'containerd':>10}{'+ crun':>8} |{'crisp':>8}{'ratio':>8}{'must':>8}{'aim':>8}  {'':<11}|{'crisp, CNI':>11}{'ratio':>8}{'aim':>8}")
        for axis in axes:
            if axis.name not in self.samples:
                continue
            label = f"{axis.name}, {axis.unit}"
            floor = self.figure(axis.name, _FLOOR)
            if floor is not None:
                print(f"{label:<37}{_text(floor):>10}{'':>8} | the plugins without any runtime")
                continue
            peer, ours, by_cni = (self.figure(axis.name, column) for column in (PEER, OURS, OURS_BY_CNI))
            must, aim, aim_by_cni = (goal and goal.figure(axis, self) for goal in (axis.must, axis.aim, axis.by_cni))
            if self._reached(axis, ours, must) is False:
                missed.append(axis.name)
            print(f"{label:<37}{_text(peer):>10}{_text(self.figure(axis.name, PEER_CRUN)):>8} |{_text(ours):>8}{self.ratio_text(axis, ours):>8}{_text(must):>8}{_text(aim):>8}  "
                  f"{self._verdict(axis, ours, must, aim):<11}|{_text(by_cni):>11}{self.ratio_text(axis, by_cni):>8}{_text(aim_by_cni):>8}"
                  f"  {self._verdict(axis, by_cni, None, aim_by_cni)}".rstrip())
        return missed

    def ratio(self, axis, column):
        """How many times better than containerd + runc; None where either is missing."""
        peer, ours = self.figure(axis.name, PEER), self.figure(axis.name, column)
        if not ours or not peer:
            return None
        return ours / peer if axis.more_is_better else peer / ours

    def ratio_text(self, axis, ours):
        peer = self.figure(axis.name, PEER)
        if not ours or not peer:
            return "-"
        return f"{ours / peer if axis.more_is_better else peer / ours:.1f}x"

    @staticmethod
    def _reached(axis, ours, goal):
        if ours is None or goal is None:
            return None
        return ours >= goal if axis.more_is_better else ours <= goal

    def _verdict(self, axis, ours, must, aim):
        if self._reached(axis, ours, must) is False:
            return "MISSED"
        if any(self._reached(axis, ours, self.figure(axis.name, peer)) is False for peer in (PEER, PEER_CRUN)):
            return "WORSE"
        return {None: "", True: "reached", False: "not yet"}[self._reached(axis, ours, aim)]
