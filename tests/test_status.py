"""`python -m sam_bench.status` beside real sweeps in other processes: half killed, failed, running, complete."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sam_bench import status
from tests.command import TINY

REPOSITORY = Path(__file__).parent.parent
SWEEP = [
    *("optimizer=sgd,sam,rst", "++optimizer.base.lr=0.05,0.1", "seed=0,1", "logger=none"),
    *("dataset.subset=160", "trainer.batch_size=32", "trainer.epochs=2", "trainer.checkpoint_minutes=0"),
]


def sweep(runs: Path, *words: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "sam_bench", "-m", *words, f"runs={runs}"],
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def states(runs: Path, *words: str) -> list[str]:
    return [each.state for each in status.states([*words, f"runs={runs}"])]


def test_a_half_killed_sweep(tmp_path):
    runs = tmp_path / "runs"
    assert states(runs, *SWEEP) == ["missing"] * 12
    process = sweep(runs, *SWEEP)
    limit = time.monotonic() + 120
    while len(list(runs.glob("*/*/result.json"))) < 5 and time.monotonic() < limit:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()

    finished = {path.parent for path in runs.glob("*/*/result.json")}
    assert 5 <= len(finished) < 12
    found = status.states(["-m", *SWEEP, f"runs={runs}"])
    assert len(found) == 12
    assert {each.settings.folder for each in found if each.state == "done"} == finished
    assert {each.state for each in found} <= {"done", "interrupted", "missing"}
    text = status.table(found)
    rest = 12 - len(finished)
    interrupted = sum(each.state == "interrupted" for each in found)
    counts = f", {interrupted} interrupted" * (interrupted > 0) + f", {rest - interrupted} missing"
    assert f"12 runs: {len(finished)} done{counts}\n" in text
    assert re.search(
        rf"remaining: \S+ (s|min) and [\d,]+ propagations in one process, estimated from the {len(finished)} ", text
    )

    process = sweep(runs, *SWEEP)
    assert process.wait(timeout=120) == 0, process.stderr.read()
    assert states(runs, *SWEEP) == ["done"] * 12
    assert status.table(status.states([*SWEEP, f"runs={runs}"])).endswith("12 runs: 12 done\nnothing remains")


def test_a_failed_run_has_its_line_until_it_is_repeated(command):
    words = [*TINY, "optimizer=sgd,sam", "optimizer.base.lr=0.1,1e9", "trainer.clip=null"]
    code, _, err = command("-m", *words)
    assert code == 2
    found = status.states([*words, f"runs={command.runs}"])
    assert [(each.state, *each.overrides) for each in found] == [
        ("done", "optimizer=sgd", "optimizer.base.lr=0.1"),
        ("done", "optimizer=sam", "optimizer.base.lr=0.1"),
        ("failed", "optimizer=sgd", "optimizer.base.lr=1000000000.0"),
        ("failed", "optimizer=sam", "optimizer.base.lr=1000000000.0"),
    ]
    failed = found[-1]
    assert failed.note.startswith("the loss or a weight is not finite at step ")
    assert f"error: {failed.note}" in err
    assert f"failed: {failed.settings.folder}: {failed.note}\n" in status.table(found)


def test_a_run_that_raises_leaves_its_line(command, monkeypatch):
    from sam_bench.run import Run

    def broken(*_):
        raise ZeroDivisionError("a fault of the program")

    monkeypatch.setattr(Run, "step", broken)
    with pytest.raises(ZeroDivisionError):
        command(*TINY, "optimizer=sgd")
    (one,) = status.states([*TINY, "optimizer=sgd", f"runs={command.runs}"])
    assert (one.state, one.note) == ("failed", "a fault of the program")
    monkeypatch.undo()
    assert command(*TINY, "optimizer=sgd", f"runs={one.settings.runs}")[0] == 0
    assert states(one.settings.runs, *TINY, "optimizer=sgd") == ["done"]
    assert not (one.settings.folder / "error.txt").exists()


def test_a_running_run_is_running(tmp_path):
    words = ["logger=none", "trainer.epochs=1000", "optimizer=sgd", "trainer.batch_size=32"]
    process = sweep(tmp_path, *words)
    limit = time.monotonic() + 60
    while not list(tmp_path.glob("*/*/metrics.csv")) and time.monotonic() < limit:
        time.sleep(0.05)
    (one,) = status.states([*words, f"runs={tmp_path}"])
    assert one.state == "running"
    assert 1 <= one.epochs < 1000
    assert f"| seed 0 ({one.epochs}/1000) |" in status.table([one])
    process.kill()
    process.wait()
    (one,) = status.states([*words, f"runs={tmp_path}"])
    assert one.state == "interrupted"


def test_a_broken_result_is_named(command):
    command("-m", *TINY, "optimizer=sgd", "seed=0,1")
    (command.folders()[0] / "result.json").write_text("{")
    broken, good = status.states([*TINY, "optimizer=sgd", "seed=0,1", f"runs={command.runs}"])
    assert (broken.state, good.state) == ("failed", "done")
    assert "is not a valid result" in broken.note


def test_a_refused_cell_is_named_and_the_others_are_listed(tmp_path):
    found = status.states(
        [*TINY, "optimizer=sgd,sam", "++optimizer.rho=0.1,-1", "trainer.accumulate=1,3", f"runs={tmp_path}"]
    )
    refused = [each for each in found if each.state == "refused"]
    assert {each.state for each in found} == {"missing", "refused"}
    assert all("trainer.accumulate=3: should divide trainer.batch_size" in each.note for each in refused)


def test_the_estimate_prefers_what_is_most_like_the_run(command):
    words = [*TINY, "optimizer=sgd,sam", "seed=0,1"]
    command(*TINY, "optimizer=sgd", "seed=0")
    command(*TINY, "optimizer=sam", "seed=0")
    for folder in command.folders():
        path = folder / "result.json"
        result = json.loads(path.read_text())
        seconds = {"sgd": 100.0, "sam": 200.0}[result["optimizer"]]
        path.write_text(json.dumps(result | {"seconds": seconds, "test_seconds": 10.0}))
    found = status.states([*words, f"runs={command.runs}"])
    done = [each for each in found if each.result]
    expected = {each.settings.optimizer.name: status.estimate(each, done) for each in found if not each.result}
    assert expected == {"sgd": pytest.approx((110, 30)), "sam": pytest.approx((210, 60))}
    assert "remaining: 5 min and 90 propagations" in status.table(found)

    def of(*words):
        (one,) = status.states([*TINY, *words, f"runs={command.runs}"])
        return status.estimate(one, done)

    # another cell on the same data and net: seconds per counted cost, here 100, and the cost of the method
    assert of("optimizer=sam", "optimizer.rho=0.3") == pytest.approx((210, 60))
    assert of("optimizer=asam") == pytest.approx((160, 45))  # the mean of the two methods
    assert of("optimizer=sgd", "trainer.epochs=6") == pytest.approx((220, 60))
    assert of("optimizer=sgd", "model=vit_tiny") is None
    (folder,) = (folder for folder in command.folders() if "-sam-" in str(folder))
    (folder / "result.json").unlink()
    (folder / "metrics.csv").write_text("".join((folder / "metrics.csv").read_text().splitlines(True)[:3]))
    assert of("optimizer=sam") == pytest.approx((70, 20))  # two of three epochs are done


def test_words_that_are_wrong_are_one_line(capfd):
    for words, expected in (
        (["+experiment=rst_mian", "protocol=cpu"], "experiment=rst_mian: no such choice, did you mean rst_main?"),
        (["+experiment=rst_main"], "protocol: experiment=rst_main needs one"),
        (["+experiment=rst_main", "protocol=cqu"], "protocol=cqu: no such choice, did you mean cpu?"),
    ):
        with pytest.raises(SystemExit) as exit_:
            status.main(words)
        assert exit_.value.code == 2
        out, err = capfd.readouterr()
        assert out == ""
        assert err.startswith(f"error: {expected}")
        assert err.count("\n") == 1


def test_it_imports_no_torch():
    code = (
        "import sys; from sam_bench import status; status.main(['+experiment=vsam_main', 'protocol=cpu']); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout.endswith("False\n"), done.stderr
    assert "| cifar10-wrn10_2_stride2-rst-constant-" in done.stdout


def test_the_words_of_a_users_own_folder(tmp_path, command):
    (tmp_path / "conf" / "optimizer").mkdir(parents=True)
    text = "defaults:\n  - base: sgd\n  - _self_\n_target_: sam_bench.optim.SAM\nrho: 0.3\n"
    (tmp_path / "conf" / "optimizer" / "mine.yaml").write_text(text)
    words = ["--config-dir", f"{tmp_path}/./conf/", *TINY, "optimizer=mine,sgd"]
    assert command(words[0], words[1], "-m", *words[2:])[0] == 0
    assert states(command.runs, *words) == ["done", "done"]
    assert states(command.runs, f"--config-dir={tmp_path}/conf", *words[2:]) == ["done", "done"]


def test_damaged_files_are_counted_as_what_they_show(command):
    command("-m", *TINY, "optimizer=sgd", "seed=0,1,2")
    one, two, three = command.folders()
    for folder in (one, two, three):
        (folder / "result.json").unlink()
    (one / "metrics.csv").write_bytes(b"\xff\n" * 50)
    (two / "error.txt").write_bytes(b"\xff | \x1b[31m\n" + b"x" * 5000)
    (three / ".lock").unlink()
    (three / ".lock").mkdir()
    found = status.states([*TINY, "optimizer=sgd", "seed=0,1,2", f"runs={command.runs}"])
    assert [(each.state, each.epochs) for each in found] == [("interrupted", 3), ("failed", 3), ("interrupted", 3)]
    text = status.table(found)
    assert text.count("\n") == 6
    assert "\x1b" not in text


def test_a_sweep_of_which_every_run_is_refused_is_one_line(capfd):
    with pytest.raises(SystemExit) as exit_:
        status.main([*TINY, "optimizer=sgd,sam", "trainer.epochs=0"])
    assert exit_.value.code == 2
    assert capfd.readouterr() == ("", "error: trainer.epochs=0: should be greater than 0\n")


def test_a_missing_folder_of_configurations_is_refused(capfd, tmp_path):
    with pytest.raises(SystemExit):
        status.main(["--config-dir", str(tmp_path / "none"), "optimizer=sgd"])
    assert capfd.readouterr().err == f"error: --config-dir={tmp_path / 'none'}: is not a folder\n"
