"""A panel as rows of a table, and that table as Markdown, LaTeX and CSV."""

import csv
import io
import math
import re
import statistics as std
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sam_bench.report.cells import Cell, Panel
from sam_bench.report.published import Published, published
from sam_bench.report.statistics import (
    LEVEL,
    Comparison,
    Interval,
    Pooled,
    compare,
    detectable_difference,
    dunnett_limit,
    holm,
    mean_interval,
    pooled,
)

SHARPNESS = {  # in result.json under `sharpness`
    "lambda_max": "λ max",
    "trace": "trace",
    "loss_rise": "loss rise",
    "m_sharpness": "m-sharpness",
    "adaptive_sharpness": "adaptive sharpness",
}


@dataclass(frozen=True)
class Row:
    """A cell with its statistics. Accuracies and differences are in %."""

    label: str
    cell: Cell
    accuracy: Interval
    gain: Comparison | None  # over the base optimizer
    over_sam: Comparison | None
    published: list[Published]


@dataclass(frozen=True)
class Table:
    """The rows of a panel and what holds for all of them."""

    panel: Panel
    rows: list[Row]
    spread: Pooled

    @property
    def references(self) -> dict[str, int]:
        """The rows that others are compared with: `gain` and `over_sam` of a row, and the reference's index."""
        found = {"gain": self.panel.base, "over_sam": self.panel.sam}
        return {name: index for name, index in found.items() if index is not None}

    @property
    def detectable(self) -> float:
        """The smallest true difference from a reference, in percentage points, that is detected with a power of 80 %.

        For the row with the smallest n; of the two rows with the smallest n, at 5 %, if there is no reference.
        """
        sizes = [len(row.cell.runs) for row in self.rows]
        found = []
        for reference in self.references.values() if self.spread.freedom and len(sizes) > 1 else ():
            others = [n for i, n in enumerate(sizes) if i != reference]
            limit = dunnett_limit(tuple(sorted(others)), sizes[reference], self.spread.freedom, len(self.references))
            found.append(detectable_difference(min(others), sizes[reference], self.spread, limit))
        if found:
            return max(found)
        first, second = (sorted(sizes) * 2)[:2]
        return detectable_difference(first, second, self.spread)

    def summary(self) -> list[str]:
        """What is to be said below the table, in sentences."""
        return [*self._statistics(), *self._times()]

    @property
    def _from(self) -> str:
        several = sum(len(row.cell.runs) > 1 for row in self.rows)
        return "" if several == len(self.rows) else f", from the {several} of {len(self.rows)} rows with several seeds"

    def _times(self) -> list[str]:
        if self.panel.is_timed:
            return []
        return [
            f"Times are left out: with the same method and cost, the fastest run was {self.panel.slowdown:.1f} times "
            "as fast as the slowest, so the machine probably did other work too."
        ]

    def _statistics(self) -> list[str]:
        n = sorted({len(row.cell.runs) for row in self.rows})
        seeds = f"n = {n[0]}" if len(n) == 1 else f"n = {n[0]} to {n[-1]}"
        lines = []
        if not self.spread.freedom:
            why = "One seed each" if n == [1] else f"No row has two different values ({seeds})"
            return [f"{why}: there are no intervals, and no difference is claimed.", *self.panel.without_reference]
        lines.append(
            "± is the standard deviation over the seeds. "
            f"Intervals are 95 % t intervals, {seeds}, with the standard deviation pooled over this table: "
            f"{self.spread.deviation:.2f} percentage points with {self.spread.freedom} degrees of freedom{self._from}. "
            f"The smallest true difference from {'a reference' if self.references else 'another row'} that this table "
            f"detects with a power of 80 % is {self.detectable:.2f} percentage points."
        )
        for name, index in self.references.items():
            verdicts: dict[str, list[str]] = {"better": [], "worse": [], "not distinguishable": []}
            for row in self.rows:
                if comparison := getattr(row, name):
                    verdicts[comparison.difference.verdict()].append(row.label)
            said = "; ".join(f"{word}: {_named(labels)}" for word, labels in verdicts.items())
            lines.append(f"Compared with {self.panel.labels[index]}: {said}.")
        if self.references and len(self.rows) > 1:
            lines.append("All intervals of differences hold simultaneously with 95 % confidence (Dunnett).")
        lines += self.panel.without_reference
        return lines


