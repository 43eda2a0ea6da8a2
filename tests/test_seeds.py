"""Several seeds side by side in one process give what each gives alone."""

import json

import pytest
import torch

from sam_bench import run
from sam_bench.errors import SettingError
from sam_bench.train import train
from tests.command import TINY, settings
from tests.test_resume import UNTIMED, assert_same

DROPOUT = ["model=timm", "model.architecture=test_vit", "+model.kwargs.drop_rate=0.3", "+model.kwargs.patch_size=4"]


def left_by(folder) -> list[dict]:
    """Checkpoint and result, without what a clock or the machine decides."""
    state = torch.load(folder / "last.pt", weights_only=True)
    state["rows"] = [{k: v for k, v in row.items() if k not in UNTIMED} for row in state["rows"]]
    result = json.loads((folder / "result.json").read_text())
    return [state, {k: v for k, v in result.items() if k not in UNTIMED}]


@pytest.mark.parametrize("arguments", [["optimizer=rst"], ["optimizer=sam", *DROPOUT]], ids=["rst", "sam, dropout"])
def test_each_seed_gives_what_it_gives_alone(arguments, command):
    status, out, err = command(*TINY, *arguments, "trainer.seeds=3", "seed=5")
    assert status == 0, err
    assert out.count("run folder: ") == 3
    folders = command.folders()
    assert [folder.name for folder in folders] == ["seed-5", "seed-6", "seed-7"]
    assert len({folder.parent for folder in folders}) == 1
    together = [left_by(folder) for folder in folders]
    assert together[0][1]["seeds_at_once"] == 3

    command.runs = command.runs / "alone"
    for seed, expected in zip((5, 6, 7), together, strict=True):
        assert command(*TINY, *arguments, f"seed={seed}")[0] == 0
        folder = command.folders()[-1]
        assert folder.name == f"seed-{seed}"
        state, result = left_by(folder)
        for row in (*state["rows"], *expected[0]["rows"], result, expected[1]):
            del row["seeds_at_once"]
        assert_same(state, expected[0])
        assert result == expected[1]


def test_what_is_finished_or_half_done_is_taken_up(tmp_path, monkeypatch):
    """A kill between the checkpoints of two seeds leaves them an epoch apart."""
    whole, parts = (settings(*TINY, "trainer.seeds=3", f"runs={tmp_path / name}") for name in ("whole", "parts"))
    train(whole.each_seed())
    train(parts.each_seed()[:1])
    done = left_by(parts.each_seed()[0].folder)

    end = run.Run.end

    def end_and_stop(self, *args):
        row = end(self, *args)
        if self.settings.seed == 1 and self.epoch == 2:
            raise KeyboardInterrupt
        return row

    monkeypatch.setattr(run.Run, "end", end_and_stop)
    with pytest.raises(KeyboardInterrupt):
        train(parts.each_seed()[1:])
    monkeypatch.undo()
    assert [len(torch.load(s.folder / "last.pt")["rows"]) for s in parts.each_seed()] == [3, 2, 1]
    train(parts.each_seed()[1:])
    assert_same(left_by(parts.each_seed()[0].folder), done)
    for one, other in zip(whole.each_seed(), parts.each_seed(), strict=True):
        expected, given = left_by(one.folder), left_by(other.folder)
        for row in (*expected[0]["rows"], *given[0]["rows"], expected[1], given[1]):
            del row["seeds_at_once"]
        assert_same(given, expected)


def test_a_seed_that_diverges_does_not_stop_the_others(tmp_path, monkeypatch):
    chosen = settings(*TINY, "trainer.seeds=3", f"runs={tmp_path}")
    check = run.check_finite

    def diverging(losses, model, tested, first_step, settings, ranks):
        if settings.seed == 1 and first_step:
            losses[2] = torch.nan
        check(losses, model, tested, first_step, settings, ranks)

    monkeypatch.setattr(run, "check_finite", diverging)
    with pytest.raises(SettingError, match=r"not finite at step 12: .*seed-1/last.pt has the last state"):
        train(chosen.each_seed())
    assert [(one.folder / "result.json").exists() for one in chosen.each_seed()] == [True, False, True]


def test_a_run_that_was_killed_before_its_result_was_written_writes_it(tmp_path):
    chosen = settings(*TINY, f"runs={tmp_path}").each_seed()
    (first,) = train(chosen)
    (chosen[0].folder / "result.json").unlink()
    (again,) = train(chosen)
    assert again == first
    assert json.loads((chosen[0].folder / "result.json").read_text()) == first
