"""Checkpoints are written beside the training, rarely, and the last one is never lost."""

import threading
import time

import pytest
import torch

from sam_bench import checkpoint, run
from sam_bench.checkpoint import Checkpoints
from sam_bench.errors import SettingError
from sam_bench.train import train
from tests.command import TINY, settings


class Writes:
    """What was written, and when it may be."""

    def __init__(self):
        self.epochs, self.threads, self.gate = [], [], threading.Event()
        self.gate.set()

    def __call__(self, state):
        assert self.gate.wait(10)
        self.threads.append(threading.current_thread())
        self.epochs.append(int(state["epoch"]))


def state(epoch):
    return {"epoch": torch.tensor(epoch), "rows": [{"epoch": epoch}]}


def test_every_epoch_for_zero_minutes_in_a_thread_of_its_own():
    writes = Writes()
    checkpoints = Checkpoints(writes, 0)
    for epoch in (1, 2, 3):
        checkpoints.offer(state(epoch))
    checkpoints.close()
    assert writes.epochs == [1, 2, 3]
    assert threading.main_thread() not in writes.threads


def test_rarely_but_always_the_last_one():
    writes = Writes()
    checkpoints = Checkpoints(writes, 60)
    for epoch in (1, 2, 3):
        checkpoints.offer(state(epoch))
    assert writes.epochs == []
    checkpoints.close()
    checkpoints.close()
    assert writes.epochs == [3]


def test_a_slow_write_does_not_hold_up_the_epoch_and_keeps_its_own_numbers():
    writes = Writes()
    writes.gate.clear()
    checkpoints = Checkpoints(writes, 0)
    mine = state(1)
    start = time.perf_counter()
    checkpoints.offer(mine)
    assert time.perf_counter() - start < 5
    mine["epoch"].fill_(7)  # training goes on
    writes.gate.set()
    checkpoints.close()
    assert writes.epochs == [1]


def test_a_failed_write_is_raised_at_the_next_epoch_and_at_the_end():
    def fail(_):
        raise SettingError("cannot be written")

    checkpoints = Checkpoints(fail, 0)
    checkpoints.offer(state(1))
    while not checkpoints.writing.done():
        time.sleep(0.01)
    with pytest.raises(SettingError, match="cannot be written"):
        checkpoints.offer(state(2))
    with pytest.raises(SettingError, match="cannot be written"):
        checkpoints.close()
    written = Writes()
    checkpoints.write = written  # there is space again
    checkpoints.close()
    assert written.epochs == [2]


@pytest.mark.parametrize("minutes", [0, 60])
def test_an_error_or_interrupt_leaves_the_last_finished_epoch(minutes, tmp_path, monkeypatch):
    chosen = settings(*TINY, f"trainer.checkpoint_minutes={minutes}", f"runs={tmp_path}")
    step = run.Run.step

    def step_and_stop(self):
        if self.position == (2, 4):
            raise KeyboardInterrupt
        step(self)

    monkeypatch.setattr(run.Run, "step", step_and_stop)
    with pytest.raises(KeyboardInterrupt):
        train([chosen])
    assert len(torch.load(chosen.folder / "last.pt", weights_only=True)["rows"]) == 2


def test_a_result_comes_after_the_last_checkpoint(tmp_path, monkeypatch):
    order = []
    save, write_result = checkpoint.save, run.results.write_result

    def slow_save(*args):
        time.sleep(0.2)
        save(*args)
        order.append(len(args[3]["rows"]))

    monkeypatch.setattr(checkpoint, "save", slow_save)
    monkeypatch.setattr(run.results, "write_result", lambda *args: (order.append("result"), write_result(*args)))
    train([settings(*TINY, "trainer.checkpoint_minutes=60", f"runs={tmp_path}")])
    assert order == [3, "result"]
