"""What the README says is so."""

import html
import re
import shlex
from pathlib import Path

import pytest

from benchmarks import plot
from sam_bench import catalogue
from sam_bench.errors import SettingError
from sam_bench.report import tables
from sam_bench.report.cells import collect, panels
from tests.command import settings
from tests.optim.methods import NAMES

REPOSITORY = Path(__file__).parent.parent
README = (REPOSITORY / "README.md").read_text()
COMMANDS = re.findall(r"^python -m sam_bench (?!\.|--config-dir)(.+)$", README, re.MULTILINE)


@pytest.mark.parametrize("arguments", COMMANDS)
def test_every_command_is_a_valid_one(arguments):
    words = [word for word in shlex.split(arguments, comments=True) if word != "-m"]
    choices = [re.sub(r"=([^\[]*?),.*", r"=\1", word) for word in words]  # the first of a sweep's
    if "dataset=imagefolder" in choices:  # its classes and images are counted at once
        with pytest.raises(SettingError, match="needs a folder train/"):
            settings(*choices)
    else:
        assert settings(*choices).config_hash


def measured_folders():
    return sorted(path.parent for path in (REPOSITORY / "experiments").glob("*/table.md"))


@pytest.mark.parametrize("folder", measured_folders(), ids=lambda folder: folder.name)
def test_the_committed_tables_are_the_report_of_the_committed_results(folder):
    found = [tables.table(panel) for panel in panels(collect([folder]))]
    assert tables.markdown(found) + "\n" == (folder / "table.md").read_text(), "python -m sam_bench.report FOLDER"
    assert tables.latex(found) == (folder / "table.tex").read_text()
    assert tables.comma_separated(found) == (folder / "table.csv").read_text()
    page = (folder / "index.html").read_text()
    for one in found:
        assert html.escape(one.panel.title) in page
        assert all(f"{row.accuracy.estimate:.2f}" in page for row in one.rows)


def test_every_local_link_leads_somewhere():
    for page in [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md"), *REPOSITORY.glob("experiments/*/*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
            assert target.startswith("https://") or (page.parent / target).exists(), f"{page}: {target}"


def test_the_catalogue_is_that_of_the_classes_and_files():
    assert catalogue.catalogue() + "\n" == (REPOSITORY / "docs" / "methods.md").read_text(), "make docs writes it"


def test_the_catalogue_has_every_method():
    page = (REPOSITORY / "docs" / "methods.md").read_text()
    assert all(f"| `{name}` |" in page for name in NAMES)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def is_part_of(line: list[str], row: dict[str, str]) -> bool:
    """Whether the cells are values of the row, in its order."""
    values = iter(row.values())
    return all(cell in values for cell in line)


@pytest.mark.parametrize("name", ["step-small_resnet", "sparse", "ladder", "scaling", "startup", "seeds", "loader"])
def test_the_speed_tables_are_the_committed_measurements(name):
    page = (REPOSITORY / "benchmarks" / "README.md").read_text()
    lines = [cells(line) for line in page.splitlines() if line.startswith("|")]
    for row in plot.read(REPOSITORY / "benchmarks" / "results" / "cpu" / f"{name}.csv"):
        assert any(len(line) > 1 and is_part_of(line, row) for line in lines), row


def test_the_speed_table_of_the_readme_is_that_of_the_bench():
    rows = plot.read(REPOSITORY / "benchmarks" / "results" / "cpu" / "step-small_resnet.csv")
    section = README.split("## Speed")[1].split("\n## ")[0]
    lines = [cells(line) for line in section.splitlines() if line.startswith("|")][2:]
    assert len(lines) == len(rows)
    for line, row in zip(lines, rows, strict=True):
        assert line[0] == row["optimizer"]
        assert is_part_of(line, row), row
