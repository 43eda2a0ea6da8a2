"""The one trainer entry point: python -m sam_bench optimizer=rst schedule=linear."""

import atexit
import os
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from sam_bench import results
from sam_bench.errors import SettingError
from sam_bench.methods import METHODS
from sam_bench.settings import Settings

HERE = Path(__file__).resolve().parent
CONF: Path = HERE / "conf" if (HERE / "conf").is_dir() else HERE.parent / "conf"  # in a wheel, in a checkout
_failures: list[str] = []

# optimizer/inner=NAME: the settings of conf/optimizer/NAME.yaml without a base, so that a method has one file for both
for _name, _method in METHODS.items():
    if _method.kind in ("inner", "alone"):
        _settings: Any = OmegaConf.load(CONF / "optimizer" / f"{_name}.yaml")
        _own = {key: value for key, value in _settings.items() if key not in ("defaults", "base")}
        ConfigStore.instance().store(_name, _own, group="optimizer/inner")


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def run(config: DictConfig) -> float | None:
    """One setting: train it, or say what it gave when it was trained. Returns its mean test accuracy."""
    try:
        given, unfinished = [], []
        settings = Settings.of(config)
        say_what_is_ignored(settings)
        for one in settings.each_seed():
            print(f"run folder: {one.folder}", flush=True)
            if result := results.read(one.folder):
                print(f"finished before{results.by_other_code(result)}:\n{results.table(result)}", flush=True)
                given.append(result)
            else:
                unfinished.append(one)
        if unfinished:
            from sam_bench.train import train  # torch and timm take seconds; a wrong setting is answered before

            for result in train(unfinished):
                print(results.table(result), flush=True)
                given.append(result)
        return sum(result["test_accuracy"] for result in given) / len(given)
    except SettingError as error:
        print(f"error: {error}", file=sys.stderr)
        if HydraConfig.get().mode == RunMode.RUN:
            sys.exit(2)
        _failures.append(str(error))  # the other runs of a sweep go on
        return None


def say_what_is_ignored(settings: Settings) -> None:
    """A schedule that was asked for and that the method does not take; in a sweep it is for others."""
    name = settings.optimizer.name
    if HydraConfig.get().mode == RunMode.RUN and (settings.schedule is None or name == "late_sam"):
        for override in HydraConfig.get().overrides.task:
            if override.lstrip("+").startswith("schedule"):
                print(f"{override} has no effect: optimizer={name} does not take it")


def main() -> None:
    """Run; exit with 2 if any run was refused or failed."""
    try:
        run()
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from the last epoch", file=sys.stderr)
        sys.exit(130)
    if _failures:
        sys.exit(2)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    sys.stderr.flush()
    atexit._run_exitfuncs()
    os._exit(0)  # everything is written; to take torch's modules apart one by one would take 1.5 s more
