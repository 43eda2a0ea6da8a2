"""What the README says is so."""

import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from sam_bench.methods import METHODS, catalogue

from benchmarks import plot
from sam_bench import report
from sam_bench.__main__ import CONF
from tests.command import settings
from tests.optim.methods import problem, sgd

REPOSITORY = Path(__file__).parent.parent
README = (REPOSITORY / "README.md").read_text()
COMMANDS = re.findall(r"^python -m sam_bench (?!\.)(.+)$", README, re.MULTILINE)


@pytest.mark.parametrize("arguments", COMMANDS)
def test_every_command_is_a_valid_one(arguments):
    words = [word for word in shlex.split(arguments, comments=True) if word != "-m"]
    choices = [re.sub(r"=([^\[]*?),.*", r"=\1", word) for word in words]  # the first of a sweep's
    assert settings(*choices).config_hash


RECIPE = README.split("## Adding a method")[1].split("\n## ")[0]
METHOD, LINE = (textwrap.dedent(code) for code in re.findall(r"```python\n(.*?)```", RECIPE, re.DOTALL))
FILE = textwrap.dedent(*re.findall(r"```yaml\n(.*?)```", RECIPE, re.DOTALL))


def test_the_method_of_the_recipe_keeps_the_contract(device):
    names: dict = {}
    exec(METHOD, names)
    p = problem(device)
    optimizer = names["SignSAM"](sgd(p.model), rho=0.05, model=p.model)
    seen = []
    optimizer.step(p.closure(optimizer, before=lambda: seen.append([q.detach().clone() for q in p.model.parameters()])))
    epsilon = torch.cat([(b - a).flatten() for a, b in zip(*seen, strict=True)])
    assert epsilon.norm().item() == pytest.approx(0.05, rel=1e-4)
    assert (optimizer.propagations, optimizer.sharpness_aware_steps) == (2, 1)


def test_the_recipe_is_all_it_takes(tmp_path):
    """Its three files in a copy of the project: the method trains, alone and under RST, and passes the battery."""
    for part in ("sam_bench", "conf", "tests", "benchmarks", "pyproject.toml"):
        (shutil.copytree if (REPOSITORY / part).is_dir() else shutil.copy)(REPOSITORY / part, tmp_path / part)
    (tmp_path / "sam_bench" / "optim" / "signsam.py").write_text(METHOD)
    (tmp_path / "conf" / "optimizer" / "signsam.yaml").write_text(FILE)
    registry = tmp_path / "sam_bench" / "methods.py"
    start = "METHODS: dict[str, Method] = {\n"
    assert start in registry.read_text()
    registry.write_text(registry.read_text().replace(start, start + textwrap.indent(LINE, "    ")))

    def python(*arguments):
        done = subprocess.run([sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    tiny = ["logger=none", "trainer.epochs=1", "dataset.subset=320", "trainer.batch_size=32"]
    assert "digits small_resnet signsam seed 0\n" in python("-m", "sam_bench", "optimizer=signsam", *tiny)
    out = python("-m", "sam_bench", "optimizer=rst", "optimizer/inner=signsam", *tiny)
    assert "digits small_resnet rst linear seed 0\n" in out
    assert "| `signsam` | nobody yet | 2 | 1 |" in python("-m", "sam_bench.methods")
    out = python("-m", "pytest", "tests/optim/test_battery.py", "tests/test_capture.py", "-k", "signsam")
    assert int(re.search(r"(\d+) passed", out)[1]) >= 20, out


def test_the_measured_table_is_the_report_of_the_committed_results():
    table = report.table(report.collect([REPOSITORY / "experiments" / "cifar10_5000"]))
    assert table in README
    assert table in (REPOSITORY / "experiments" / "cifar10_5000" / "README.md").read_text()


def test_every_registered_method_is_in_the_table():
    for name in METHODS:
        assert f"`{name}`" in README


def test_the_catalogue_is_that_of_the_registry():
    assert catalogue(CONF) in (REPOSITORY / "docs" / "methods.md").read_text()


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
