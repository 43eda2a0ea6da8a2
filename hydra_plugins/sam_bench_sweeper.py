"""The sweeper of sam_bench: Hydra's own, with experiments and protocols, see `sam_bench.sweep`.

Hydra loads sweepers from the namespace package `hydra_plugins` alone.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from sam_bench import results
from sam_bench.configuration import folders_of
from sam_bench.errors import FailedRuns, SettingError, reason
from sam_bench.sweep import own_overrides, runs_of, settings_of_runs


@dataclass
class SweeperSettings:
    """`hydra.sweeper`."""

    _target_: str = "hydra_plugins.sam_bench_sweeper.ExperimentSweeper"
    params: Any = None  # as of Hydra's basic sweeper: one product
    rows: Any = None  # what an experiment compares
    scale: Any = None  # of a protocol
    paper: Any = None  # the scales of an experiment, instead of the protocol's
    cpu: Any = None
    smoke: Any = None
    folder: str | None = None  # run folders are in FOLDER/EXPERIMENT/


ConfigStore.instance().store(group="hydra/sweeper", name="sam_bench", node=SweeperSettings, provider="sam_bench")


class ExperimentSweeper(Sweeper):
    """Hands all runs of a sweep to the launcher."""

    def __init__(self, **settings: Any) -> None:
        self.launcher: Launcher | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra."""
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Sequence[JobReturn]:
        """Called by Hydra with the overrides of the command line."""
        assert self.launcher is not None
        assert self.hydra_context is not None
        assert self.config is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        hydra = self.config.hydra
        runs = runs_of(hydra.sweeper, hydra.runtime.choices, arguments, parser)
        if not runs:
            raise SettingError("-m: a list of this sweep is empty, so there is nothing to train")
        runs = self.remaining(runs)
        if not runs:
            return []
        returns = self.launcher.launch(runs, initial_job_idx=0)
        lines = []
        for name, each in zip(own_overrides(runs), returns, strict=True):
            if each.status != JobStatus.COMPLETED:
                error: Any = each._return_value
                where = "".join(f"; {note}" for note in getattr(error, "__notes__", []))
                lines.append(f"\n  {name}: {reason(error)}{where}")
        if len(lines) == len(runs) == 1 and isinstance(self.launcher, BasicLauncher):
            raise FailedRuns  # it has printed the same
        if lines:
            raise FailedRuns(f"{len(lines)} of {len(runs)} runs failed; the others are done:{''.join(lines)}")
        return returns

    def remaining(self, runs: list[list[str]]) -> list[list[str]]:
        """Each run once: SGD under several schedules is one run. A launcher of processes gets no finished ones."""
        assert self.hydra_context is not None
        assert self.config is not None
        distinct: dict[tuple[Any, ...], list[str]] = {}
        finished: list[list[str]] = []
        loader, folders = self.hydra_context.config_loader, folders_of(sys.argv[1:])
        for run, settings in settings_of_runs(loader, self.config, runs, folders):
            if isinstance(settings, SettingError):  # refused in its turn, so that the others are trained
                distinct.setdefault(tuple(run), run)
                continue
            seeds = settings.each_seed()
            first = distinct.setdefault(tuple(one.folder for one in seeds), run)
            in_processes = not isinstance(self.launcher, BasicLauncher)  # which prints the tables of finished ones
            if first is run and in_processes and all(map(results.is_finished, seeds)):
                finished.append(run)
        if same := len(runs) - len(distinct):
            print(f"{same} of {len(runs)} runs have the settings of another one", flush=True)
        if finished:
            print(f"{len(finished)} of {len(distinct)} runs are finished", flush=True)
        return [run for run in distinct.values() if run not in finished]
