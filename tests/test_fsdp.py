"""A run whose weights are sharded over several ranks, with torchrun and gloo."""

import shutil
import signal

import pytest
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from sam_bench import sharpness
from sam_bench.errors import SettingError
from tests.command import TINY, settings
from tests.processes import on_ranks, train, wait_for
from tests.test_ddp import errors, run, start
from tests.test_resume import assert_same, state_of

NET = ["model=timm", "model.architecture=test_vit", "+model.kwargs.patch_size=4"]
ARGUMENTS = [*TINY, *NET, "optimizer=rst", "schedule=constant", "trainer.sync_perturbation=true"]
SHARDED = [*ARGUMENTS, "trainer.fsdp=true", "trainer.checkpoint_minutes=0"]


def shards_of(runs, tmp_path) -> dict:
    """The tensors of the last checkpoint, whole."""
    (folder,) = runs.glob("*/*/shards-*")
    assert state_of(runs)["shards"] == folder.name
    dcp_to_torch_save(folder, tmp_path / "whole.pt")
    return torch.load(tmp_path / "whole.pt", weights_only=True)


def test_the_run_is_that_of_one_process_and_continues_on_any_number_of_ranks(tmp_path, one_thread):
    long = "trainer.epochs=5"
    train([*ARGUMENTS, long, f"runs={tmp_path / 'one'}"])
    run(2, tmp_path / "undisturbed", *SHARDED, long)
    shards = shards_of(tmp_path / "undisturbed", tmp_path)
    for name, weight in state_of(tmp_path / "one")["model"].items():
        torch.testing.assert_close(shards[f"model.{name}"], weight, atol=1e-3, rtol=1e-3)
    runs = tmp_path / "stopped"
    process = start(2, *SHARDED, long, f"runs={runs}")
    wait_for(lambda: list(runs.glob("*/*/metrics.csv")), lambda: process.poll() is None)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert 0 < len(state_of(runs)["rows"]) < 5
    shutil.copytree(runs, tmp_path / "four")
    assert "continues after epoch" in run(2, runs, *SHARDED, long)
    assert_same(state_of(runs)["rows"], state_of(tmp_path / "undisturbed")["rows"])
    assert_same(shards_of(runs, tmp_path), shards)
    out = run(4, tmp_path / "four", *SHARDED, long)
    assert "changed since: ranks 2, now 4, so bits may differ" in out
    assert [row["epoch"] for row in state_of(tmp_path / "four")["rows"]] == [1, 2, 3, 4, 5]
    for name, weight in shards_of(tmp_path / "four", tmp_path).items():
        torch.testing.assert_close(weight, shards[name], atol=1e-3, rtol=1e-3)
    chosen = settings(*SHARDED, long, f"runs={runs}")
    with pytest.raises(SettingError, match="sharpness needs weights that are not sharded"):
        sharpness.add_to_result(chosen, "cheap")


def test_what_shards_cannot_do_is_refused(command):
    refused = {
        (
            "trainer.sync_perturbation=false",
        ): "trainer.fsdp=true: needs trainer.sync_perturbation=true, since FSDP reduces",
        (): "trainer.fsdp=true: needs several processes; start them with torchrun",
    }
    for arguments, message in refused.items():
        status, _, err = command(*SHARDED, *arguments)
        assert status == 2
        assert err.startswith(f"error: {message}")
        assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("argument", "error"),
    [
        ("sharpness=cheap", "sharpness=cheap: needs whole weights; choose none with trainer.fsdp=true"),
        (
            "optimizer/inner=gsam",
            "optimizer/inner=gsam: Invalid base: parameters sharded by FSDP "
            "(unsharded parameters, which GSAM requires)",
        ),
    ],
)
def test_what_is_refused_on_ranks_is_one_line(argument, error, tmp_path):
    status, _, err = on_ranks(2, tmp_path / "printed", *SHARDED, argument, f"runs={tmp_path / 'runs'}")
    assert status != 0
    (line,) = errors(err)
    assert line.startswith(f"error: {error}")
    assert not list(tmp_path.glob("runs/*/*/*"))
