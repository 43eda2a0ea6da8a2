"""A run whose weights are sharded over several ranks, with torchrun and gloo."""

import shutil
import signal
import time

import pytest
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from sam_bench import sharpness
from sam_bench.errors import SettingError
from tests.command import TINY, settings
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


def test_the_run_is_that_of_one_process_and_continues_on_any_number_of_ranks(tmp_path):
    long = "trainer.epochs=5"
    run(1, *ARGUMENTS, long, f"runs={tmp_path / 'one'}")
    run(2, *SHARDED, long, f"runs={tmp_path / 'undisturbed'}")
    shards = shards_of(tmp_path / "undisturbed", tmp_path)
    for name, weight in state_of(tmp_path / "one")["model"].items():
        torch.testing.assert_close(shards[f"model.{name}"], weight, atol=1e-3, rtol=1e-3)
    runs = tmp_path / "stopped"
    process = start(2, *SHARDED, long, f"runs={runs}")
    while not list(runs.glob("*/*/metrics.csv")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert 0 < len(state_of(runs)["rows"]) < 5
    shutil.copytree(runs, tmp_path / "four")
    assert "continues after epoch" in run(2, *SHARDED, long, f"runs={runs}")
    assert_same(state_of(runs)["rows"], state_of(tmp_path / "undisturbed")["rows"])
    assert_same(shards_of(runs, tmp_path), shards)
    assert "with other ranks 2, now 4: bits may differ" in run(4, *SHARDED, long, f"runs={tmp_path / 'four'}")
    assert [row["epoch"] for row in state_of(tmp_path / "four")["rows"]] == [1, 2, 3, 4, 5]
    for name, weight in shards_of(tmp_path / "four", tmp_path).items():
        torch.testing.assert_close(weight, shards[name], atol=1e-3, rtol=1e-3)
    with pytest.raises(SettingError, match="has the weights of trainer"):
        sharpness.add_to_result(settings(*SHARDED, long, f"runs={runs}"), "cheap")


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
    process = start(2, *SHARDED, argument, f"runs={tmp_path / 'runs'}")
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    (line,) = errors(err)
    assert line.startswith(f"error: {error}")
    assert not list(tmp_path.glob("runs/*/*/*"))