def _named(labels: list[str]) -> str:
    return f"{len(labels)} rows" if len(labels) > 6 else ", ".join(labels) or "none"


def table(panel: Panel) -> Table:
    """The statistics of a panel."""
    accuracies = panel.accuracies
    spread = pooled([list(cell.values()) for cell in accuracies])
    none: list[Comparison | None] = [None] * len(panel.cells)
    count = (panel.base is not None) + (panel.sam is not None)
    gains = none if panel.base is None else compare(accuracies, panel.base, count)
    over_sam = none if panel.sam is None else compare(accuracies, panel.sam, count)
    rows = [
        Row(
            panel.labels[i],
            cell,
            mean_interval(list(accuracies[i].values()), spread),
            gains[i],
            over_sam[i],
            published(panel, i),
        )
        for i, cell in enumerate(panel.cells)
    ]
    return Table(panel, rows, spread)


def after_holm(tables: Sequence[Table]) -> str:
    """What stands after Holm's correction for all comparisons of all tables, in one sentence; nothing for one table."""
    found = [
        (comparison, f"{row.label} against {panel.labels[reference]} ({panel.title})")
        for panel, rows in ((each.panel, each.rows) for each in tables)
        for i, row in enumerate(rows)
        # SAM and the base optimizer are compared once
        for comparison, reference in ((row.gain, panel.base), (None if i == panel.base else row.over_sam, panel.sam))
        if comparison and reference is not None and not math.isnan(comparison.p)
    ]
    if len(tables) < 2 or not found:
        return ""
    adjusted = holm([comparison.p for comparison, _ in found])
    said = {"better": [], "worse": []}  # type: dict[str, list[str]]
    for (comparison, name), p in zip(found, adjusted, strict=True):
        if p <= 1 - LEVEL:
            said["better" if comparison.difference.estimate > 0 else "worse"].append(name)
    return (
        f"Of the {len(found)} comparisons on this page, these remain significant at 5 % after Holm's correction. "
        f"Better: {'; '.join(said['better']) or 'none'}. Worse: {'; '.join(said['worse']) or 'none'}."
    )


@dataclass(frozen=True)
class Column:
    """A column: its title, its text in a row, and the number that it is sorted by and that stands in table.csv."""

    title: str
    text: Callable[[Row], str]
    value: Callable[[Row], Any]
    in_latex: bool = False  # which has fewer columns
    in_csv: str = ""  # the title in table.csv, if it is another


def mean_and_deviation(values: Sequence[float], digits: int) -> str:
    """`mean ± standard deviation`, without the deviation for a single value."""
    text = f"{std.mean(values):,.{digits}f}"
    return text if len(values) == 1 else f"{text} ± {std.stdev(values):,.{digits}f}"


def shown_interval(interval: Interval, signed: bool) -> str:
    """`estimate [low, high]`."""
    sign = "+" if signed else ""
    estimate, low, high = (f"{round(value, 2) + 0.0:{sign}.2f}" for value in vars(interval).values())  # no -0.00
    return estimate if math.isinf(interval.low) else f"{estimate} [{low}, {high}]"


def of_runs(key: str, digits: int, scale: float = 1.0) -> tuple[Callable[[Row], str], Callable[[Row], Any]]:
    """A column of mean ± standard deviation of a number in `result.json`; empty where it is missing."""

    def values(row: Row) -> list[float]:
        return list(row.cell.by_seed(key, scale).values())

    return (
        lambda row: mean_and_deviation(found, digits) if (found := values(row)) else "",
        lambda row: std.mean(found) if (found := values(row)) else None,
    )


def of_sharpness(key: str, kind: str) -> tuple[Callable[[Row], str], Callable[[Row], Any]]:
    """A column of a measure of sharpness."""

    def values(row: Row) -> list[float]:
        return list(sharpness(row.cell, key, kind).values())

    def text(row: Row) -> str:
        found = values(row)
        digits = 0 if not found else max(0, 2 - math.floor(math.log10(max(abs(std.mean(found)), 1e-9))))
        return mean_and_deviation(found, min(digits, 6)) if found else ""

    return text, lambda row: std.mean(found) if (found := values(row)) else None


def sharpness(cell: Cell, key: str, kind: str) -> dict[int, float]:
    """A measure of sharpness by seed, of the runs that have it of this kind: `cheap` or `full`."""
    found = {run["seed"]: run.get("sharpness") or {} for run in cell.runs}
    return {seed: float(measures[key]) for seed, measures in found.items() if measures.get("kind") == kind}


