"""Draws lines over a common axis as SVG: one panel a figure, one line a kind of mount or of link."""

import math
from dataclasses import dataclass, field

from kit.plot import FAINT, FONT, INK, MARGIN, _line, _short, _text

COLOURS = {"ours": ("#c2571a", "#e0964f", "#7a3410"), "peer": ("#4878a8", "#8fb3d6", "#274a70"), "local": ("#1b7837", "#6fae7f", "#0d4520")}
PANEL_WIDTH, PANEL_HEIGHT = 560, 300
LEFT, RIGHT, HEAD, FOOT = 62, 24, 40, 48
TITLE_HEIGHT, LEGEND_ROW = 58, 17


@dataclass(frozen=True)
class Line:
    """A value at each place of the axis; dashed: what is wanted."""

    label: str
    kind: str  # ours, peer, local
    values: list[float]
    shade: int = 0
    dashed: bool = False


@dataclass
class Panel:
    """Lines that belong together."""

    title: str
    unit: str
    lines: list[Line] = field(default_factory=list)
    logarithmic: bool = False


def draw(title, subtitle, axis, places, panels, columns=2):
    """The whole picture: `places` on an `axis` with that name."""
    columns = min(columns, len(panels))
    rows = [panels[first:first + columns] for first in range(0, len(panels), columns)]
    heights = [PANEL_HEIGHT + LEGEND_ROW * max(len(panel.lines) for panel in row) for row in rows]
    width = columns * PANEL_WIDTH + (columns + 1) * MARGIN
    height = TITLE_HEIGHT + sum(heights) + len(rows) * MARGIN
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{height}' viewBox='0 0 {width} {height}' {FONT}>",
        f"<rect width='{width}' height='{height}' fill='white'/>",
        _text(MARGIN, 28, title, size=18, weight="bold"),
        _text(MARGIN, 48, subtitle, size=12, fill="#5b646c"),
    ]
    top = TITLE_HEIGHT
    for row, row_height in zip(rows, heights):
        for column, panel in enumerate(row):
            parts += _panel(panel, axis, places, MARGIN + column * (PANEL_WIDTH + MARGIN), top)
        top += row_height + MARGIN
    return "\n".join([*parts, "</svg>", ""])


def _panel(panel, axis, places, left, top):
    scale = _logarithmic(panel) if panel.logarithmic else _linear(panel)
    x0, x1 = left + LEFT, left + PANEL_WIDTH - RIGHT
    y0, y1 = top + PANEL_HEIGHT - FOOT, top + HEAD
    x_of = {place: x0 + (x1 - x0) * place / max(places) for place in places}
    yield _text(left, top + 18, f"{panel.title}, {panel.unit}", size=13, weight="bold")
    for tick in scale.ticks:
        y = y0 + (y1 - y0) * scale.share(tick)
        yield _line(x0, y, x1, y, FAINT)
        yield _text(x0 - 6, y + 4, _short(tick), size=10, anchor="end", fill="#5b646c")
    for place in places:
        yield _line(x_of[place], y0, x_of[place], y0 + 4, INK)
        yield _text(x_of[place], y0 + 17, f"{place:g}", size=10, anchor="middle", fill="#5b646c")
    yield _text((x0 + x1) / 2, y0 + 33, axis, size=11, anchor="middle", fill="#5b646c")
    for number, line in enumerate(panel.lines):
        points = [(x_of[place], y0 + (y1 - y0) * scale.share(value)) for place, value in zip(places, line.values)]
        yield from _drawn(line, points)
        y = top + PANEL_HEIGHT + LEGEND_ROW * number
        yield from _drawn(line, [(x0, y), (x0 + 30, y)])
        yield _text(x0 + 38, y + 4, line.label, size=11)


def _drawn(line, points):
    colour = COLOURS[line.kind][line.shade]
    dash = " stroke-dasharray='5 4' stroke-width='1.3'" if line.dashed else " stroke-width='2'"
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    yield f"<polyline points='{path}' fill='none' stroke='{colour}'{dash}/>"
    if not line.dashed:
        for x, y in points:
            yield f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3' fill='{colour}'/>"


@dataclass(frozen=True)
class _Scale:
    ticks: list[float]
    low: float
    high: float
    logarithmic: bool

    def share(self, value):
        """Where a value stands, from 0 to 1."""
        if not self.logarithmic:
            return (value - self.low) / (self.high - self.low)
        value = max(value, self.low)
        return math.log(value / self.low) / math.log(self.high / self.low)


def _values(panel):
    return [value for line in panel.lines for value in line.values]


def _linear(panel):
    highest = max(_values(panel)) or 1
    step = 10 ** math.floor(math.log10(highest))
    step = next(part for part in (step / 5, step / 2, step, 2 * step) if highest / part <= 6)
    count = math.ceil(highest / step)
    return _Scale([step * number for number in range(count + 1)], 0, step * count, False)


def _logarithmic(panel):
    values = [value for value in _values(panel) if value > 0]
    first, last = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    last = max(last, first + 1)
    ticks = [10.0 ** power for power in range(first, last + 1)]
    return _Scale(ticks, ticks[0], ticks[-1], True)
