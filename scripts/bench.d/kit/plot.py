"""Draws grouped bars as SVG: one panel a load, one bar a device."""

from dataclasses import dataclass, field
from html import escape

FONT = "font-family='DejaVu Sans, Verdana, Helvetica, sans-serif'"
COLOURS = {"ours": "#c2571a", "peer": "#4878a8", "kernel": "#9aa3ab"}
INK, FAINT, MARK = "#22272b", "#d8dde1", "#1b7837"
PANEL_WIDTH, LABEL_WIDTH, VALUE_WIDTH = 560, 190, 66
BAR, GAP, HEAD, FOOT, MARGIN = 15, 6, 34, 26, 20
TITLE_HEIGHT, LEGEND_HEIGHT = 58, 26


@dataclass(frozen=True)
class Bar:
    """One device's median, with the lowest and the highest round."""

    label: str
    kind: str  # ours, peer, kernel
    value: float
    low: float
    high: float
    wanted: float | None = None  # where the bar should reach


@dataclass
class Panel:
    """All devices under one load."""

    title: str
    unit: str
    bars: list[Bar] = field(default_factory=list)


def draw(title, subtitle, panels, columns=2):
    """The whole picture."""
    columns = min(columns, len(panels))
    rows = [panels[first:first + columns] for first in range(0, len(panels), columns)]
    heights = [max(_height(panel) for panel in row) for row in rows]
    width = columns * PANEL_WIDTH + (columns + 1) * MARGIN
    height = TITLE_HEIGHT + sum(heights) + len(rows) * MARGIN + LEGEND_HEIGHT
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{height}' viewBox='0 0 {width} {height}' {FONT}>",
        f"<rect width='{width}' height='{height}' fill='white'/>",
        _text(MARGIN, 28, title, size=18, weight="bold"),
        _text(MARGIN, 48, subtitle, size=12, fill="#5b646c"),
    ]
    top = TITLE_HEIGHT
    for row, row_height in zip(rows, heights):
        for column, panel in enumerate(row):
            parts += _panel(panel, MARGIN + column * (PANEL_WIDTH + MARGIN), top)
        top += row_height + MARGIN
    parts += _legend(panels, MARGIN, top)
    return "\n".join([*parts, "</svg>", ""])


def _height(panel):
    return HEAD + len(panel.bars) * (BAR + GAP) + FOOT


def _panel(panel, left, top):
    axis = left + LABEL_WIDTH
    span = PANEL_WIDTH - LABEL_WIDTH - VALUE_WIDTH
    step, ticks = _ticks(max((max(bar.high, bar.wanted or 0) for bar in panel.bars), default=1) or 1)
    scale = span / (step * ticks)
    bottom = top + HEAD + len(panel.bars) * (BAR + GAP)
    yield _text(left, top + 18, panel.title, size=13, weight="bold")
    for tick in range(ticks + 1):
        x = axis + tick * step * scale
        yield _line(x, top + HEAD - 4, x, bottom, FAINT)
        yield _text(x, bottom + 14, _short(tick * step) + (f" {panel.unit}" if tick == ticks else ""), size=10, anchor="middle", fill="#5b646c")
    for number, bar in enumerate(panel.bars):
        yield from _bar(bar, axis, top + HEAD + number * (BAR + GAP), scale)


def _bar(bar, axis, y, scale):
    middle = y + BAR / 2
    bold = "bold" if bar.kind == "ours" else "normal"
    yield _text(axis - 6, middle + 4, bar.label, size=11, anchor="end", weight=bold)
    yield f"<rect x='{axis}' y='{y}' width='{bar.value * scale:.1f}' height='{BAR}' fill='{COLOURS[bar.kind]}'/>"
    low, high = axis + bar.low * scale, axis + bar.high * scale
    yield _line(low, middle, high, middle, INK)
    yield _line(low, middle - 3, low, middle + 3, INK)
    yield _line(high, middle - 3, high, middle + 3, INK)
    end = max(high, axis + bar.value * scale)
    if bar.wanted:
        x = axis + bar.wanted * scale
        yield _line(x, y - 3, x, y + BAR + 3, MARK, width=2.5)
        end = max(end, x)
    yield _text(end + 5, middle + 4, _short(bar.value), size=11, weight=bold)


def _legend(panels, left, top):
    bars = [bar for panel in panels for bar in panel.bars]
    x = left
    for kind, word in (("ours", "blockferry"), ("peer", "other servers"), ("kernel", "kernel alone")):
        if any(bar.kind == kind for bar in bars):
            yield f"<rect x='{x}' y='{top}' width='12' height='12' fill='{COLOURS[kind]}'/>"
            yield _text(x + 18, top + 10, word, size=11)
            x += 120
    yield _line(x, top + 6, x + 18, top + 6, INK)
    yield _text(x + 24, top + 10, "all rounds", size=11)
    if any(bar.wanted for bar in bars):
        yield _line(x + 105, top - 2, x + 105, top + 14, MARK, width=2.5)
        yield _text(x + 113, top + 10, "wanted of blockferry", size=11)


def _ticks(highest):
    """A round step, and how many of them hold the highest value."""
    step = 10 ** len(str(int(highest))) / 1000
    for factor in (1, 2, 2.5, 5, 10, 20, 25, 50, 100, 200, 250, 500, 1000):
        count = -(-highest // (step * factor))
        if count <= 5:
            return step * factor, int(count)
    return highest, 1


def _short(value):
    if value >= 10_000:
        return f"{value / 1000:.0f}k"
    if value >= 1000:
        return f"{value / 1000:.1f}k"
    return f"{value:.3g}"


def _text(x, y, words, size, anchor="start", weight="normal", fill=INK):
    return f"<text x='{x:.1f}' y='{y:.1f}' font-size='{size}' text-anchor='{anchor}' font-weight='{weight}' fill='{fill}'>{escape(words)}</text>"


def _line(x1, y1, x2, y2, colour, width=1):
    return f"<line x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}' stroke='{colour}' stroke-width='{width}'/>"
