"""The sweeper of sam_bench: Hydra's own, with experiments and protocols, see `sam_bench.sweep`.

Hydra loads sweepers from the namespace package `hydra_plugins` alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from sam_bench.errors import SettingError
from sam_bench.sweep import but_seed, runs_of


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
        first_seeds = {but_seed(run): run for run in reversed(runs)}
        self.validate_batch_is_legal(list(first_seeds.values()))  # before the first one is trained
        returns = self.launcher.launch(runs, initial_job_idx=0)
        for each in returns:
            _ = each.return_value  # raises what the job raised
        return returns
