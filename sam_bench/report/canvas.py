"""What figures are drawn on: axes that know which cell a mark belongs to, saved for the page and as files."""

import hashlib
import html
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from sam_bench.errors import SettingError
from sam_bench.report.cells import Cell
from sam_bench.report.tables import Table

INK = "#010203"  # a color of its own, which the page replaces with that of its text
WIDTH = 7.2  # inches
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "grid.alpha": 0.18,
    "grid.color": INK,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "pdf.fonttype": 42,
}


@dataclass(frozen=True)
class Figure:
    """A drawn figure.

    Attributes:
        name: of its files, unique within a panel.
        options: what was chosen for it, such as {"x": "seconds"}; figures of one `family` are alternatives.
        svg: to be put inside a page.
        files: makes the content of each kind of file when it is called.
    """

    family: str
    name: str
    caption: str
    options: dict[str, str]
    svg: str
    files: dict[str, Callable[[], bytes]] = field(repr=False, default_factory=dict)


def slug(text: str) -> str:
    """A part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


class Canvas:
    """A figure being drawn: axes, and the cells that its parts belong to."""

    def __init__(self, height: float, columns: int = 1) -> None:
        self.height = height  # inches
        self.drawing = Drawing(figsize=(WIDTH, height), layout="constrained")
        self.axes: list[Axes] = list(np.atleast_1d(self.drawing.subplots(1, columns)))
        self.cells: dict[str, tuple[int, str]] = {}

    def of_cell(self, artist: Any, index: int, text: str) -> None:
        """Mark what belongs to a cell: the page highlights it, and shows `text` when it is pointed at."""
        name = f"cell-{index}-{len(self.cells)}"
        artist.set_gid(name)
        self.cells[name] = index, text

    def finished(self, family: str, table: Table, title: str, options: dict[str, str], caption: str) -> Figure:
        """Save it."""
        name = "-".join([family, *(slug(value)[:48] for value in options.values())])
        where = f"{table.panel.title}; {precision_and_device(table.panel.cells)}"
        text = f"{caption} Settings: {where}."
        inline = self._saved("svg", name)
        prefix = "f" + hashlib.sha256(f"{table.panel.title} {name}".encode()).hexdigest()[:8]
        self.drawing.supxlabel(_wrapped(text), fontsize=6.5, x=0.01, ha="left")  # the settings, in the files
        files = {"svg": lambda: self._saved_svg(name), "pdf": self._saved_pdf}
        return Figure(family, name, text, options, self._for_page(inline, title, prefix), files)

    def _saved(self, kind: str, name: str, background: str = "none") -> str:
        with matplotlib.rc_context({"svg.hashsalt": name}):
            buffer = io.BytesIO()
            self.drawing.savefig(buffer, format=kind, facecolor=background, metadata={"Date": None})
        return buffer.getvalue().decode()

    def _saved_svg(self, name: str) -> bytes:
        with matplotlib.rc_context(STYLE):
            # on white, which is also readable on a dark page
            return self._saved("svg", name, "white").replace(INK, "#222222").encode()

    def _saved_pdf(self) -> bytes:
        buffer = io.BytesIO()
        with matplotlib.rc_context(STYLE):
            self.drawing.savefig(buffer, format="pdf", metadata={"CreationDate": None})
        return buffer.getvalue()

    def _for_page(self, svg: str, title: str, prefix: str) -> str:
        svg = svg[svg.index("<svg") :]
        svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
        # shorter coordinates, in attributes alone: the text of a tick keeps its digits
        svg = re.sub(r'="[^"]*"', lambda found: re.sub(r"(\d+\.\d{2})\d+", r"\1", found[0]), svg)
        svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2).replace(INK, "currentColor")
        svg = svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(title)}" ', 1)
        for name, (index, text) in self.cells.items():
            svg = svg.replace(
                f'<g id="{name}">', f'<g class="cell" data-cell="{index}" data-text="{html.escape(text)}">', 1
            )
        used = set(re.findall(r"[\"(]#([^\")]+)[\")]", svg))
        svg = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in used else "", svg)

        def unique(found: re.Match[str]) -> str:
            return f"{found[1]}{prefix}-{found[2]}" if found[2] in used else found[0]

        return re.sub(r'(id="|[("]#)([^")]+)', unique, svg)  # ids of several drawings in a page must differ


def _wrapped(text: str, width: int = 130) -> str:
    lines, line = [], ""
    for word in text.split():
        if len(line) + len(word) > width:
            lines.append(line)
            line = ""
        line = f"{line} {word}".strip()
    return "\n".join([*lines, line]).replace("$", r"\$")


def precision_and_device(cells: Sequence[Cell]) -> str:
    """Device and precision of all cells, and the number of seeds."""
    devices = ", ".join(dict.fromkeys(f"{cell.first['device']}, {cell.first['precision']}" for cell in cells))
    counts = sorted({len(cell.runs) for cell in cells})
    return f"{devices}; n = {counts[0]}" if len(counts) == 1 else f"{devices}; n = {counts[0]} to {counts[-1]}"


def write(figure: Figure, folder: Path) -> None:
    """Write the files of a figure into `folder`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for kind, content in figure.files.items():
            (folder / f"{figure.name}.{kind}").write_bytes(content())
    except OSError as error:
        raise SettingError(f"{folder}: cannot be written: {error.strerror}") from error
