"""What the README says is so."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from benchmarks import plot
from sam_bench import catalogue, results
from sam_bench.errors import SettingError
from sam_bench.report import page
from sam_bench.report.cells import collect, panels
from tests.command import settings

REPOSITORY = Path(__file__).parent.parent
EXPERIMENTS = REPOSITORY / "experiments"
PAGES = [
    REPOSITORY / "README.md",
    *(REPOSITORY / "docs" / f"{name}.md" for name in ("getting_started", "command", "sweeps")),
]
COMMANDS = [
    command
    for text in PAGES
    for command in re.findall(r"^python -m sam_bench (?!\.|--config-dir|GROUP=)(.+)$", text.read_text(), re.MULTILINE)
]


@pytest.mark.parametrize("arguments", dict.fromkeys(COMMANDS))
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
def test_the_committed_page_is_that_of_the_committed_results_byte_for_byte(folder, tmp_path):
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("figures", "index.html", "table.*"))
    page.build(collect([copy]), copy, "../index.html", files_too=False)  # the page has all drawings
    linked = set(re.findall(r'href="(figures/[^"]+)"', (folder / "index.html").read_text()))
    assert linked == {str(path.relative_to(folder)) for path in folder.glob("figures/*/*")}, "make pages"
    found = {path.relative_to(at) for at in (folder, copy) for path in at.rglob("*") if path.is_file()}
    for name in sorted(name for name in found if name.parts[0] != "figures"):
        assert (folder / name).exists(), f"{name} is missing: make pages"
        assert (copy / name).exists(), f"{name} is no longer made: make pages"
        assert (folder / name).read_bytes() == (copy / name).read_bytes(), f"{name} has changed: make pages"


def test_the_committed_index_links_the_committed_pages():
    pages = [page.summary(panels(collect([folder])), folder) for folder in measured_folders()]
    assert page.index(pages) == (EXPERIMENTS / "index.html").read_text(), "make pages"


def test_the_differences_in_the_readme_are_those_of_the_claims():
    found = re.findall(r"[+-][\d.]+ \[[^]]+\]", (REPOSITORY / "README.md").read_text())
    decided = (EXPERIMENTS / "claims" / "table.md").read_text().partition("| method |")[0]
    assert len(found) == 2
    assert all(each in decided for each in found)


def own_results(folder):
    """Without those of an earlier experiment, which are links."""
    return [path for path in folder.glob("*/*/result.json") if not path.parent.parent.is_symlink()]


def runs_and_rules():
    """The commits that runs with claims were made at."""
    return [
        pytest.param(folder, commit, id=f"{folder.name}-{commit[:7]}")
        for folder in sorted(path.parent for path in EXPERIMENTS.glob("*/claims.yaml"))
        for commit in sorted({results.read(run.parent)["git_commit"] for run in own_results(folder)})
    ]


@pytest.mark.parametrize(("folder", "commit"), runs_and_rules())
def test_the_rules_of_the_claims_are_older_than_the_runs(folder, commit):
    file = f"{commit}:experiments/{folder.name}/claims.yaml"
    history = os.environ.get("SAM_BENCH_HISTORY", REPOSITORY / ".git")
    then = subprocess.run(["git", "--git-dir", history, "show", file], capture_output=True, text=True)
    if then.returncode and ("invalid object name" in then.stderr or "not a git repository" in then.stderr):
        pytest.skip("needs the history of this repository, back to the runs")
    assert then.returncode == 0, then.stderr
    rules = yaml.safe_load((folder / "claims.yaml").read_text())
    assert [rule for rule in rules if rule not in yaml.safe_load(then.stdout)] == []


def test_every_local_link_leads_somewhere():
    for text in [
        REPOSITORY / "README.md",
        *(REPOSITORY / "docs").rglob("*.md"),
        *REPOSITORY.glob("experiments/*/*.md"),
    ]:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text.read_text()):
            assert target.startswith("https://") or (text.parent / target).exists(), f"{text}: {target}"


def test_the_catalogue_is_that_of_the_classes_and_files():
    assert catalogue.catalogue() + "\n" == (REPOSITORY / "docs" / "methods.md").read_text(), "make docs writes it"


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def is_part_of(line: list[str], row: dict[str, str]) -> bool:
    """Whether the cells are values of the row, in its order."""
    values = iter(row.values())
    return all(cell in values for cell in line)


@pytest.mark.parametrize("name", ["step-small_resnet", "sparse", "ladder", "scaling", "startup", "seeds", "loader"])
def test_the_speed_tables_are_the_committed_measurements(name):
    text = (REPOSITORY / "docs" / "performance.md").read_text()
    lines = [cells(line) for line in text.splitlines() if line.startswith("|")]
    for row in plot.read(REPOSITORY / "benchmarks" / "results" / "cpu" / f"{name}.csv"):
        assert any(len(line) > 1 and is_part_of(line, row) for line in lines), row


def test_the_table_of_steps_has_every_row_of_the_bench_and_no_other():
    rows = plot.read(REPOSITORY / "benchmarks" / "results" / "cpu" / "step-small_resnet.csv")
    text = (REPOSITORY / "docs" / "performance.md").read_text()
    section = text.split("## The step of every method")[1].split("\n## ")[0]
    lines = [cells(line) for line in section.splitlines() if line.startswith("|")][2:]
    assert len(lines) == len(rows)
    for line, row in zip(lines, rows, strict=True):
        assert line[0] == row["optimizer"]
        assert is_part_of(line, row), row
