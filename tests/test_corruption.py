"""Damaged checkpoints and results: named, never a traceback, never a wrong resume."""

import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sam_bench import checkpoint, results
from sam_bench.errors import SettingError
from sam_bench.report import tables
from sam_bench.report.cells import collect, panels
from tests.command import TINY, settings
from tests.test_errors import change_checkpoint, one_line

CORRUPTIONS = 200


def corrupted(content: bytes, draw: random.Random) -> bytes:
    """The content with a flipped bit, changed bytes, a part missing or doubled, or something else in its place."""
    at, n = draw.randrange(len(content)), draw.randrange(1, 200)
    part = content[at : at + n]
    noise = draw.randbytes(n)
    return draw.choice(
        [
            content[:at] + bytes([content[at] ^ (1 << draw.randrange(8))]) + content[at + 1 :],
            content[:at] + noise + content[at + n :],
            content[:at] + content[at + n :],
            content[:at] + part + content[at:],
            content[:at],
            content[at:],
            content + noise,
            noise,
            content[:at] + bytes(n) + content[at + n :],
        ]
    )


@pytest.fixture
def unfinished(command) -> Path:
    """A run folder with a checkpoint and no result."""
    assert command(*TINY)[0] == 0
    (folder,) = command.folders()
    (folder / "result.json").unlink()
    return folder


def test_any_change_of_a_checkpoint_is_named(command, unfinished):
    path, draw = unfinished / "last.pt", random.Random(0)
    good = path.read_bytes()
    config_hash, message = unfinished.parent.name[-10:], f"{path}: is damaged (its checksum does not match); move it"
    for number in range(CORRUPTIONS):
        bad = corrupted(good, draw)
        if bad == good:
            continue
        path.write_bytes(bad)
        with pytest.raises(SettingError, match=f"^{re.escape(message)} away to start over$"):
            checkpoint.load(path, config_hash, 0)
        if number % 20 == 0:
            status, _, err = command(*TINY)
            assert status == 2
            assert message in one_line(err)
        assert path.read_bytes() == bad
    path.write_bytes(good)
    status, out, _ = command(*TINY)
    assert (status, "continues after epoch 3 of 3" in out) == (0, True)


def test_a_checkpoint_is_an_archive_that_torch_loads(unfinished):
    for mmap in (False, True):
        assert len(torch.load(unfinished / "last.pt", weights_only=True, mmap=mmap)["rows"]) == 3


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state["rows"].append({**state["rows"][-1], "epoch": 4}),
        lambda state: state["rows"].pop(0),
        lambda state: state["rows"].reverse(),
        lambda state: state.update(rows=None),
        lambda state: state.update(rows=[1, 2, 3]),
        lambda state: state.update(rows="123"),
        lambda state: state["rows"][0].pop("steps"),
        lambda state: state.pop("rows"),
        lambda state: state.pop("optimizer"),
        lambda state: state.pop("conditions"),
        lambda state: state.update(model=[]),
        lambda state: state.update(optimizer={}),
        lambda state: state["model"].update({"fc.weight": torch.zeros(3, 3)}),
        lambda state: state["optimizer"]["param_groups"].clear(),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(command, unfinished, change):
    """Such as one of more epochs than were asked for, which would never be done."""
    change_checkpoint(unfinished / "last.pt", change)
    before = (unfinished / "last.pt").read_bytes()
    status, _, err = command(*TINY)
    assert status == 2
    assert f"{unfinished / 'last.pt'}: does not fit this run (" in one_line(err)
    assert "move it away to start over" in err
    assert (unfinished / "last.pt").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "epochs"),
    [(lambda rows: rows.clear(), 0), (lambda rows: rows.append({**rows[-1], "epoch": 4}), 4)],
    ids=["none", "too many"],
)
def test_a_checkpoint_of_more_epochs_or_none_is_refused(command, unfinished, change, epochs):
    change_checkpoint(unfinished / "last.pt", lambda state: change(state["rows"]))
    _, _, err = command(*TINY)
    assert f"does not fit this run (it has rows of {epochs} epochs, not of 1 to 3)" in one_line(err)


def test_a_file_that_cannot_be_written_is_no_fault_of_the_checkpoint(command, unfinished):
    (unfinished / "metrics.csv").unlink()
    (unfinished / "metrics.csv").mkdir()
    status, _, err = command(*TINY)
    assert status == 2
    assert f"{unfinished / 'metrics.csv'}: cannot be written (Is a directory)" in one_line(err)
    assert "start over" not in err


def test_a_result_whose_settings_were_changed_is_refused(command):
    command(*TINY, "trainer.epochs=1")
    (path,) = (folder / "result.json" for folder in command.folders())
    result = json.loads(path.read_text())
    result["config"]["trainer"]["batch_size"] = 16
    path.write_text(json.dumps(result))
    status, _, err = command(*TINY, "trainer.epochs=1")
    assert status == 2
    assert "is not a valid result (its config_hash is not that of its config)" in one_line(err)


@pytest.mark.parametrize("content", [{"format": 1}, [1], torch.zeros(3)])
def test_another_checkpoint_is_not_to_be_deleted(command, unfinished, content):
    if isinstance(content, dict):
        change_checkpoint(unfinished / "last.pt", lambda state: state.update(content))
    else:
        checkpoint.save(unfinished / "last.pt", "x", 0, {})
        checkpoint.save(unfinished / "last.pt", "x", 0, {"content": content})
    status, _, err = command(*TINY)
    assert status == 2
    assert "is the checkpoint of another run" in one_line(err)
    assert "give another runs=FOLDER" in err
    assert "delete" not in err


