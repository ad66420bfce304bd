"""The bench's table as a picture: how many times better than containerd + runc, one bar per axis and contender."""

import html
import math

from harness.table import OURS, OURS_BY_CNI, PEER_CRUN

_COLUMNS = ((OURS, "crisp", "#2f6fde"), (OURS_BY_CNI, "crisp, CNI plugins", "#8fb4f0"), (PEER_CRUN, "containerd + crun", "#b9b9b9"))
_LABEL, _BAR, _ROW, _TOP, _WIDTH = 250, 11, 42, 56, 560


def svg(table, axes):
    """An SVG document; the scale is logarithmic, the line in it containerd + runc itself."""
    rows = [(axis, [table.ratio(axis, column) for column, _, _ in _COLUMNS]) for axis in axes if axis.name in table.samples]
    rows = [(axis, ratios) for axis, ratios in rows if ratios[0] is not None]
    known = [ratio for _, ratios in rows for ratio in ratios if ratio]
    low, high = math.floor(math.log10(min(known + [0.5]))), math.ceil(math.log10(max(known + [10])))

    def x(ratio):
        return _LABEL + (math.log10(ratio) - low) / (high - low) * _WIDTH

    height = _TOP + len(rows) * _ROW + 10
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LABEL + _WIDTH + 60}" height="{height}" font-family="sans-serif" font-size="12">',
             '<rect width="100%" height="100%" fill="white"/>',
             '<text x="10" y="18" font-size="14">times better than containerd + runc, same machine, same run</text>']
    for place, (_, label, colour) in enumerate(_COLUMNS):
        parts.append(f'<rect x="{_LABEL + place * 160}" y="28" width="12" height="12" fill="{colour}"/>'
                     f'<text x="{_LABEL + place * 160 + 18}" y="38">{label}</text>')
    for power in range(low, high + 1):
        at = x(10 ** power)
        parts.append(f'<line x1="{at:.1f}" y1="{_TOP - 8}" x2="{at:.1f}" y2="{height}" stroke="{"#444" if power == 0 else "#ddd"}"/>'
                     f'<text x="{at + 3:.1f}" y="{_TOP - 2}" fill="#666">{10 ** power:g}x</text>')
    for number, (axis, ratios) in enumerate(rows):
        top = _TOP + 6 + number * _ROW
        parts.append(f'<text x="10" y="{top + 20}">{html.escape(axis.name)}</text>')
        for place, (ratio, (_, _, colour)) in enumerate(zip(ratios, _COLUMNS)):
            if ratio:
                begin, end = sorted((x(1), x(ratio)))
                parts.append(f'<rect x="{begin:.1f}" y="{top + place * (_BAR + 1)}" width="{max(end - begin, 1):.1f}" height="{_BAR}" fill="{colour}"/>'
                             f'<text x="{end + 4:.1f}" y="{top + place * (_BAR + 1) + 10}" font-size="10">{ratio:.1f}</text>')
    return "\n".join([*parts, "</svg>", ""])
