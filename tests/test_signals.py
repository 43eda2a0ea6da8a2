"""A signal stops a training after the current step, with its state saved, and the next call continues bit for bit."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from sam_bench import run, train
from sam_bench.signals import REPEAT, SIGNALS, StopSignal
from tests.command import TINY, settings
from tests.test_image_folder import image_folder, names  # noqa: F401
from tests.test_resume import assert_same, state_of


def stop_at(monkeypatch, *position, number=signal.SIGTERM, seed=0):
    """Send this process a real signal during a step."""
    step = run.Run.step

    def step_and_stop(self):
        if (*self.position, self.settings.seed) == (*position, seed):
            os.kill(os.getpid(), number)
        step(self)

    monkeypatch.setattr(run.Run, "step", step_and_stop)


@pytest.mark.parametrize(
    "arguments",
    [
        ["optimizer=sgd", "dataset.padding=2", "dataset.flip=true", "dataset.cutout=3"],
        ["optimizer=grst", "schedule=trigonometric", "trainer.accumulate=2", "trainer.precision=bf16"],
        ["optimizer=ssam_d", "optimizer/base=adamw"],
        ["optimizer=vsam", "optimizer.sam_epochs=1", "optimizer.window=5"],
        ["optimizer=msam"],
        ["optimizer=saf", "optimizer.lag_epochs=1", "optimizer.start_epochs=0"],
        ["model=timm", "model.architecture=test_vit", "+model.kwargs.drop_rate=0.3", "+model.kwargs.patch_size=4"],
    ],
    ids=lambda arguments: arguments[0] + arguments[-1],
)
def test_a_run_stopped_within_an_epoch_continues_bit_for_bit(arguments, tmp_path, monkeypatch, capfd):
    whole, parts = (settings(*TINY, *arguments, f"runs={tmp_path / name}") for name in ("whole", "parts"))
    train.train([whole])
    stop_at(monkeypatch, 1, 3)
    with pytest.raises(SystemExit) as stopped:
        train.train([parts])
    assert stopped.value.code == REPEAT == 75
    assert "stopped by SIGTERM" in capfd.readouterr().err
    saved = state_of(tmp_path / "parts")
    assert (len(saved["rows"]), saved["step_of_epoch"], len(saved["of_ranks"][0]["losses"])) == (1, 4, 4)
    monkeypatch.undo()
    torch.manual_seed(123)  # whatever else the process has drawn
    train.train([parts])
    assert "seed 0 continues after epoch 1 of 3 and step 4 of 10" in capfd.readouterr().out
    assert_same(state_of(tmp_path / "parts"), state_of(tmp_path / "whole"))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_folder_of_images_continues_within_an_epoch(image_folder, workers, tmp_path, monkeypatch):  # noqa: F811
    arguments = names(image_folder, f"dataset.workers={workers}", "trainer.batch_size=8")
    whole, parts = (settings(*arguments, f"runs={tmp_path / name}") for name in ("whole", "parts"))
    train.train([whole])
    stop_at(monkeypatch, 0, 1)
    with pytest.raises(SystemExit):
        train.train([parts])
    assert state_of(tmp_path / "parts")["step_of_epoch"] == 2
    monkeypatch.undo()
    train.train([parts])
    assert_same(state_of(tmp_path / "parts"), state_of(tmp_path / "whole"))


def test_seeds_that_stopped_at_different_steps_catch_up(tmp_path, monkeypatch):
    whole, parts = (settings(*TINY, "trainer.seeds=3", f"runs={tmp_path / name}") for name in ("whole", "parts"))
    train.train(whole.each_seed())
    positions = [(0, 3), (1, 2), (1, 7)]
    for one, position in zip(parts.each_seed(), positions, strict=True):
        stop_at(monkeypatch, *position, seed=one.seed)
        with pytest.raises(SystemExit):
            train.train([one])
        monkeypatch.undo()
    train.train(parts.each_seed())
    for one, other in zip(whole.each_seed(), parts.each_seed(), strict=True):
        expected, given = (torch.load(each.folder / "last.pt", weights_only=True) for each in (one, other))
        assert_same(given["model"], expected["model"])
        assert_same(given["optimizer"], expected["optimizer"])
        assert [row["train_loss"] for row in given["rows"]] == [row["train_loss"] for row in expected["rows"]]


def test_a_checkpoint_within_an_epoch_after_some_minutes(tmp_path, monkeypatch):
    """Without a signal: the run is interrupted, and the last step that was saved is the one to continue from."""
    chosen = settings(*TINY, "trainer.checkpoint_minutes=1e-9", f"runs={tmp_path}")
    step = run.Run.step

    def step_and_stop(self):
        if self.position == (1, 6):
            raise KeyboardInterrupt
        step(self)

    monkeypatch.setattr(run.Run, "step", step_and_stop)
    with pytest.raises(KeyboardInterrupt):
        train.train([chosen])
    saved = state_of(tmp_path)
    assert (len(saved["rows"]), saved["step_of_epoch"]) == (1, 6)


def test_the_time_of_both_parts_of_an_epoch_counts(tmp_path, monkeypatch):
    chosen = settings(*TINY, f"runs={tmp_path}")
    step = run.Run.step

    def slow_step(self):
        time.sleep(0.02)
        step(self)

    monkeypatch.setattr(run.Run, "step", slow_step)
    stop_at(monkeypatch, 0, 7)
    with pytest.raises(SystemExit):
        train.train([chosen])
    (result,) = train.train([chosen])
    assert result["seconds"] >= 3 * 10 * 0.02


def test_a_handler_that_was_there_before_is_called_and_may_let_the_training_continue(tmp_path, monkeypatch):
    """As submitit's, which ignores SIGTERM."""
    called = []
    before = signal.signal(signal.SIGTERM, lambda number, _: called.append(number))
    try:
        stop_at(monkeypatch, 1, 3)
        (result,) = train.train([settings(*TINY, f"runs={tmp_path}")])
        assert called == [signal.SIGTERM]
        assert result["epochs"] == 3
        os.kill(os.getpid(), signal.SIGTERM)
        assert called == [signal.SIGTERM] * 2, "the handler is back after the training"
    finally:
        signal.signal(signal.SIGTERM, before)


def test_an_ignored_signal_stays_ignored(tmp_path, monkeypatch):
    """As SIGHUP's relatives in a background job."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        stop_at(monkeypatch, 1, 3, number=signal.SIGINT)
        (result,) = train.train([settings(*TINY, f"runs={tmp_path}")])
        assert result["epochs"] == 3
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_second_interrupt_does_not_wait():
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_the_command_stops_and_continues(number, tmp_path):
    """In a real process."""
    arguments = ["-m", "sam_bench", *TINY, "trainer.epochs=50", f"runs={tmp_path}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, *arguments], stderr=subprocess.PIPE, text=True, env=environment)
    while not list(tmp_path.glob("*/*/metrics.csv")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else REPEAT), err
    assert "the same command continues from the last" in err
    assert "Traceback" not in err
    saved = state_of(tmp_path)
    assert 0 < len(saved["rows"]) < 50
    assert not list(tmp_path.glob("*/*/error.txt"))
    if number == signal.SIGTERM:
        subprocess.run([sys.executable, *arguments], check=True, env=environment, stdout=subprocess.DEVNULL)
        assert json.loads(next(tmp_path.glob("*/*/result.json")).read_text())["epochs"] == 50
