"""W&B, offline and for real: what it wrote is read back from its own file."""

import json
import struct
from importlib import metadata
from importlib.metadata import PackageNotFoundError

import pytest
import torch
import wandb as library
from wandb.proto import wandb_internal_pb2

from sam_bench import results
from sam_bench.tracker import Tracker
from tests.command import TINY, settings


def records(path):
    """The records of a .wandb file, which is a LevelDB log: blocks of 32 KiB, parts of (crc, length, kind, data)."""
    content, at, parts, found = path.read_bytes(), 7, b"", []
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:  # the rest of a block that holds no header
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            found.append(wandb_internal_pb2.Record.FromString(parts))
            parts = b""
    return found


def values(items):
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


@pytest.fixture
def wandb(command, monkeypatch):
    """`logger=wandb` as it is by default: no account, no network."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return [argument for argument in TINY if argument != "logger=none"]


def test_every_job_of_a_sweep_has_a_run_of_its_own_with_the_numbers_of_its_result(command, wandb):
    status, _, err = command("-m", *wandb, "seed=0,1", "logger.tags=[table-2]")
    assert status == 0, err
    library.teardown()  # its service has written everything when it has ended
    folders = command.folders()
    assert len(folders) == 2
    for folder in folders:
        result = json.loads((folder / "result.json").read_text())
        (path,) = folder.glob("wandb/offline-run-*/*.wandb")
        found = records(path)
        run = next(record.run for record in found if record.HasField("run"))
        seed = result["seed"]
        assert run.run_id.startswith(f"{result['config_hash']}-{seed}-")
        assert run.run_group == folder.parent.name
        assert run.job_type == "rst"
        assert list(run.tags) == ["digits", "small_resnet", "table-2"]
        assert values(run.config.update)["optimizer"]["inner"]["rho"] == 0.05
        history = [values(record.history.item) for record in found if record.HasField("history")]
        assert [row["epoch"] for row in history] == [1, 2, 3]
        assert history[-1]["test_accuracy"] == result["test_accuracy"]
        assert history[-1]["propagations"] == result["propagations_per_step"] * result["steps"]
        metrics = {
            record.metric.name or record.metric.glob_name: record.metric
            for record in found
            if record.HasField("metric")
        }
        assert metrics["*"].step_metric == "propagations" or metrics["*"].step_metric_index == 1  # the first named
        assert any(record.HasField("exit") and record.exit.exit_code == 0 for record in found)


def test_a_tracker_that_fails_does_not_stop_training(command, wandb, monkeypatch):
    library.teardown()  # it reads the environment once a process
    monkeypatch.setenv("WANDB_BASE_URL", "no address")
    status, _, err = command(*wandb)
    assert status == 0
    assert "warning: logger=wandb: " in err
    assert len([line for line in err.splitlines() if line.startswith("warning")]) == 1
    assert len(command.folders()) == 1


def test_a_resumed_run_writes_every_epoch_under_the_same_id(command, wandb):
    """W&B keeps offline parts apart; each is whole, so that whichever is sent last has everything."""
    command(*wandb)
    library.teardown()
    (folder,) = command.folders()
    state = torch.load(folder / "last.pt", weights_only=True)
    (folder / "result.json").unlink()
    command(*wandb)
    library.teardown()
    parts = [records(path) for path in folder.glob("wandb/offline-run-*/*.wandb")]
    ids = {record.run.run_id for part in parts for record in part if record.HasField("run")}
    (kept,) = ids
    assert kept.startswith(f"{state['config_hash']}-0-")
    command(*wandb, f"runs={command.runs}/elsewhere")  # after a change of the code, say
    library.teardown()
    (path,) = command.runs.glob("elsewhere/*/*/wandb/offline-run-*/*.wandb")
    (other,) = {record.run.run_id for record in records(path) if record.HasField("run")}
    assert other != kept
    for part in parts:
        history = [values(record.history.item) for record in part if record.HasField("history")]
        assert [row["epoch"] for row in history] == [1, 2, 3]


class Broken:
    """A W&B run whose connection is gone."""

    def __init__(self, run):
        self.run, self.finished = run, False

    def log(self, *_, **__):
        raise ConnectionError("gone")

    def finish(self, **kwargs):
        self.finished = True
        self.run.finish(**kwargs)


def test_a_tracker_that_fails_later_is_said_once_and_finished(command, wandb, monkeypatch, capfd):
    chosen = settings(*wandb, f"runs={command.runs}")
    folder = chosen.folder
    folder.mkdir(parents=True)
    tracker = Tracker(chosen, folder)
    tracker.run = broken = Broken(tracker.run)
    for epoch in range(3):
        tracker.log({"epoch": epoch})
    tracker.finish({"test_accuracy": 1.0})
    assert broken.finished
    assert capfd.readouterr().err.count("warning: logger=wandb: gone") == 1


def test_a_result_needs_no_wandb(command, monkeypatch):
    """Where it is not installed, the result leaves its version out."""

    def version(name):
        if name == "wandb":
            raise PackageNotFoundError(name)
        return metadata.version(name)

    monkeypatch.setattr(results, "version", version)
    results.versions.cache_clear()
    status, _, err = command(*TINY, "logger=none", "trainer.epochs=1")
    results.versions.cache_clear()
    assert status == 0, err
    (folder,) = command.folders()
    versions = json.loads((folder / "result.json").read_text())["versions"]
    assert "wandb" not in versions
    assert "torch" in versions
