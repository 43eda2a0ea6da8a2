"""Launchers of sweeps in several processes, with joblib, submitit (Slurm or this machine) and Ray.

Hydra's own plugins for these engines lose the other runs of a sweep if one is killed. These return a failed `JobReturn`
for it and finish the rest.
"""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from queue import Queue
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, configure_log, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from tqdm import tqdm

from sam_bench.errors import SettingError, reason
from sam_bench.ranks import LAUNCHED
from sam_bench.signals import StopSignal
from sam_bench.sweep import own_overrides

QUEUE_SECONDS = 10  # between two looks at Slurm's queue


@dataclass
class Job:
    """What a process needs to do the runs of a sweep. Called with the number and the overrides of a run."""

    context: HydraContext
    task: TaskFunction
    config: DictConfig
    state: Any  # Hydra's singletons and OmegaConf's resolvers, the user's too
    arguments: list[str]
    path: list[str]
    folder: str

    def __call__(self, number: int, overrides: list[str]) -> JobReturn:
        """Do the run. What it raises is in the `JobReturn`, except for an exit."""
        os.chdir(self.folder)
        sys.argv[:], sys.path[:] = self.arguments, self.path
        setup_globals()
        Singleton.set_state(self.state)
        config = self.context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(config):
            config.hydra.job.num, config.hydra.job.id = number, f"{config.hydra.job.name}_{number}"
        HydraConfig.instance().set_config(config)
        returned = run_job(
            hydra_context=self.context,
            task_function=self.task,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
        # without the configurations: they are large, and some of their classes cannot be pickled
        return JobReturn(overrides=overrides, status=returned.status, _return_value=returned._return_value)

    def checkpoint(self, *arguments: Any) -> Any:
        """Called by submitit when it requeues the job: the same run, which continues from its checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *arguments)


def failure(overrides: Sequence[str], error: BaseException, log: Path | str | None = None) -> JobReturn:
    """The `JobReturn` of a run that ended with this error, with the place of its log as a note."""
    if log:
        error.add_note(f"log: {log}")
    return JobReturn(overrides=overrides, status=JobStatus.FAILED, _return_value=error)


class Parallel(Launcher):
    """What the launchers share. `launch` of each does all runs and returns a `JobReturn` of each, in order."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra. Raises a SettingError within torchrun."""
        if LAUNCHED:
            name = config.hydra.runtime.choices["hydra/launcher"]
            raise SettingError(f"hydra/launcher={name}: starts processes of its own; leave it out with torchrun")
        self.context, self.task, self.config = hydra_context, task_function, config

    def start(self, runs: Sequence[Sequence[str]]) -> Job:
        """Prepare a launch of these runs."""
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        self.finished = 0
        self.names = own_overrides(runs)
        path = [os.path.abspath(folder) for folder in sys.path]
        return Job(self.context, self.task, self.config, Singleton.get_state(), sys.argv, path, os.getcwd())

    def logs(self, folder: str, how: str) -> Path:
        """A new folder for the logs of this launch, which is printed."""
        logs = Path(folder) / time.strftime("%Y-%m-%d_%H-%M-%S")
        try:
            logs.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SettingError(f"{logs}: cannot be created ({error.strerror})") from error
        print(f"{len(self.names)} runs, {how}, logs in {logs}", flush=True)
        return logs.absolute()

    def announce(self, number: int, returned: JobReturn) -> None:
        """Print a line for a run that has ended."""
        self.finished += 1
        result = returned._return_value
        if returned.status == JobStatus.COMPLETED:
            outcome = f"accuracy {result:.2%}" if isinstance(result, float) else "done"
        else:
            outcome = f"failed: {reason(result)}"
        print(f"{self.finished}/{len(self.names)}  {self.names[number]}  {outcome}", flush=True)


class JoblibLauncher(Parallel):
    """Several runs at once on this machine: joblib hands them to threads, each with a process that does the work.

    joblib's own processes all end if one of them is killed. Here the others continue.

    Args:
        n_jobs: runs at once; None: `jobs_per_gpu` per GPU, or without a GPU one per CPU core.
        jobs_per_gpu: the runs take the GPUs in turn.
        folder: of the logs, one per run in a folder per sweep.
    """

    def __init__(self, n_jobs: int | None, jobs_per_gpu: int, folder: str) -> None:
        for name, value in (("n_jobs", n_jobs), ("jobs_per_gpu", jobs_per_gpu)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise SettingError(f"hydra.launcher.{name}={value}: should be an integer of at least 1")
        self.n_jobs, self.jobs_per_gpu, self.folder = n_jobs, jobs_per_gpu, folder

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Called by Hydra."""
        import cloudpickle
        import joblib

        job = cloudpickle.dumps(self.start(job_overrides))
        gpus, cores = visible_gpus(), joblib.cpu_count()
        n = min(self.n_jobs or len(gpus) * self.jobs_per_gpu or cores, len(job_overrides))
        threads = None if gpus or "OMP_NUM_THREADS" in os.environ else max(1, cores // n)
        logs = self.logs(self.folder, f"{n} at once")
        workers = [Worker(job, gpus[i % len(gpus)] if gpus else None, threads) for i in range(n)]
        idle: Queue[Worker] = Queue()
        for worker in workers:
            idle.put(worker)

        def run(number: int, overrides: Sequence[str]) -> JobReturn:
            worker, log = idle.get(), logs / f"{number}.log"
            try:
                if stop.received:
                    return failure(overrides, SettingError("not started"))
                returned = worker.run(number, list(overrides), log)
            finally:
                idle.put(worker)
            if returned.status != JobStatus.COMPLETED:
                returned = failure(overrides, returned._return_value, log)
            self.announce(number - initial_job_idx, returned)
            return returned

        def forward() -> None:
            for worker in workers:
                worker.stop()

        # on a signal, the runs save their state and end, and no other is started
        with StopSignal(forward) as stop:
            try:
                calls = (joblib.delayed(run)(i, each) for i, each in enumerate(job_overrides, initial_job_idx))
                returns: list[JobReturn] = joblib.Parallel(n, backend="threading", batch_size=1)(calls)
            finally:
                for worker in workers:
                    worker.processes.shutdown(cancel_futures=True)
            if stop.received:
                stop.obey(stop.received)
        return returns


def visible_gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES may be set to, for one GPU each."""
    import torch

    if chosen := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return chosen.split(",")[: torch.cuda.device_count()]
    return [str(i) for i in range(torch.cuda.device_count())]


class Worker:
    """A process that does one run after another. A new one takes its place if it is killed.

    Args:
        job: a pickled `Job`.
        gpu: what it sees of the GPUs.
        threads: CPU threads of torch; None: torch's default.
    """

    def __init__(self, job: bytes, gpu: str | None, threads: int | None) -> None:
        self.settings = job, gpu, threads
        # processes are forked from one that has imported torch already
        self.fork = get_context("forkserver")
        self.fork.set_forkserver_preload(["sam_bench.train", "sam_bench.command"])
        self.start()

    def start(self) -> None:
        """Prepare a process, which starts with the next run."""
        self.processes = ProcessPoolExecutor(1, self.fork, _start, self.settings)

    def run(self, number: int, overrides: list[str], log: Path) -> JobReturn:
        """Do a run, with its output in the log."""
        try:
            return self.processes.submit(_run, number, overrides, str(log)).result()
        except BrokenProcessPool:
            self.processes.shutdown(wait=False)
            self.start()
            return failure(overrides, SettingError("its process was killed; the same command continues the run"))
        except BaseException as error:  # an exit, or what the worker could not pickle
            return failure(overrides, error)

    def stop(self) -> None:
        """Ask the present run to save its state and end."""
        for process in list((self.processes._processes or {}).values()):
            process.terminate()


_job: Callable[[int, list[str]], JobReturn]  # of a worker


def _start(job: bytes, gpu: str | None, threads: int | None) -> None:
    import torch

    global _job
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the launcher forwards it
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    if threads:
        torch.set_num_threads(threads)
    _job = pickle.loads(job)
    tqdm.set_lock(threading.RLock())  # its default is a semaphore, which a killed process would leave behind
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """If the launcher is killed, save the state of the present run and end. The process would wait forever."""
    parent = parent_process()
    assert parent
    parent.join()
    while True:
        os.kill(os.getpid(), signal.SIGTERM)  # the first one may be that of a training, which saves
        time.sleep(1)


def _run(number: int, overrides: list[str], log: str) -> JobReturn:
    with output_to(log):
        return _job(number, overrides)


@contextmanager
def output_to(log: str) -> Iterator[None]:
    """Context manager: standard output and error of this process, and of those that it starts, go to a file."""
    before = os.dup(1), os.dup(2)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.dup2(file, 1)
        os.dup2(file, 2)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for at, number in enumerate(before, 1):
            os.dup2(number, at)
            os.close(number)
        os.close(file)


class SubmititLauncher(Parallel):
    """One job of submitit per run: Slurm requeues preempted ones, which continue from their checkpoints.

    Args:
        cluster: `slurm` or `local`.
        submitit_folder: of scripts, pickles and logs.
        max_num_timeout: how often a job is requeued after its time limit.
        parameters: of `submitit.AutoExecutor.update_parameters`; those of Slurm alone without the prefix `slurm_`.
    """

    def __init__(self, cluster: str, submitit_folder: str, max_num_timeout: int = 0, **parameters: Any) -> None:
        self.cluster, self.folder, self.max_num_timeout = cluster, submitit_folder, max_num_timeout
        self.parameters = {
            name: OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
            for name, value in parameters.items()
            if value is not None
        }

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Called by Hydra."""
        try:
            import submitit
        except ImportError as error:
            raise SettingError(
                f"hydra/launcher=submitit_{self.cluster}: submitit is not installed; pip install submitit, or choose "
                "hydra/launcher=joblib"
            ) from error
        job = self.start(job_overrides)
        try:
            executor = submitit.AutoExecutor(
                self.folder, cluster=self.cluster, **{f"{self.cluster}_max_num_timeout": self.max_num_timeout}
            )
            valid = submitit.AutoExecutor._typed_parameters()
            executor.update_parameters(
                **{name if name in valid else f"{self.cluster}_{name}": v for name, v in self.parameters.items()}
            )
            numbers = range(initial_job_idx, initial_job_idx + len(job_overrides))
            jobs = executor.map_array(job, numbers, [list(each) for each in job_overrides])
        except (RuntimeError, TypeError, ValueError, NameError, submitit.core.utils.FailedJobError) as error:
            raise SettingError(f"hydra/launcher: {reason(error)}") from error
        ends = "scancel" if self.cluster == "slurm" else "kill"
        print(
            f"{len(jobs)} jobs, {jobs[0].job_id} to {jobs[-1].job_id}; they continue if this command ends ({ends} "
            f"ends them); logs in {jobs[0].paths.folder.parent}",
            flush=True,
        )
        returns: dict[int, JobReturn] = {}
        looked, queued = time.monotonic(), set()
        while len(returns) < len(jobs):
            if self.cluster == "slurm" and time.monotonic() - looked > QUEUE_SECONDS:
                looked, queued = time.monotonic(), slurm_queue(jobs)
                gone = [i for i, each in enumerate(jobs) if each.job_id not in queued]
            elif self.cluster == "local":
                gone = [i for i, each in enumerate(jobs) if each.done()]
            else:
                gone = []
            for i, each in enumerate(jobs):
                if i not in returns and (i in gone or each.paths.result_pickle.exists()):
                    returns[i] = self.result(each, job_overrides[i])
                    self.announce(i, returns[i])
            time.sleep(0.5)
        return [returns[i] for i in range(len(jobs))]

    def result(self, job: Any, overrides: Sequence[str]) -> JobReturn:
        """What a job that has ended returned, or how it failed."""
        log = job.paths.stdout if self.parameters.get("stderr_to_stdout") else job.paths.stderr
        job._results_timeout_s = 2  # for a slow file system
        try:
            _, returned = job._get_outcome_and_result()
        except Exception:  # submitit's text holds the whole log
            why = "ended without a result: cancelled, killed, out of time or memory; the same command continues it"
            return failure(overrides, SettingError(why), log)
        if isinstance(returned, JobReturn) and returned.status == JobStatus.COMPLETED:
            return returned
        error = returned._return_value if isinstance(returned, JobReturn) else SettingError(last_line(str(returned)))
        return failure(overrides, error, log)


def slurm_queue(jobs: Sequence[Any]) -> set[str]:
    """Those of the jobs that wait or run, requeued ones too. Not every cluster has accounting, which submitit asks."""
    arrays = sorted({job.job_id.partition("_")[0] for job in jobs})
    command = ["squeue", "--noheader", "--array", "--format=%i", f"--jobs={','.join(arrays)}"]
    listed = subprocess.run(command, capture_output=True, text=True)
    if listed.returncode and "Invalid job id" not in listed.stderr:  # Slurm does not answer: they may all be there
        return {job.job_id for job in jobs}
    return set(listed.stdout.split())


def last_line(text: str) -> str:
    """The last line of a traceback."""
    return text.strip().splitlines()[-1] if text.strip() else "no message"


class RayLauncher(Parallel):
    """One Ray task per run. Ray itself repeats a run whose process dies (`max_retries`), which then continues.

    Args:
        ray: `init` and `remote`, the arguments of `ray.init` and `ray.remote`.
        folder: of the logs, one per run in a folder per sweep; all machines need to see it.
    """

    def __init__(self, ray: DictConfig, folder: str) -> None:
        settings: Any = OmegaConf.to_container(ray, resolve=True)
        self.folder = folder
        self.init, self.remote = (
            {name: value for name, value in settings[part].items() if value is not None} for part in ("init", "remote")
        )

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Called by Hydra."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError as error:
            raise SettingError(
                "hydra/launcher=ray: Ray is not installed; pip install ray, or choose hydra/launcher=joblib"
            ) from error
        job = self.start(job_overrides)
        if is_ours := not ray.is_initialized():
            ray.init(**self.init)
        logs = self.logs(self.folder, "one Ray task each")
        try:
            shared = ray.put(job)
            task = ray.remote(_run_in_ray).options(**self.remote)
            waiting = {
                task.remote(shared, number, list(overrides), str(logs / f"{number}.log")): number
                for number, overrides in enumerate(job_overrides, initial_job_idx)
            }
            returns: dict[int, JobReturn] = {}
            while waiting:
                (done, *_), _ = ray.wait(list(waiting))
                i = waiting.pop(done) - initial_job_idx
                try:
                    returned = ray.get(done)
                except Exception as error:  # the process died more than `max_retries` times
                    returned = failure(job_overrides[i], SettingError(f"its process ended: {last_line(str(error))}"))
                if returned.status != JobStatus.COMPLETED:
                    returned = failure(job_overrides[i], returned._return_value, logs / f"{i + initial_job_idx}.log")
                returns[i] = returned
                self.announce(i, returned)
        finally:
            if is_ours:
                ray.shutdown()
        return [returns[i] for i in range(len(job_overrides))]


def _run_in_ray(job: Job, number: int, overrides: list[str], log: str) -> JobReturn:
    with output_to(log):
        return job(number, overrides)
