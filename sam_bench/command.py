"""What `python -m sam_bench` and `sam-bench` do: train one setting or a sweep."""

import atexit
import os
import sys
import traceback
from contextlib import nullcontext, redirect_stdout
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from sam_bench import hydra_errors, ranks, results
from sam_bench.conf_files import CONF
from sam_bench.configuration import flags_first, folders_of, settings_of_run, store_inner_methods, unused_schedule
from sam_bench.data.listing import list_images
from sam_bench.errors import FailedRuns, SettingError, reason
from sam_bench.settings import Settings

_started = False  # whether Hydra has accepted the command line


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def run(config: DictConfig) -> float:
    """Train one setting, or print the result if it was trained before.

    Returns the mean accuracy of its seeds, on the validation set if there is one, which a sweeper may maximize.
    """
    global _started
    _started = True
    try:
        finished, unfinished = [], []
        job = HydraConfig.get()
        overrides: Any = OmegaConf.to_container(job.overrides.task, resolve=False)
        in_sweep = job.mode == RunMode.MULTIRUN
        settings, notes = settings_of_run(config, job.runtime.choices, overrides, folders_of(sys.argv[1:]), in_sweep)
        for note in notes:
            print(note)
        unused = unused_schedule(settings, overrides, folders_of(sys.argv[1:]))
        if not in_sweep:
            refuse_without_effect(config, settings, overrides, unused)
        for override in unused:
            print(f"{override} is ignored: optimizer={job.runtime.choices.get('optimizer')} takes no schedule")
        for one in settings.each_seed():
            print(f"run folder: {one.folder}", flush=True)
            if result := results.read_of(one):
                if not results.has_sharpness(result, settings.sharpness):
                    result = measured(one, result)
                print(f"finished before{results.by_other_code(result)}:\n{results.table(result)}", flush=True)
                finished.append(result)
            else:
                unfinished.append(one)
        if unfinished:
            from sam_bench import machine  # importing torch takes seconds; wrong names are reported before
            from sam_bench.train import train

            if settings.trainer.compile is not True:
                machine.leave_compiler_unimported()
            for result in train(unfinished):
                print(results.table(result), flush=True)
                finished.append(result)
        validated = all(result.get("validation_accuracy") is not None for result in finished)
        part = "validation" if validated else "test"
        return sum(result[f"{part}_accuracy"] for result in finished) / len(finished)
    except SettingError as error:
        if ranks.may_report():
            print(f"error: {error}", file=sys.stderr)
        if HydraConfig.get().mode == RunMode.RUN:
            sys.exit(2)
        raise  # the sweeper names it after the other runs
    except Exception:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            traceback.print_exc()  # a fault of the program, of which the sweeper has only the last line
        raise


def measured(settings: Settings, result: dict[str, Any]) -> dict[str, Any]:
    """The result of a finished run with its sharpness, or as it was, with a warning."""
    from sam_bench import sharpness

    try:
        return sharpness.add_to_result(settings, settings.sharpness)
    except (SettingError, RuntimeError) as error:
        print(f"warning: sharpness={settings.sharpness}: {reason(error)}", file=sys.stderr)
        return result


def refuse_without_effect(config: DictConfig, settings: Settings, overrides: list[str], unused: list[str]) -> None:
    """Raise a SettingError for a schedule that the method does not take, or a value for another data set.

    In a sweep, such values may be meant for other runs.
    """
    dataset = settings.dataset.name
    for override in unused:
        optimizer = HydraConfig.get().runtime.choices.get("optimizer")
        raise SettingError(
            f"{override}: has no effect, optimizer={optimizer} does not take it; choose rst, grst or rst_s2sam"
        )
    for override in overrides:
        name = override.lstrip("+~").partition("=")[0]
        setting, _, of_dataset = name.rpartition(".")
        values = OmegaConf.select(config, setting) if setting else None
        if isinstance(values, DictConfig) and "cifar10" in values:
            used = dataset if dataset in values else "cifar10"
            if of_dataset != used:
                raise SettingError(f"{override}: has no effect, dataset={dataset} has the value of {used}")


def main() -> None:
    """Run; exit with 2 if any run was refused or failed."""
    global _started
    _started = False
    list_images.cache_clear()  # the folder may have changed
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its errors, where it would print many lines
    try:
        sys.argv[1:] = flags_first(sys.argv[1:])
        for folder in folders_of(sys.argv[1:]):
            store_inner_methods(folder)
        run()
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    except FailedRuns as error:
        if str(error):
            ranks.let_the_first_print()
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        if _started or before == "1":
            raise  # a fault of the program
        line = error if isinstance(error, SettingError) else hydra_errors.one_line(error, sys.argv[1:])
        ranks.let_the_first_print()
        print(f"error: {line}", file=sys.stderr)
        sys.exit(2)
    finally:
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before


def console() -> None:
    """Run as a process of its own: `python -m sam_bench` and `sam-bench`. Of several ranks, the first one prints."""
    status: Any = 0
    try:
        with open(os.devnull, "w") if ranks.RANK else nullcontext(sys.stdout) as out, redirect_stdout(out):
            main()
    except SystemExit as stop:
        if not ranks.LAUNCHED:
            raise
        status = stop.code  # without a wait for the other ranks, which may have ended
    sys.stdout.flush()
    sys.stderr.flush()
    atexit._run_exitfuncs()
    os._exit(status)  # everything is written; deleting torch's modules one by one would take 1.5 s more
