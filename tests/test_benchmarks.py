"""The bench measures what it says."""

import re
import sys
import time
from pathlib import Path

import pytest
import timm
import torch

from benchmarks import devices, measure, plot, startup, step
from benchmarks.contenders import Ours
from sam_bench.build import create_model
from tests.command import settings

REPOSITORY = Path(__file__).parent.parent


class Sleeper:
    def __init__(self, seconds, propagations):
        self.seconds, self.propagations, self.steps, self.untimed = seconds, propagations, 0, 1

    def go(self, steps):
        time.sleep(steps * self.seconds)
        self.steps += steps
        return self.propagations * steps


def test_times_are_those_of_a_step_and_ratios_those_of_a_round():
    contenders = {"one": Sleeper(0.02, 1.0), "two": Sleeper(0.04, 2.0)}
    times = measure.side_by_side(contenders, rounds=3, steps=2, warm_up=1)
    assert [contender.steps for contender in contenders.values()] == [10, 10]
    (one, _), (two, propagations) = times["one"], times["two"]
    assert len(one) == 3
    assert all(0.02 <= seconds < 0.2 for seconds in one)  # a sleep may last longer than it was told to
    assert all(0.04 <= seconds < 0.4 for seconds in two)
    assert propagations == [2.0] * 3
    assert measure.ratio([3.0, 9.0, 8.0], [1.0, 3.0, 2.0]) == 3
    assert measure.ratio_to_count([3.0, 9.0, 8.0], [1.5, 1.0, 2.0], [1.0, 3.0, 2.0]) == 2


def test_our_contender_is_the_run_that_trains(device):
    ours = Ours("optimizer=rst", "schedule.p=1", "dataset.subset=640", f"trainer.device={device.type}")
    assert ours.run.steps_per_epoch == 5
    assert ours.go(7) == 14  # over the end of an epoch
    assert ours.extra_copies() == 1
    assert ours.run.optimizer.t == 7


def test_the_table_of_steps(tmp_path, monkeypatch, capsys, device):
    out = tmp_path / "step-small_resnet.csv"
    options = ["--optimizers", "sam", "--rounds", "2", "--steps", "1", "--workers", "0", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["step", *options, "trainer.batch_size=16", f"trainer.device={device.type}"])
    step.main()
    rows = {row["optimizer"]: row for row in plot.read(out)}
    assert list(rows) == ["sgd", "sam", "sam of pytorch_optimizer", "plain loop, 0 workers"]
    assert [float(row["count"]) for row in rows.values()] == [1, 2, 2, 1]
    assert float(rows["sgd"]["ratio_to_sgd"]) == 1
    assert float(rows["sam"]["ratio_to_sgd"]) > 1
    assert (int(rows["sgd"]["operations"]), int(rows["sam"]["operations"])) == (3, 13)
    assert float(rows["sam"]["extra_copies"]) == 1
    assert float(rows["sgd"]["share_of_matrix_peak"]) > 0  # under load it may exceed 1
    assert "plain loop, 0 workers" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["plot", str(tmp_path)])
    plot.main()
    assert (tmp_path / "step.png").stat().st_size > 10_000


def test_start_up_counts_from_the_first_step():
    tiny = ["logger=none", "dataset.subset=320", "trainer.epochs=1", "trainer.batch_size=32"]
    total, first, own, over = startup.training([*startup.SAM_BENCH, *tiny])
    assert 0 < own < total - first < total
    assert over == pytest.approx((total - first) / own)
    assert startup.row("x", 1.234) == {
        "what": "x",
        "seconds": 1.23,
        "to_first_step": "",
        "training": "",
        "after_first_step_over_training": "",
    }


def test_the_page_of_several_devices_has_what_the_estimate_prints(capsys, monkeypatch):
    page = (REPOSITORY / "docs" / "several_devices.md").read_text()
    steps = REPOSITORY / "benchmarks" / "results" / "cpu" / "step-small_resnet.csv"
    monkeypatch.setattr(sys, "argv", ["devices", str(steps), "--parameters", "77850"])
    devices.main()
    assert capsys.readouterr().out in page
    model = settings().model
    assert sum(p.numel() for p in create_model(model, 10, 3, 32).parameters()) == 77850
    rows = re.findall(r"^\| (\w+) \| [\d.]+ M \| (\d+) MB \| (\d+) MB \| (\d+) MB \| (\d+) MB \|$", page, re.MULTILINE)
    assert len(rows) == 4
    for name, *megabytes in rows:
        with torch.device("meta"):
            parameters = sum(p.numel() for p in timm.create_model(name).parameters())
        once = devices.bytes_per_reduction(parameters, 8) / 1e6
        of_pass = 3 * 4 * parameters * 7 / 8 / 1e6  # two gathers of the weights, one scatter of the gradient
        assert [int(each) for each in megabytes] == [round(each) for each in (once, once, 2 * once, 2 * of_pass)]


def test_a_ring_reduction_takes_as_long_as_its_bytes_and_messages():
    seconds = devices.reduction_seconds(10**9, devices=5, bandwidth=1e9, latency=0.25)
    assert seconds == pytest.approx(4 * 2 * 4 / 5 + 8 * 0.25)
