"""A killed run goes on to the bits of an undisturbed one."""

import json
import random
import time

import pytest
import torch

from sam_bench import run, train
from tests.command import TINY, settings
from tests.processes import in_a_process
from tests.processes import train as train_in_a_process
from tests.test_errors import change_checkpoint

UNTIMED = ("seconds", "test_seconds", "images_per_second", "peak_memory_bytes")


def state_of(runs) -> dict:
    """The last checkpoint without what a clock or the machine decides."""
    (path,) = runs.glob("*/*/last.pt")
    state = torch.load(path, weights_only=True)
    state["rows"] = [{key: value for key, value in row.items() if key not in UNTIMED} for row in state["rows"]]
    return state


def assert_same(one, other) -> None:
    """Equal, tensors bit for bit."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


def first_checkpoint(runs, process) -> float:
    """Wait for it; return when it was there."""
    while not list(runs.glob("*/*/last.pt")) and process.is_alive():
        time.sleep(0.001)
    return time.perf_counter()


def test_ten_kills_at_random_moments(tmp_path):
    arguments = [*TINY, "trainer.epochs=9", "trainer.checkpoint_minutes=0"]
    in_a_process(len, arguments).join()  # the first one waits for the imports
    whole = tmp_path / "undisturbed"
    started = time.perf_counter()
    process = in_a_process(train_in_a_process, [*arguments, f"runs={whole}"])
    checkpointed = first_checkpoint(whole, process)
    process.join()
    ended = time.perf_counter()
    assert process.exitcode == 0
    undisturbed = state_of(whole)
    result = json.loads(next(whole.glob("*/*/result.json")).read_text())

    moments, killed_in_training = random.Random(), 0
    for attempt in range(10):
        runs = tmp_path / f"killed-{attempt // 5}"  # each is killed five times
        process = in_a_process(train_in_a_process, [*arguments, f"runs={runs}"])
        if attempt % 2:  # half of the moments fall anywhere, half after the first checkpoint
            first_checkpoint(runs, process)
            time.sleep(moments.uniform(0, ended - checkpointed) / 2)
        else:
            time.sleep(moments.uniform(0, ended - started))
        process.kill()
        process.join()
        assert process.exitcode in (-9, 0)  # 0: it was done before
        killed_in_training += process.exitcode == -9 and bool(list(runs.glob("*/*/last.pt")))
        if attempt % 5 < 4:
            continue
        process = in_a_process(train_in_a_process, [*arguments, f"runs={runs}"])
        process.join()
        assert process.exitcode == 0
        assert_same(state_of(runs), undisturbed)
        again = json.loads(next(runs.glob("*/*/result.json")).read_text())
        assert {k: v for k, v in again.items() if k not in UNTIMED} == {
            k: v for k, v in result.items() if k not in UNTIMED
        }
        assert not list(runs.glob("*/*/*.partial"))
    assert killed_in_training >= 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["optimizer=sgd"],
        ["optimizer=sam", "optimizer/base=adamw"],
        ["optimizer=grst", "schedule=trigonometric"],
        ["optimizer=timm", "optimizer.base.opt=lamb"],
        ["trainer.precision=bf16", "trainer.accumulate=2", "trainer.clip=1", "trainer.decay_in_loss=true"],
        ["trainer.decay_norm_and_bias=false", "trainer.channels_last=false", "trainer.label_smoothing=0.1"],
        ["model=timm", "model.architecture=test_vit", "+model.kwargs.drop_rate=0.3", "+model.kwargs.patch_size=4"],
        ["dataset.cutout=3", "dataset.flip=true"],
    ],
    ids=" ".join,
)
def test_going_on_after_an_interruption(arguments, tmp_path, monkeypatch):
    whole, halves = (settings(*TINY, *arguments, f"runs={tmp_path / name}") for name in ("whole", "halves"))
    train.train([whole])

    end = run.Run.end

    def end_and_stop(self, *args):
        row = end(self, *args)
        if self.epoch == 2:
            raise KeyboardInterrupt
        return row

    monkeypatch.setattr(run.Run, "end", end_and_stop)
    with pytest.raises(KeyboardInterrupt):
        train.train([halves])
    monkeypatch.undo()
    torch.manual_seed(123)  # whatever else the process has drawn
    train.train([halves])
    assert_same(state_of(tmp_path / "halves"), state_of(tmp_path / "whole"))


@pytest.mark.parametrize("condition", ["threads", "torch", "device"])
@pytest.mark.parametrize("epochs", [2, 3])
def test_a_resume_on_another_machine_is_said_and_recorded(command, monkeypatch, condition, epochs):
    """Unless no epoch is left, which could differ."""
    end = run.Run.end

    def end_and_stop(self, *args):
        row = end(self, *args)
        if self.epoch == epochs:
            raise KeyboardInterrupt
        return row

    monkeypatch.setattr(run.Run, "end", end_and_stop)
    assert command(*TINY)[0] == 130
    monkeypatch.undo()
    (path,) = command.runs.glob("*/*/last.pt")
    now = torch.load(path, weights_only=True)["conditions"][condition]
    change_checkpoint(path, lambda state: state["conditions"].update({condition: "another"}))
    status, out, err = command("logger=none", *TINY, f"runs={command.runs}")
    assert status == 0, err
    line = f"{condition} another, now {now}"
    notice = (
        f"continues after epoch {epochs} of 3; changed since: {line}, so bits may differ from an uninterrupted run\n"
    )
    result = json.loads(path.with_name("result.json").read_text())
    assert (notice in out) == (epochs == 2)
    assert result["machine_changes"] == ([f"after epoch 2: {line}"] if epochs == 2 else [])
    assert result["threads"] == torch.get_num_threads()


def test_a_change_of_the_machine_is_still_recorded_after_the_next_resume(command, tmp_path, monkeypatch):
    """In processes with one thread and with two."""
    stopped = {"epochs": 0}
    end = run.Run.end

    def end_and_stop(self, *args):
        row = end(self, *args)
        stopped["epochs"] += 1
        if stopped["epochs"] < 3:
            raise KeyboardInterrupt
        return row

    monkeypatch.setattr(run.Run, "end", end_and_stop)
    threads = torch.get_num_threads()
    try:
        for number in (1, 2, 2):
            torch.set_num_threads(number)
            command(*TINY)
    finally:
        torch.set_num_threads(threads)
    result = json.loads((command.folders()[0] / "result.json").read_text())
    assert result["machine_changes"] == ["after epoch 1: threads 1, now 2"]
    assert result["threads"] == 2
