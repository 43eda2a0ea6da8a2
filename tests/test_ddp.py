"""A run on several ranks, with torchrun and gloo."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sam_bench import results
from sam_bench.build import create_dataset
from sam_bench.run import part_of
from tests.command import TINY, settings
from tests.conftest import DEVICE
from tests.processes import on_ranks, wait_for
from tests.processes import train as train_here
from tests.test_image_folder import image_folder, names  # noqa: F401
from tests.test_resume import assert_same, state_of

REPOSITORY = Path(__file__).parent.parent


def start(ranks: int, *arguments: str) -> subprocess.Popen[str]:
    """The command in several processes."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*torchrun, "-m", "sam_bench", *arguments],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True},
        env=environment,
        cwd=REPOSITORY,
    )


def run(ranks: int, folder: Path, *arguments: str) -> str:
    """Train to the end with run folders in `folder`; return standard output."""
    status, out, err = on_ranks(ranks, folder.parent / "printed", *arguments, f"runs={folder}")
    assert status == 0, err
    return out


def kill_a_rank(process: subprocess.Popen[str], number: int) -> None:
    """Send a signal to one of the processes that torchrun started, at random."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(random.choice(children)), number)


def errors(err: str) -> list[str]:
    return [line for line in err.splitlines() if line.startswith("error: ")]


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("dataset", ["digits", "imagefolder"])
def test_ranks_share_the_batches_and_the_test_images_of_one_process(dataset, ranks, image_folder):  # noqa: F811
    digits = ["dataset.padding=2", "dataset.flip=true", "dataset.cutout=3", "dataset.validation=0.1"]
    folder = names(image_folder, "dataset.workers=0", "dataset.validation=0.5")
    chosen = settings(*(digits if dataset == "digits" else folder)).dataset
    whole, *parts = (
        create_dataset(chosen, 8, torch.device("cpu"), 0, rank, of)
        for rank, of in [(0, 1), *((rank, ranks) for rank in range(ranks))]
    )
    for each in (whole, *parts):
        each.start(1, 1)
    for _ in range(whole.steps_per_epoch - 1):
        for each in (whole, *parts):
            each.fetch()
        of_ranks = [each.batch() for each in parts]
        for i, expected in enumerate(whole.batch()):
            if expected is not None:
                assert torch.equal(torch.cat([batch[i] for batch in of_ranks]), expected)
    for tested in ("test", "validation"):
        expected = torch.cat([images for images, _ in getattr(whole, tested)()])
        given = torch.cat([images for each in parts for images, _ in getattr(each, tested)()])
        assert len(given) == len(expected) > 0
        assert torch.equal(given.flatten(1).sum(1).sort().values, expected.flatten(1).sum(1).sort().values)


def test_a_common_perturbation_gives_the_run_of_one_process(tmp_path, one_thread):
    """A net without BatchNorm, whose gradients of the parts of a batch add up to that of the whole."""
    net = ["model=timm", "model.architecture=test_vit", "+model.kwargs.patch_size=4"]
    arguments = [*TINY, "trainer.epochs=1", *net, "optimizer=rst", "schedule=constant", "trainer.accumulate=2"]
    arguments.append("trainer.sync_perturbation=true")
    train_here([*arguments, f"runs={tmp_path / 'one'}"])
    run(2, tmp_path / "common", *arguments)
    one, common = (state_of(tmp_path / name) for name in ("one", "common"))
    for key, expected in one["model"].items():
        torch.testing.assert_close(common["model"][key], expected, atol=1e-5, rtol=1e-4)
    for ours, theirs in zip(common["rows"], one["rows"], strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-4)
        assert all(ours[key] == theirs[key] for key in ("train_accuracy", "test_accuracy"))


def test_one_rank_trains_to_the_bits_of_the_plain_command(tmp_path, one_thread):
    """With torchrun; also with nccl: `make test DEVICE=cuda`."""
    arguments = [*TINY, "optimizer=grst", "schedule=constant", f"trainer.device={DEVICE}", "trainer.cuda_graphs=false"]
    process = start(1, *arguments, f"runs={tmp_path / 'torchrun'}")
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    train_here([*arguments, f"runs={tmp_path / 'plain'}"])
    assert_same(state_of(tmp_path / "torchrun"), state_of(tmp_path / "plain"))


@pytest.mark.parametrize("optimizer", ["asyncsam", "sampa"])
def test_two_processes_that_share_the_passes_of_a_step_train_to_the_bits_of_one(optimizer, tmp_path, one_thread):
    arguments = [*TINY, f"optimizer={optimizer}", "dataset.cutout=3"]
    run(2, tmp_path / "two", *arguments, "trainer.side_by_side=true")
    train_here([*arguments, f"runs={tmp_path / 'one'}"])
    two, one = (state_of(tmp_path / name) for name in ("two", "one"))
    for part in ("model", "optimizer"):
        assert_same(two[part], one[part])
    columns = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "propagations", "sharpness_aware_steps")
    assert [[row[key] for key in columns] for row in two["rows"]] == [
        [row[key] for key in columns] for row in one["rows"]
    ]
    (result,) = tmp_path.glob("two/*/*/result.json")
    assert json.loads(result.read_text())["ranks"] == 2


def test_a_rank_is_killed_or_all_are_stopped(tmp_path, one_thread):
    """With torchrun. The others end with one line, and the same command continues to the bits of an undisturbed run."""
    arguments = [*TINY, "trainer.epochs=20", "optimizer=grst", "schedule=constant", "trainer.checkpoint_minutes=0"]
    run(2, tmp_path / "undisturbed", *arguments)
    runs, one = tmp_path / "runs", tmp_path / "one"
    folder = settings(*arguments, f"runs={runs}").folder
    for number in (signal.SIGTERM, signal.SIGKILL):
        before = results.finished_epochs(folder)
        process = start(2, *arguments, f"runs={runs}")
        wait_for(lambda: results.finished_epochs(folder) > before, lambda: process.poll() is None)  # noqa: B023
        time.sleep(random.uniform(0, 0.5))
        if number == signal.SIGKILL:
            kill_a_rank(process, number)
        else:
            process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert process.returncode != 0
        if number == signal.SIGKILL:
            ended = "another process of this run has ended; the same command continues from the last checkpoint"
            assert errors(err) == [f"error: {ended}"]
        else:
            assert err.count("stopped by SIGTERM; the same command continues from the last step") == 1
            shutil.copytree(runs, one)
        assert before < len(state_of(runs)["rows"]) < 20
    assert "continues after epoch" in run(2, runs, *arguments)
    assert_same(state_of(runs), state_of(tmp_path / "undisturbed"))
    train_here([*arguments, f"runs={one}"])
    result = json.loads(next(one.glob("*/*/result.json")).read_text())
    assert re.fullmatch(r"after epoch \d+(, step \d+)?: ranks 2, now 1", result["machine_changes"][0])
    assert result["ranks"] == 1


def test_a_checkpoint_of_one_process_keeps_its_counts_on_a_pair():
    """Of a pair, the first rank alone counts correct predictions."""
    of_one = {"losses": torch.ones(3), "correct": torch.tensor(12.0), "batch_norm": [], "unreadable_images": 2}
    pair = [SimpleNamespace(n=2, rank=rank, parts=1, is_first=rank == 0) for rank in range(2)]
    found = [part_of([of_one], each) for each in pair]
    assert [each["correct"].item() for each in found] == [12, 12]
    assert [each["unreadable_images"] for each in found] == [2, 0]
    halves = [part_of([of_one], SimpleNamespace(n=2, rank=rank, parts=2, is_first=rank == 0)) for rank in range(2)]
    assert [each["correct"].item() for each in halves] == [6, 6]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["trainer.batch_size=33"], "trainer.batch_size=33: should be divisible by 2 ranks"),
        (["trainer.seeds=2"], "trainer.seeds=2: 2 ranks train one seed at a time; choose 1"),
        (["optimizer=sum"], "optimizer=sum: no such choice, did you mean sam?"),
        (
            ["optimizer=ksam", "trainer.sync_perturbation=true"],
            "trainer.sync_perturbation=true: should be false, since each rank selects samples from its own part of the "
            "batch",
        ),
        (
            ["trainer.side_by_side=true", "optimizer=sam"],
            "trainer.side_by_side=true: the passes of sam depend on each other",
        ),
        (
            ["-m", "hydra/launcher=joblib", "seed=0,1"],
            "hydra/launcher=joblib: starts processes of its own; leave it out",
        ),
    ],
)
def test_what_is_refused_is_one_line_and_writes_nothing(arguments, error, tmp_path):
    status, _, err = on_ranks(2, tmp_path / "printed", *TINY, *arguments, f"runs={tmp_path / 'runs'}")
    assert status != 0
    (line,) = errors(err)
    assert line.startswith(f"error: {error}")
    assert not list(tmp_path.glob("runs/*/*/*"))