def test_any_change_of_a_result_is_harmless(command):
    """Named if it is broken; else it is what a person could have written."""
    assert command(*TINY)[0] == 0
    (folder,) = command.folders()
    path, draw = folder / "result.json", random.Random(0)
    good = path.read_bytes()
    refused, mine = 0, settings(*TINY, f"runs={command.runs}")
    for number in range(CORRUPTIONS):
        path.write_bytes(corrupted(good, draw))
        refusal = ""
        try:
            result = results.read_of(mine)
        except SettingError as error:
            refusal = str(error)
        if refusal:
            assert re.fullmatch(f"{re.escape(str(path))}: is (not a valid result|the result of another run).*", refusal)
            refused += 1
        else:
            assert (result["config_hash"], result["seed"]) == (mine.config_hash, 0)
            results.table(result)
        if number % 20 == 0:
            status, out, err = command(*TINY)
            assert status in (0, 2)
            assert "Traceback" not in err
            assert "steps of" not in out  # it does not train again
    assert refused > CORRUPTIONS / 2


STRANGE = {
    "not a number": ({"test_accuracy": float("nan")}, "test_accuracy: should be"),
    "null": ({"seconds": None}, "seconds: should be"),
    "a missing key": ({"steps": ...}, "steps: Field required"),
    "an accuracy in percent": ({"test_accuracy": 97.2}, "test_accuracy: should be less than or equal to 1"),
    "a string": ({"test_accuracy": "0.9"}, "test_accuracy: should be"),
    "a negative seed": ({"seed": -1}, "seed: should be"),
    "a newer format": ({"format": 99}, "format: should be less than or equal to 1"),
    "a list": ({"config": []}, "config: should be"),
    "a boolean": ({"seed": True}, "seed: should be"),
    "infinite": ({"images_per_second": float("inf")}, "images_per_second: should be"),
}


def change_result(path: Path, change: dict) -> None:
    result = json.loads(path.read_text())
    result |= {key: value for key, value in change.items() if value is not ...}
    for key in (key for key, value in change.items() if value is ...):
        del result[key]
    path.write_text(json.dumps(result))


@pytest.mark.parametrize("what", STRANGE)
def test_the_report_leaves_out_a_bad_result_and_prints_the_rest(command, capfd, what):
    change, message = STRANGE[what]
    command("-m", *TINY, "trainer.epochs=1", "optimizer=sgd", "seed=0,1")
    bad, good = (folder / "result.json" for folder in command.folders())
    change_result(bad, change)
    (cell,) = collect([command.runs])
    assert [run["seed"] for run in cell.runs] == [1]
    (panel,) = panels([cell])
    assert len(tables.table(panel).rows) == 1
    err = capfd.readouterr().err
    assert err.startswith(f"warning: {bad}: is not a valid result ({message}")
    assert err.count("\n") == 1
    with pytest.raises(SettingError, match="is not a valid result"):
        results.read(bad.parent)
    assert results.read(good.parent)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "9" * 10_000, "\ud800".encode("utf-8", "surrogatepass"), b"\xff"]
)
def test_deep_or_odd_json_is_named(command, capfd, text):
    command("-m", *TINY, "trainer.epochs=1", "optimizer=sgd", "seed=0,1")
    bad = command.folders()[0] / "result.json"
    bad.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert len(collect([command.runs])[0].runs) == 1
    assert f"warning: {bad}: is not a valid result" in capfd.readouterr().err


def test_deep_settings_are_named(command, capfd):
    """JSON of Python reads deeper values than Python functions can follow."""
    command("-m", *TINY, "trainer.epochs=1", "optimizer=sgd", "seed=0,1")
    bad = command.folders()[0] / "result.json"
    deep = '{"a":' * 980 + "1" + "}" * 980
    bad.write_text(bad.read_text().replace('"config": {', f'"config": {{"deep": {deep},', 1))
    assert len(collect([command.runs])[0].runs) == 1
    assert f"warning: {bad}: is not a valid result" in capfd.readouterr().err


def test_names_cannot_break_the_table(command):
    command("-m", *TINY, "trainer.epochs=1", "optimizer=sgd,sam")
    changes = {
        "dataset": "a|b\n| c",
        "model": "<script>alert(1)</script>",
        "optimizer": "x" * 5000,
        "device": "| |\r\n",
    }
    change_result(command.folders()[0] / "result.json", changes)
    found = [tables.table(panel) for panel in panels(collect([command.runs]))]
    text = tables.markdown(found)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 6  # two data sets: two tables of one row
    assert all(len({line.replace("\\|", "").count("|") for line in part}) == 1 for part in (lines[:3], lines[3:]))
    assert "<script" not in text
    assert r"$<$script$>$" in tables.latex(found)


def test_the_report_command_continues_past_a_bad_file(command):
    command("-m", *TINY, "trainer.epochs=1", "optimizer=sgd", "seed=0,1")
    bad = command.folders()[0] / "result.json"
    bad.write_text("{")
    line = [sys.executable, "-m", "sam_bench.report", "--table", command.runs]
    done = subprocess.run(line, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert done.returncode == 0
    assert done.stdout.count("| sgd |") == 1
    assert done.stderr.startswith(f"warning: {bad}: is not a valid result")
    for each in command.folders():
        (each / "result.json").write_text("{")
    done = subprocess.run(line, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr


def test_a_result_of_another_run_is_named_and_kept(command):
    command("-m", *TINY, "trainer.epochs=1", "optimizer=sgd", "seed=0,1")
    one, other = (folder / "result.json" for folder in command.folders())
    one.write_bytes(other.read_bytes())
    status, _, err = command(*TINY, "trainer.epochs=1", "optimizer=sgd")
    assert status == 2
    assert f"{one}: is the result of another run (config_hash " in one_line(err)
    assert one.read_bytes() == other.read_bytes()
