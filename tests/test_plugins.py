"""A user's own package and folder of configurations, with nothing changed in this repository."""

import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
PAGE = (REPOSITORY / "docs" / "extending.md").read_text()
FILES = dict(re.findall(r"^`([\w./]+)`:\n\n```\w+\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
TINY = ["logger=none", "trainer.epochs=2", "trainer.batch_size=16"]


@pytest.fixture
def project(tmp_path) -> Path:
    """An empty folder with the files of docs/extending.md."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(textwrap.dedent(text))
    return tmp_path


def python(project: Path, *arguments: str, status: int = 0) -> str:
    environment = {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *arguments], cwd=project, capture_output=True, text=True, env=environment)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def sam_bench(project: Path, *arguments: str, status: int = 0) -> str:
    return python(project, "-m", "sam_bench", "--config-dir", "my_conf", *arguments, *TINY, status=status)


def test_the_page_has_all_four():
    names = {
        "my_package.py",
        *(f"my_conf/{group}/mine.yaml" for group in ("optimizer", "model", "dataset", "schedule")),
    }
    assert set(FILES) >= names


def test_all_four_together_resumed_and_reported(project):
    everything = ["optimizer=rst", "optimizer/inner=mine", "schedule=mine", "model=mine", "dataset=mine"]
    out = sam_bench(project, *everything)
    (folder,) = (project / "runs").glob("mine-mine-rst-cosine-*/seed-0")
    result = json.loads((folder / "result.json").read_text())
    assert (result["optimizer"], result["inner"], result["schedule"]) == ("rst", "mine", "cosine")
    assert (result["dataset"], result["model"]) == ("mine", "mine")
    assert 1 < result["propagations_per_step"] < 2
    assert "test accuracy (last epoch)" in out

    # resumed: the last checkpoint alone is left
    last = result["test_loss"]
    (folder / "result.json").unlink()
    again = sam_bench(project, *everything)
    assert "seed 0 continues after epoch 2 of 2" in again
    assert json.loads((folder / "result.json").read_text())["test_loss"] == last
    assert "finished before" in sam_bench(project, *everything)
    report = python(project, "-m", "sam_bench.report", "--table", "runs")
    assert "**mine, 160 training images, mine, " in report
    assert "| rst cosine(k=2) inner=mine |" in report


def test_alone_and_in_a_sweep(project):
    out = sam_bench(project, "-m", "optimizer=mine,sgd", "optimizer.base.lr=0.05,0.1", "dataset=mine")
    assert out.count("test accuracy (last epoch)") == 4
    optimizers = [json.loads(p.read_text())["optimizer"] for p in (project / "runs").glob("*/*/result.json")]
    assert sorted(optimizers) == ["mine", "mine", "sgd", "sgd"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["optimizer=mine", "optimizer.rho=-1"], "error: optimizer.rho=-1: should be a number in [0, ∞)"),
        (
            ["optimizer=mine", "optimizer.sharpness=2"],
            "error: optimizer.sharpness: no such setting; optimizer has base.lr",
        ),
        (["optimizer=mine", "+optimizer.sharpness=2"], "error: optimizer.sharpness: mine has no such setting; it has"),
        (["optimizer=mine", "optimizer.power=big"], "error: optimizer.power=big: should be a valid number"),
        (["dataset=mine", "dataset.classes=1"], "error: dataset=mine: "),
    ],
)
def test_wrong_settings_of_a_plug_in(project, arguments, words):
    assert words in sam_bench(project, *arguments, status=2)
    assert not (project / "runs").exists()


def test_a_file_that_inherits_serves_both(project):
    """And a number is read alike in both places."""
    text = "defaults:\n  - mine\n  - _self_\nrho: 1e-1\n"
    (project / "my_conf" / "optimizer" / "small.yaml").write_text(text)
    for how in (["optimizer=small"], ["optimizer=rst", "optimizer/inner=small"]):
        out = sam_bench(project, *how, "dataset=mine")
        assert "test accuracy (last epoch)" in out
    rows = [json.loads(path.read_text())["config"]["optimizer"] for path in (project / "runs").glob("*/*/result.json")]
    assert {(row["inner"] or row)["rho"] for row in rows} == {0.1}
    assert {(row["inner"] or row)["power"] for row in rows} == {0.5}


def test_a_module_that_cannot_be_imported_is_named(project):
    (project / "my_package.py").write_text("import no_such_package\n")
    out = sam_bench(project, "optimizer=mine", status=2)
    assert (
        "error: optimizer._target_=my_package.PowerSAM: cannot be imported (No module named 'no_such_package')" in out
    )


def test_the_contract_of_a_plug_in(project):
    out = python(project, "-m", "sam_bench.testing", "my_package.PowerSAM")
    assert re.search(r"^\d+ passed, 0 failed", out, re.MULTILINE), out
