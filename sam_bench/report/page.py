"""The page of an experiment: one self-contained HTML file, with its tables and figures as files beside it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from tqdm import tqdm

from sam_bench import files
from sam_bench.conf_files import CONF
from sam_bench.errors import SettingError
from sam_bench.report import claims, tables
from sam_bench.report.canvas import INK, write
from sam_bench.report.cells import Cell, Panel, panels
from sam_bench.report.claims import Decision
from sam_bench.report.figures import color, figures
from sam_bench.report.published import how_settings_differ
from sam_bench.report.tables import Table

FAMILIES = {
    "claims": "The claims",
    "cost": "Accuracy against cost, with the frontier",
    "gain": "Gain",
    "seeds": "Every seed",
    "curves": "Curves",
    "setting": "Accuracy against a setting",
    "schedule": "Schedule: p(t), the sharpness-aware steps drawn, and the propagations so far",
    "sharpness": "Sharpness against accuracy",
    "sensitivity": "Sensitivity to settings",
    "surface": "Loss surfaces",
}
HERE = Path(__file__).parent
TEMPLATES = Environment(autoescape=True, undefined=StrictUndefined, loader=PackageLoader("sam_bench.report", "."))


@dataclass(frozen=True)
class Page:
    """What an index says of a page."""

    folder: Path
    title: str
    description: str
    panels: list[str]
    cells: int
    runs: int


def build(cells: list[Cell], folder: Path, index: str | None = None, *, files_too: bool = True) -> Page:
    """Write index.html, table.md, table.tex, table.csv and figures/ of the runs into a folder.

    Args:
        cells: the finished runs.
        folder: where to; it is made.
        index: the address of a page of all experiments.
        files_too: write the figures also as files, to which the page links. It takes as long as all the rest.
    """
    compared = panels(cells)
    about, found = summary(compared, folder), [tables.table(panel) for panel in compared]
    rules = claims.read(folder)
    decisions = claims.decide(rules, found)
    runs = [run for cell in cells for run in cell.runs]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in [*folder.glob("figures/*/*.svg"), *folder.glob("figures/*/*.pdf")]:  # of runs that are gone
            old.unlink()
    except OSError as error:
        raise SettingError(f"{folder}: cannot be written: {error.strerror}") from error
    shown = [
        _panel(table, decisions, number, folder, files_too)
        for number, table in enumerate(tqdm(found, "figures", disable=None, leave=False))
    ]
    commits = sorted({str(run.get("git_commit"))[:7] for run in runs if run.get("git_commit")})
    facts = [
        f"{len(runs)} runs of {len(cells)} cells",
        f"protocol {', '.join(sorted(protocols))}"
        if (protocols := {r["protocol"] for r in runs if r.get("protocol")})
        else "",
        f"torch {', '.join(sorted({str(run.get('versions', {}).get('torch')) for run in runs}))}",
        f"{'commit' if len(commits) == 1 else 'commits'} {', '.join(commits)}" if commits else "",
    ]
    page = TEMPLATES.get_template("page.html").render(
        title=about.title,
        description=about.description,
        facts=" · ".join(filter(None, facts)),
        after_holm=tables.after_holm(found),
        decisions=decisions,
        without_runs=[claim.claim for claim in claims.without_runs(rules, decisions)],
        panels=shown,
        index=index,
        css=_source("page.css"),
        js=_source("page.js"),
    )
    files.replace(folder / "index.html", page)
    files.replace(
        folder / "table.md", "\n\n".join(filter(None, [claims.markdown(decisions), tables.markdown(found)])) + "\n"
    )
    files.replace(folder / "table.tex", tables.latex(found))
    files.replace(folder / "table.csv", tables.comma_separated(found))
    return about


def summary(panels: Sequence[Panel], folder: Path) -> Page:
    """What an index says of the page of a folder."""
    title, cells = folder.resolve().name, sum(len(panel.cells) for panel in panels)
    runs = sum(len(panel.runs) for panel in panels)
    return Page(folder, title, description(title), [panel.title for panel in panels], cells, runs)


def index(pages: Sequence[Page]) -> str:
    """The page that links all pages, for the folder that theirs are in."""
    rows = [{**vars(page), "link": f"{page.folder.resolve().name}/index.html"} for page in pages]
    return TEMPLATES.get_template("index.html").render(pages=rows, css=_source("page.css"))


def description(experiment: str) -> str:
    """The comment that heads the file of an experiment."""
    path = CONF / "experiment" / f"{experiment}.yaml"
    lines = path.read_text().splitlines()[1:] if path.exists() else []
    comment = []
    for line in lines:
        if not line.startswith("#"):
            break
        comment.append(line.removeprefix("#").strip())
    return " ".join(comment)


def _panel(table: Table, decisions: Sequence[Decision], number: int, folder: Path, files_too: bool) -> dict[str, Any]:
    columns = tables.filled(table)
    beside = Path("figures", str(number + 1))
    families = []
    for name, group in groupby(figures(table, decisions), key=lambda figure: figure.family):
        variants = list(group)
        for each in variants if files_too else []:
            write(each, folder / beside)
        choices = {
            option: list(dict.fromkeys(each.options[option] for each in variants)) for option in variants[0].options
        }
        families.append(
            {
                "name": name,
                "title": FAMILIES[name],
                "choices": {option: values for option, values in choices.items() if len(values) > 1},
                "figures": [
                    {
                        "options": each.options,
                        "svg": each.svg,
                        "caption": each.caption,
                        "files": {kind: str(beside / f"{each.name}.{kind}") for kind in each.files},
                    }
                    for each in variants
                ],
            }
        )
    return {
        "title": table.panel.title,
        "summary": table.summary(),
        "families": families,
        "columns": [column.title for column in columns],
        "rows": [
            {
                "index": i,
                "color": "currentColor" if (tone := color(table, row)) == INK else tone,
                "cells": [(column.text(row), "" if (v := column.value(row)) is None else v) for column in columns],
            }
            for i, row in enumerate(table.rows)
        ],
        "published": [
            {
                "label": row.label,
                "ours": f"{row.accuracy.estimate:.2f}",
                "theirs": str(theirs),
                "difference": f"{row.accuracy.estimate - theirs.accuracy:+.2f}",
                "source": theirs.source,
                "settings": how_settings_differ(row.cell, theirs),
            }
            for row in table.rows
            for theirs in row.published
        ],
    }


def _source(name: str) -> str:
    return (HERE / name).read_text()