def compared(which: str) -> tuple[Callable[[Row], str], Callable[[Row], Any]]:
    """A column of differences from a reference, with their verdict."""

    def text(row: Row) -> str:
        found: Comparison | None = getattr(row, which)
        if found is None:
            return "reference"
        if math.isinf(found.difference.low):
            return shown_interval(found.difference, True)
        return f"{shown_interval(found.difference, True)} {found.difference.verdict()}"

    return text, lambda row: found.difference.estimate if (found := getattr(row, which)) else None


def paired_text(row: Row) -> str:
    """The difference from the base optimizer with the interval of equal seeds."""
    return shown_interval(row.gain.paired, True) if row.gain and row.gain.paired else ""


def settings_text(row: Row) -> str:
    """Where the method's own settings come from."""
    run = row.cell.first
    if run.get("tuned"):
        return f"tuned ({run['tuned']})"
    if (stated := run.get("stated")) is None:  # of an earlier version, which did not record it
        return "as stated" if "=" in re.sub(r"\(.*?\)", "", row.label) else "defaults"
    return ", ".join(each.removeprefix("optimizer.") for each in stated) or "defaults"


def published_text(row: Row) -> str:
    """The published accuracies, with their sources."""
    return "; ".join(f"{each} ({each.source})" for each in row.published)


def published_difference(row: Row) -> str:
    """Ours minus each of the published accuracies."""
    return "; ".join(f"{row.accuracy.estimate - each.accuracy:+.2f}" for each in row.published)


def columns(panel: Panel) -> list[Column]:
    """All columns; those that are empty in a panel are left out by `filled`."""
    return [
        Column("method", lambda row: row.label, lambda row: row.label, True),
        Column("settings", settings_text, settings_text),
        Column("n", lambda row: str(len(row.cell.runs)), lambda row: len(row.cell.runs), True),
        Column(
            panel.accuracy_name,
            lambda row: mean_and_deviation(list(row.cell.by_seed(panel.metric, 100).values()), 2),
            lambda row: row.accuracy.estimate,
            True,
        ),
        Column("95 % interval", lambda row: _bounds(row.accuracy), lambda row: row.accuracy.low, in_csv="accuracy low"),
        *(
            [
                Column(f"gain over {panel.labels[panel.base]}, points", *compared("gain"), True),
                Column("gain, paired by seed", paired_text, lambda row: _estimate(row)),
            ]
            if panel.base is not None
            else []
        ),
        *(
            []
            if panel.sam is None
            else [Column(f"gain over {panel.labels[panel.sam]}, points", *compared("over_sam"), True)]
        ),
        *([Column("test accuracy, %", *of_runs("test_accuracy", 2, 100))] if panel.metric != "test_accuracy" else []),
        Column("propagations per step", *of_runs("propagations_per_step", 3), True),
        Column("expected propagations per step", *of_runs("expected_propagations_per_step", 3)),
        Column("forwards per step", *of_runs("forwards_per_step", 3)),
        Column("counted cost", lambda row: f"{row.cell.cost:.3f}", lambda row: row.cell.cost),
        *(
            [
                Column("seconds", *of_runs("seconds", 1), True),
                Column("images/s", *of_runs("images_per_second", 0)),
            ]
            if panel.is_timed
            else []
        ),
        Column("extra copies of the weights", *of_runs("extra_copies", 2)),
        *(
            Column(f"{title} ({panel.sharpness})", *of_sharpness(key, panel.sharpness))
            for key, title in SHARPNESS.items()
            if panel.sharpness
        ),
        Column("published, %", published_text, lambda row: row.published[0].accuracy if row.published else None),
        Column(
            "difference from published",
            published_difference,
            lambda row: row.accuracy.estimate - row.published[0].accuracy if row.published else None,
        ),
        Column(
            "device, precision",
            lambda row: f"{row.cell.first['device']}, {row.cell.first['precision']}",
            lambda row: row.cell.first["device"],
        ),
    ]


def _bounds(interval: Interval) -> str:
    return "" if math.isinf(interval.low) else f"[{interval.low:.2f}, {interval.high:.2f}]"


def _estimate(row: Row) -> float | None:
    return row.gain.paired.estimate if row.gain and row.gain.paired else None


