"""Sweeps in several processes, with the real engines: joblib, submitit, Slurm and Ray."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from sam_bench import launchers, results
from sam_bench.signals import REPEAT
from sam_bench.train import train
from tests import slurm
from tests.command import TINY, settings
from tests.test_resume import assert_same

LONG = [*TINY, "trainer.epochs=25"]  # some seconds, so that a test can interfere


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    """In all processes, so that they compute the same bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    if why := slurm.why_not():
        pytest.skip(why)
    started = slurm.Cluster(tmp_path / "slurm")
    monkeypatch.setenv("SLURM_CONF", started.environment["SLURM_CONF"])
    monkeypatch.setattr(launchers, "QUEUE_SECONDS", 1)
    yield started
    started.stop()


def start(*arguments: str, cwd: Path | None = None) -> subprocess.Popen[str]:
    """A sweep in a process of its own."""
    command = [sys.executable, "-m", "sam_bench", "-m", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def sweep(*arguments: str, cwd: Path | None = None) -> tuple[int, str, str]:
    return finish(start(*arguments, cwd=cwd))


def folder_of(runs: Path, *arguments: str) -> Path:
    return settings(*arguments, f"runs={runs}").folder


def assert_undisturbed(folder: Path, tmp_path: Path, *arguments: str) -> None:
    """The finished run has the weights and optimizer state of one that was trained here without a launcher."""
    alone = settings(*arguments, f"runs={tmp_path / 'alone'}")
    train([alone])
    one, other = (torch.load(each / "last.pt", weights_only=True) for each in (folder, alone.folder))
    assert_same(one["model"], other["model"])
    assert_same(one["optimizer"], other["optimizer"])
    assert results.read(folder)["test_accuracy"] == results.read(alone.folder)["test_accuracy"]


def wait_for(condition, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def has_epochs(folder: Path, n: int = 3):
    return lambda: results.finished_epochs(folder) >= n


LAUNCHERS = {
    "joblib": ["hydra.launcher.n_jobs=2"],
    "submitit_local": [],
    "ray": ["hydra.launcher.ray.init.num_cpus=2", "hydra.launcher.ray.init.include_dashboard=false"],
    "submitit_slurm": ["hydra.launcher.cpus_per_task=1"],
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_failing_run_is_named_and_the_others_finish(launcher, tmp_path, request):
    if launcher == "submitit_slurm":
        request.getfixturevalue("cluster")
    runs = tmp_path / "runs"
    rates = "optimizer.base.lr=0.1,1e30,0.05"
    status, out, err = sweep(
        f"hydra/launcher={launcher}", *LAUNCHERS[launcher], *TINY, "optimizer=sam", rates, f"runs={runs}"
    )
    assert status == 2, err
    assert "error: 1 of 3 runs failed; the others are done:\n  optimizer.base.lr=1e+30: the loss or a weight is" in err
    log = Path(re.search(r"; log: (\S+)\n", err)[1])
    assert "is not finite at step" in log.read_text()
    assert runs / ".launcher" in log.parents
    assert "Traceback" not in err
    assert sorted(line[:3] for line in out.splitlines() if re.match(r"\d/3 ", line)) == ["1/3", "2/3", "3/3"]
    assert {path.name for path in runs.iterdir() if not path.name.startswith("digits-")} == {".launcher"}
    for rate in ("0.1", "0.05"):
        arguments = [*TINY, "optimizer=sam", f"optimizer.base.lr={rate}"]
        assert_undisturbed(folder_of(runs, *arguments), tmp_path, *arguments)
    assert (folder_of(runs, *TINY, "optimizer=sam", "optimizer.base.lr=1e30") / "error.txt").exists()


def test_seeds_side_by_side_within_each_job(tmp_path):
    runs = tmp_path / "runs"
    arguments = ["hydra/launcher=joblib", *TINY, "optimizer=sgd,sam", "trainer.seeds=2", f"runs={runs}"]
    status, _, err = sweep(*arguments)
    assert status == 0, err
    for name in ("sgd", "sam"):
        for seed in (0, 1):
            assert results.read(folder_of(runs, *TINY, f"optimizer={name}", f"seed={seed}"))["seeds_at_once"] == 2


def test_runs_with_the_same_settings_are_one_run(tmp_path):
    """Two workers would meet in one folder: SGD takes no schedule."""
    arguments = ["hydra/launcher=joblib", *TINY, "optimizer=sgd,rst", "schedule=linear,constant", f"runs={tmp_path}"]
    status, out, err = sweep(*arguments)
    assert status == 0, err
    assert "1 of 4 runs have the settings of another one" in out
    assert len(list(tmp_path.glob("*/seed-0/result.json"))) == 3
    next(tmp_path.glob("digits-small_resnet-sgd-*/seed-0/result.json")).unlink()
    status, out, err = sweep(*arguments)
    assert status == 0, err
    assert "2 of 3 runs are finished" in out
    assert "1/1  " in out
    assert sweep(*arguments)[:2] == (0, "1 of 4 runs have the settings of another one\n3 of 3 runs are finished\n")


def test_a_killed_worker_costs_its_own_run_alone(tmp_path):
    runs = tmp_path / "runs"
    arguments = ["hydra/launcher=joblib", *LONG, "optimizer=sam", "seed=0,1,2", f"runs={runs}"]
    process = start(*arguments)
    folder = folder_of(runs, *LONG, "optimizer=sam", "seed=0")
    wait_for(has_epochs(folder), process)
    os.kill(worker_of(process, runs, 0), signal.SIGKILL)
    status, _, err = finish(process)
    assert status == 2
    assert "1 of 3 runs failed" in err
    assert "seed=0: its process was killed; the same command continues the run" in err
    assert results.read(folder) is None
    status, _, err = sweep(*arguments)
    assert status == 0, err
    assert_undisturbed(folder, tmp_path, *LONG, "optimizer=sam", "seed=0")


def worker_of(process: subprocess.Popen[str], runs: Path, number: int) -> int:
    """The process that writes the log of a run: it holds the file open."""
    (log,) = runs.glob(f".launcher/joblib/*/{number}.log")
    for pid in descendants(process.pid):
        if any(os.path.realpath(file) == str(log) for file in Path(f"/proc/{pid}/fd").glob("*")):
            return pid
    raise AssertionError("no process has the log open")


def descendants(pid: int) -> list[int]:
    of_threads = Path(f"/proc/{pid}/task").glob("*/children")
    children = [int(each) for path in of_threads for each in path.read_text().split()]
    return [*children, *(each for child in children for each in descendants(child))]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_to_the_sweep_saves_all_runs(number, tmp_path):
    runs = tmp_path / "runs"
    arguments = ["hydra/launcher=joblib", *LONG, "optimizer=sam", "seed=0,1,2", f"runs={runs}"]
    process = start(*arguments)
    folders = [folder_of(runs, *LONG, "optimizer=sam", f"seed={seed}") for seed in (0, 1, 2)]
    for folder in folders[:2]:
        wait_for(has_epochs(folder), process)
    children = descendants(process.pid)
    process.send_signal(number)
    status, _, err = finish(process)
    assert status == (130 if number == signal.SIGINT else REPEAT), err
    assert "Traceback" not in err
    for folder in folders[:2]:
        saved = torch.load(folder / "last.pt", weights_only=True)
        assert 3 <= len(saved["rows"]) < 25
    assert not folders[2].exists(), "no further run is started"
    wait_for_the_end_of(children)


def test_workers_end_after_their_sweep_was_killed(tmp_path):
    runs = tmp_path / "runs"
    process = start("hydra/launcher=joblib", *LONG, "optimizer=sam", "seed=0,1", f"runs={runs}")
    folder = folder_of(runs, *LONG, "optimizer=sam", "seed=0")
    wait_for(has_epochs(folder), process)
    children = descendants(process.pid)
    process.kill()
    process.wait()
    wait_for_the_end_of(children)
    assert (folder / "last.pt").exists()


def wait_for_the_end_of(processes: list[int]) -> None:
    deadline = time.monotonic() + 60
    while alive := [pid for pid in processes if not is_zombie(pid)]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.1)


def is_zombie(pid: int) -> bool:
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True


PACKAGE = """
import os
from omegaconf import OmegaConf
from torch import nn

def net(width, *, num_classes, in_chans, img_size):
    print("GPU", os.environ.get("CUDA_VISIBLE_DEVICES"))
    return nn.Sequential(nn.Flatten(), nn.Linear(in_chans * img_size**2, width), nn.Linear(width, num_classes))
"""
PLUGIN = """
from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

OmegaConf.register_new_resolver("double", lambda x: 2 * x, replace=True)

class Mine(SearchPathPlugin):
    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        pass
"""


def own_package(folder: Path) -> None:
    """A network of the user's own, whose width comes from a resolver of the user's own."""
    (folder / "my_conf" / "model").mkdir(parents=True)
    (folder / "my_conf" / "model" / "mine.yaml").write_text("_target_: my_package.net\nwidth: ${double:8}\n")
    (folder / "my_package.py").write_text(PACKAGE)
    (folder / "hydra_plugins").mkdir()
    (folder / "hydra_plugins" / "mine.py").write_text(PLUGIN)


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", "ray"])
def test_workers_know_the_users_package_configurations_and_resolvers(launcher, tmp_path):
    own_package(tmp_path)
    status, _, err = sweep(
        *(f"hydra/launcher={launcher}", *LAUNCHERS[launcher], "--config-dir", "my_conf", "model=mine"),
        *("seed=0,1", *TINY),
        cwd=tmp_path,
    )
    assert status == 0, err
    (config,) = {path.read_text().partition("model:")[2][:60] for path in tmp_path.glob("runs/*/seed-*/config.yaml")}
    assert "width: 16" in config


def test_gpus_are_taken_in_turn(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert launchers.visible_gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,3")
    assert launchers.visible_gpus() == ["5", "3"]


def test_a_worker_sees_its_own_gpu(tmp_path, monkeypatch):
    """Two GPUs, two runs on each: four processes, of which each is given one."""
    import cloudpickle

    workers = [launchers.Worker(cloudpickle.dumps(seen_gpu), gpu, None) for gpu in ("7", "3")]
    try:
        returned = [worker.run(0, [], tmp_path / "log") for worker in workers]
    finally:
        for worker in workers:
            worker.processes.shutdown()
    assert returned == ["7", "3"]


def seen_gpu(number: int, overrides: list[str]) -> str:
    return os.environ["CUDA_VISIBLE_DEVICES"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=0"], "hydra.launcher.n_jobs=0: should be an integer of at"),
        (["hydra/launcher=joblib", "optimizer=sgd,sum"], "optimizer=sum: no such choice, did you mean sam?"),
        (["hydra/launcher=slurm"], "hydra/launcher=slurm: no such choice"),
        (["hydra/launcher=joblib", "hydra.launcher.jobs=2"], "hydra.launcher.jobs"),
    ],
)
def test_a_wrong_launcher_is_one_line(arguments, message, command):
    status, _, err = command("-m", *arguments, *TINY, "seed=0,1")
    assert status == 2
    assert message in err
    assert err.count("\n") == 1
    assert not command.runs.exists()


# --------------------------------------------------------------------------------------------------------------- Slurm


def test_slurm_jobs_that_are_cancelled_preempted_or_requeued(cluster, tmp_path):
    """All three in one sweep: the cancelled run is named, the others end with the weights of undisturbed runs."""
    runs = tmp_path / "runs"
    longer = [*TINY, "trainer.epochs=90"]  # Slurm takes a second to preempt a job
    arguments = [*("hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=1"), *longer, "optimizer=sam"]
    process = start(*arguments, "seed=0,1,2", f"runs={runs}")
    folders = [folder_of(runs, *longer, "optimizer=sam", f"seed={seed}") for seed in (0, 1, 2)]
    for folder in folders[:2]:
        wait_for(has_epochs(folder), process)
    array = cluster.run("squeue", "--noheader", "--format=%F").split()[0]
    cluster.run("scancel", f"{array}_0")
    before = results.finished_epochs(folders[1])
    cluster.run("scancel", "--signal=USR2", f"{array}_1")  # what Slurm sends before the time limit
    wait_for(lambda: "Exiting gracefully" in log_of(runs, array, 1), process)
    saved = torch.load(folders[1] / "last.pt", weights_only=True)
    assert len(saved["rows"]) >= before
    start_now(cluster, array)
    # a job of higher priority takes both CPUs as soon as the third run is on its way
    wait_for(has_epochs(folders[2]), process)
    cluster.run("sbatch", "--partition=high", "--cpus-per-task=2", "--output=/dev/null", "--wrap=sleep 1")
    while process.poll() is None:
        start_now(cluster, array)
        time.sleep(0.5)
    status, out, err = finish(process)
    assert status == 2, out + err
    assert "error: 1 of 3 runs failed" in err
    assert "seed=0: ended without a result: cancelled, killed" in err
    assert results.read(folders[0]) is None
    assert "continues after epoch" in log_of(runs, array, 1)
    assert "continues after epoch" in log_of(runs, array, 2)
    for seed, folder in list(enumerate(folders))[1:]:
        assert_undisturbed(folder, tmp_path, *longer, "optimizer=sam", f"seed={seed}")


def start_now(cluster: slurm.Cluster, array: str) -> None:
    """Requeued jobs, which Slurm delays by two minutes."""
    for number in (1, 2):
        cluster.run("scontrol", "update", f"jobid={array}_{number}", "starttime=now", check=False)


def log_of(runs: Path, array: str, number: int) -> str:
    """Standard output of a job, all of its starts."""
    (folder,) = runs.glob(f".launcher/submitit/{array}_{number}")
    return "".join(path.read_text() for path in folder.glob("*.out"))


def test_without_slurm_the_error_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    status, _, err = sweep("hydra/launcher=submitit_slurm", *TINY, "seed=0,1", f"runs={tmp_path / 'runs'}")
    assert status == 2
    assert err.startswith("error: hydra/launcher: ")
    assert err.count("\n") == 1, err
