"""Writes one benchmark's page: Markdown with tables, an SVG plot, and the tables on standard output."""

import os
from pathlib import Path

from kit import lines, machine, plot


class Report:
    """A page that grows from top to bottom."""

    def __init__(self, name, title, intro):
        self.name, self.title = name, title
        self.folder = Path(os.environ.get("BENCH_OUT") or machine.ROOT / "docs/benchmarks")
        self.parts = [f"# {title}", intro]
        self.printed = [title]

    def text(self, words):
        """A paragraph."""
        self.parts.append(words)

    def heading(self, words):
        """A section."""
        self.parts.append(f"## {words}")

    def table(self, head, rows, caption=""):
        """A table, here and on standard output; the first column is text, the others stand on the right."""
        if caption:
            self.parts.append(caption)
        self.parts.append(_markdown(head, rows))
        self.printed.append((caption + "\n" if caption else "") + _plain(head, rows))

    def plot(self, subtitle, panels, columns=2):
        """The page's picture."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{self.name}.svg").write_text(plot.draw(self.title, subtitle, panels, columns))
        self.parts.append(f"![{self.title}]({self.name}.svg)")

    def lines(self, name, subtitle, axis, places, panels, title=None):
        """A picture of lines over an axis."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{name}.svg").write_text(lines.draw(title or self.title, subtitle, axis, places, panels))
        self.parts.append(f"![{title or self.title}]({name}.svg)")

    def facts(self, facts):
        """Where and with what it was measured."""
        self.heading("Machine and versions")
        self.parts.append(_markdown(["what", "value"], [[name, value] for name, value in facts.items()], right=False))

    def write(self):
        """Writes the page and prints the tables."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{self.name}.md").write_text("\n\n".join(self.parts) + "\n")
        print("\n\n".join(self.printed) + "\n", flush=True)


def iops(value):
    """A rate, short enough for a table."""
    if value is None:
        return "–"
    return f"{value / 1000:.1f}k" if value < 100_000 else f"{value / 1000:.0f}k"


def times(value):
    """A ratio."""
    return "–" if value is None else f"{value:.2f}"


def _markdown(head, rows, right=True):
    rule = ["---", *(("---:" if right else "---") for _ in head[1:])]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in [head, rule, *rows])


def _plain(head, rows):
    widths = [max(len(str(row[column])) for row in [head, *rows]) for column in range(len(head))]
    return "\n".join(
        "  ".join([str(row[0]).ljust(widths[0]), *(str(cell).rjust(width) for cell, width in zip(row[1:], widths[1:]))]).rstrip()
        for row in [head, *rows]
    )