def filled(found: Table) -> list[Column]:
    """The columns of a table that say something: some row has a text and, if it is a number, one that is not 0."""
    return [
        column
        for column in columns(found.panel)
        if any(column.text(row) and column.value(row) not in (0, None) for row in found.rows)
    ]


LEFT_OUT = ("counted cost", "gain, paired by seed")  # of Markdown, which does not scroll


def markdown(tables: Sequence[Table]) -> str:
    """Markdown, one table per panel."""
    parts = []
    for found in tables:
        shown = [column for column in filled(found) if column.title not in LEFT_OUT]
        rows = [[column.title for column in shown], *([column.text(row) for column in shown] for row in found.rows)]
        head, *below = [f"| {' | '.join(map(for_markdown, row))} |" for row in rows]
        lines = [head, "|" + " --- |" * len(shown), *below]
        parts.append("\n".join([f"**{for_markdown(found.panel.title)}**", "", *lines, "", *found.summary()]))
    return "\n\n".join(parts)


def for_markdown(text: str) -> str:
    """The text of a Markdown cell: one line, without cell borders or HTML."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def latex(tables: Sequence[Table]) -> str:
    """LaTeX with booktabs, one table per panel; the file compiles by itself."""
    parts = []
    for found in tables:
        shown = [column for column in filled(found) if column.in_latex]
        head = " & ".join(_tex(column.title) for column in shown)
        rows = [" & ".join(_tex(column.text(row)) for column in shown) + r" \\" for row in found.rows]
        caption = _tex(f"{found.panel.title}. {' '.join(found.summary())}")
        parts.append(
            "\n".join(
                [
                    r"\begin{table}",
                    rf"\caption{{{caption}}}",
                    r"\centering\resizebox{\linewidth}{!}{%",
                    rf"\begin{{tabular}}{{l{'r' * (len(shown) - 1)}}}",
                    r"\toprule",
                    rf"{head} \\",
                    r"\midrule",
                    *rows,
                    r"\bottomrule",
                    r"\end{tabular}}",
                    r"\end{table}",
                ]
            )
        )
    preamble = (
        "% compiles by itself; or \\input the tables into a paper that loads booktabs and graphicx\n"
        r"\documentclass{article}"
        "\n"
        r"\usepackage{booktabs,graphicx}"
        "\n"
        r"\begin{document}"
    )
    return "\n\n".join([preamble, *parts, "\\end{document}\n"])


TEX = {
    **{each: f"\\{each}" for each in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "λ": r"$\lambda$",
    "ρ": r"$\rho$",
    "γ": r"$\gamma$",
    "<": r"$<$",
    ">": r"$>$",
    "|": r"$|$",
}


def _tex(text: str) -> str:
    """The text for LaTeX; what the standard fonts lack becomes a question mark."""
    return "".join(TEX.get(each, each if each.isascii() and each.isprintable() else "?") for each in text)


def comma_separated(tables: Sequence[Table]) -> str:
    """CSV with one number per cell and one row per setting, all panels below each other."""
    titles = list(dict.fromkeys(column.in_csv or column.title for t in tables for column in columns(t.panel)))
    text = io.StringIO()
    extra = ["accuracy high", "gain low", "gain high", "gain verdict", "SAM low", "SAM high", "SAM verdict", "seeds"]
    writer = csv.DictWriter(text, ["panel", *titles, *extra], lineterminator="\n")
    writer.writeheader()
    for found in tables:
        for row in found.rows:
            line: dict[str, Any] = {"panel": found.panel.title}
            line |= {column.in_csv or column.title: column.value(row) for column in columns(found.panel)}
            line |= {"accuracy high": row.accuracy.high}
            if row.gain:
                line |= {"gain low": row.gain.difference.low, "gain high": row.gain.difference.high}
                line |= {"gain verdict": row.gain.difference.verdict()}
            if row.over_sam:
                line |= {"SAM low": row.over_sam.difference.low, "SAM high": row.over_sam.difference.high}
                line |= {"SAM verdict": row.over_sam.difference.verdict()}
            line["seeds"] = " ".join(str(run["seed"]) for run in row.cell.runs)
            writer.writerow(
                {key: "" if isinstance(v, float) and not math.isfinite(v) else v for key, v in line.items()}
            )
    return text.getvalue()
