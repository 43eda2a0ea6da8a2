"""The one trainer entry point: python -m sam_bench optimizer=rst schedule=linear."""

import atexit
import os
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from sam_bench import results
from sam_bench.configuration import CONF, config_dir, store_inner_methods
from sam_bench.errors import SettingError
from sam_bench.settings import Settings

_failures: list[str] = []


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def run(config: DictConfig) -> float | None:
    """Train one setting, or print the result if it was trained before. Returns the mean test accuracy of its seeds."""
    try:
        finished, unfinished = [], []
        settings = Settings.of(config, HydraConfig.get().runtime.choices)
        print_ignored_schedule(config)
        for one in settings.each_seed():
            print(f"run folder: {one.folder}", flush=True)
            if result := results.read(one.folder):
                print(f"finished before{results.by_other_code(result)}:\n{results.table(result)}", flush=True)
                finished.append(result)
            else:
                unfinished.append(one)
        if unfinished:
            from sam_bench import machine  # torch takes seconds; a wrong name is answered before
            from sam_bench.train import train

            if settings.trainer.compile is not True:
                machine.leave_compiler_unimported()
            for result in train(unfinished):
                print(results.table(result), flush=True)
                finished.append(result)
        return sum(result["test_accuracy"] for result in finished) / len(finished)
    except SettingError as error:
        print(f"error: {error}", file=sys.stderr)
        if HydraConfig.get().mode == RunMode.RUN:
            sys.exit(2)
        _failures.append(str(error))  # the other runs of a sweep continue
        return None


def print_ignored_schedule(config: DictConfig) -> None:
    """Name a schedule that was asked for and that the method does not use. In a sweep it is meant for others."""
    takes_it = "schedule" in config.optimizer and OmegaConf.is_interpolation(config.optimizer, "schedule")
    if HydraConfig.get().mode == RunMode.RUN and not takes_it:
        for override in HydraConfig.get().overrides.task:
            if override.lstrip("+").startswith("schedule"):
                name = HydraConfig.get().runtime.choices.get("optimizer")
                print(f"{override} has no effect: optimizer={name} does not take it")


def main() -> None:
    """Run; exit with 2 if any run was refused or failed."""
    store_inner_methods(CONF)
    if own := config_dir(sys.argv[1:]):
        store_inner_methods(own)
    try:
        run()
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    if _failures:
        sys.exit(2)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    sys.stderr.flush()
    atexit._run_exitfuncs()
    os._exit(0)  # everything is written; deleting torch's modules one by one would take 1.5 s more
