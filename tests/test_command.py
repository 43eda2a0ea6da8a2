import csv
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from sam_bench import results
from tests.command import TINY, settings

REPOSITORY = Path(__file__).parent.parent
FIELDS = {
    *("optimizer", "schedule", "dataset", "model", "seed", "epochs", "steps", "parameters"),
    *("test_accuracy", "test_loss", "train_loss", "propagations_per_step", "expected_propagations_per_step"),
    *("sharpness_aware_steps", "seconds", "images_per_second", "peak_memory_bytes"),
    *("device", "precision", "versions", "git_commit", "config_hash"),
}
# the command, which must answer at once: without the seconds that torch takes to import
WITHOUT_TORCH = """
import sys
from sam_bench.command import main
try:
    main()
finally:
    assert "torch" not in sys.modules
"""


def test_the_main_job_as_a_new_user_runs_it(tmp_path):
    """The design's command, from another folder, with nothing but its defaults."""

    def run(*python):
        command = [sys.executable, *python, "optimizer=rst", "schedule=linear"]
        # threads of several processes that wait for each other on two cores take minutes
        environment = {"PYTHONPATH": str(REPOSITORY), "PATH": "", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, env=environment).stdout

    out = run("-m", "sam_bench")
    (folder,) = (tmp_path / "runs").glob("digits-small_resnet-rst-linear-*/seed-0")
    assert f"run folder: {folder.relative_to(tmp_path)}" in out
    result = json.loads((folder / "result.json").read_text())
    assert set(result) >= FIELDS
    assert result["test_accuracy"] >= 0.97
    assert result["seconds"] <= 60
    steps = result["steps"]
    deviation = math.sqrt(sum(t / steps * (1 - t / steps) for t in range(steps))) / steps
    assert abs(result["propagations_per_step"] - result["expected_propagations_per_step"]) < 4 * deviation
    assert result["expected_propagations_per_step"] == pytest.approx(1.5, abs=1 / steps)
    assert result["propagations_per_step"] == 1 + result["sharpness_aware_steps"] / steps
    assert f"{result['expected_propagations_per_step']:.4f} expected propagations per step" in out
    assert " s of training and " in out

    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    assert len(rows) == result["epochs"] == 20
    assert float(rows[-1]["test_accuracy"]) == result["test_accuracy"]
    assert float(rows[-1]["seconds"]) == result["seconds"]
    assert yaml.safe_load((folder / "config.yaml").read_text())["optimizer"]["inner"]["rho"] == 0.05
    assert torch.load(folder / "last.pt", weights_only=True)["config_hash"] == result["config_hash"]

    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    again = run("-c", WITHOUT_TORCH)
    assert "finished before" in again
    assert again.splitlines()[-7:] == out.splitlines()[-7:]
    assert before == {path: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_a_run_that_other_code_finished_is_said_to_be_one(command, monkeypatch):
    monkeypatch.setattr(results, "git_commit", lambda: "abc")
    command(*TINY, "trainer.epochs=1")
    assert "finished before:\n" in command(*TINY, "trainer.epochs=1")[1]
    monkeypatch.setattr(results, "git_commit", lambda: "def")
    assert (
        "finished before at commit abc, now def; to train it again, set another runs="
        in command(*TINY, "trainer.epochs=1")[1]
    )


@pytest.mark.parametrize("optimizer", ["sam", "late_sam", "rst"])
@pytest.mark.parametrize("schedule", ["schedule=constant", "schedule.start=0.5", "+schedule.p=1", "~schedule"])
def test_a_schedule_that_is_not_taken_is_refused(command, optimizer, schedule):
    status, _, err = command(*TINY, "trainer.epochs=1", f"optimizer={optimizer}", schedule)
    refused = (
        f"error: {schedule}: has no effect, optimizer={optimizer} does not take it; choose rst, grst or rst_s2sam\n"
    )
    if optimizer == "rst":
        assert status == (2 if schedule in ("+schedule.p=1", "~schedule") else 0)
        assert "has no effect" not in err
    else:
        assert (status, err) == (2, refused)


def test_a_plain_optimizer_is_named_after_what_trains():
    assert settings("optimizer=adamw", "optimizer/base=sgd").optimizer.name == "sgd"
    assert settings("optimizer=sgd", "optimizer/base=adamw").optimizer.name == "adamw"
    assert settings("optimizer=sgd").optimizer.name == "sgd"
    assert settings("optimizer=timm", "optimizer.base.opt=lamb").optimizer.name == "lamb"
    assert settings("optimizer=sam", "optimizer/base=adamw").optimizer.name == "sam"


def test_a_sweep_trains_each_run_once(command):
    """SGD has no schedule: with two of them in the sweep it is still one run."""
    status, out, err = command("-m", *TINY, "trainer.epochs=1", "optimizer=sgd,rst", "schedule=constant,linear")
    assert status == 0, err
    names = [folder.parent.name.rsplit("-", 1)[0] for folder in command.folders()]
    assert names == ["digits-small_resnet-rst-constant", "digits-small_resnet-rst-linear", "digits-small_resnet-sgd"]
    assert "1 of 4 runs have the settings of another one\n" in out


def test_a_failed_run_of_a_sweep_does_not_stop_the_others(command):
    status, _, err = command("-m", *TINY, "trainer.epochs=1", "optimizer=sam", "optimizer.rho=-1,0.1,0.2")
    assert status == 2
    assert err.count("error: optimizer.rho=-1") == 1
    assert "error: 1 of 3 runs failed; the others are done:\n  optimizer.rho=-1: optimizer.rho=-1: should be" in err
    assert len(command.folders()) == 2


def test_runs_of_a_sweep_do_not_disturb_each_other(command):
    """Nothing is left over from a run in the next one of the same process."""
    command("-m", *TINY, "optimizer=sam,rst", "seed=0,1")
    command.runs = command.runs / "alone"
    command(*TINY, "optimizer=rst", "seed=1")
    (alone,) = command.folders()
    swept = command.runs.parent / alone.relative_to(command.runs)
    one, other = (torch.load(folder / "last.pt", weights_only=True)["model"] for folder in (alone, swept))
    assert all(torch.equal(one[key], other[key]) for key in one)


SAME = [
    ([], ["logger.mode=online"]),
    ([], ["logger=none"]),
    (["trainer.device=cuda:0"], ["trainer.device=cuda:1"]),
    (["dataset=cifar10"], ["dataset=cifar10", "dataset.root=/elsewhere"]),
    (["optimizer=sgd"], ["optimizer=sgd", "schedule=trigonometric"]),
    (["optimizer.inner.rho=1"], ["optimizer.inner.rho=1.0"]),
    (["schedule.start=0"], ["schedule.start=0.0"]),
    ([], ["trainer.checkpoint_minutes=5"]),
]
OTHER = [
    ([], ["schedule=trigonometric"]),
    ([], ["schedule.start=0.1"]),
    ([], ["optimizer.inner.rho=0.1"]),
    ([], ["optimizer=grst"]),
    ([], ["trainer.epochs=21"]),
    ([], ["dataset.subset=100"]),
    ([], ["trainer.precision=bf16"]),
    (["dataset=cifar10", "optimizer=sam"], ["dataset=cifar100", "optimizer=sam"]),
    ([], ["dataset.validation=0.1"]),
    ([], ["trainer.batch_norm_epochs=1"]),
    (["optimizer=grst", "optimizer.gamma=null", "optimizer.weight=1"], ["optimizer=grst", "optimizer.gamma=1"]),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_what_a_run_does_not_use_is_not_part_of_it(one, other):
    assert settings(*one).folder == settings(*other).folder


@pytest.mark.parametrize(("one", "other"), OTHER)
def test_what_a_run_uses_is_part_of_it(one, other):
    assert settings(*one).folder != settings(*other).folder


def test_seeds_of_a_setting_lie_side_by_side():
    zero, one = settings("seed=0").folder, settings("seed=1").folder
    assert (zero.parent, zero.name, one.name) == (one.parent, "seed-0", "seed-1")


def test_help_names_the_groups_without_importing_torch():
    command = [sys.executable, "-c", WITHOUT_TORCH, "--help"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    for group in (
        "dataset",
        "model",
        "optimizer",
        "optimizer/base",
        "optimizer/inner",
        "schedule",
        "trainer",
        "logger",
    ):
        assert f"{group}: " in done.stdout


def test_an_installed_wheel_works_from_an_empty_folder(tmp_path):
    """conf/ travels in it, measured results do not. Only sam_bench is installed; the environment has the rest."""
    source = tmp_path / "source"  # a build leaves folders behind
    for name in ("conf", "experiments", "hydra_plugins", "sam_bench"):
        shutil.copytree(REPOSITORY / name, source / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    build = [sys.executable, "-m", "uv", "build", "--wheel", "--no-build-isolation", "--quiet", "--out-dir", tmp_path]
    subprocess.run([*build, source], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    install = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel]
    subprocess.run(install, check=True)
    names = {str(path.relative_to(site / "sam_bench")) for path in (site / "sam_bench").rglob("*.yaml")}
    assert {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "conf").rglob("*.yaml")} <= names
    data = {path.name for path in (site / "sam_bench" / "experiments").rglob("*") if path.is_file()}
    assert "published.csv" in data
    assert not data & {"result.json", "metrics.csv", "index.html"}
    assert (site / "sam_bench" / "py.typed").exists()
    assert list(site.glob("*.dist-info/licenses/LICENSE"))
    command = [sys.executable, site / "bin" / "sam-bench", *TINY, "trainer.epochs=1"]
    done = subprocess.run(
        command, cwd=empty, env={"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (result,) = empty.glob("runs/*/seed-0/result.json")
    assert json.loads(result.read_text())["git_commit"] is None
