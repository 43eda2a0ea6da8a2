"""python -m sam_bench.sharpness RUN ...: measure finished runs from their last checkpoints, see `sam_bench.curvature`.

The measures go into `result.json`. `sharpness=cheap|full` takes them at the end of a training.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from sam_bench import checkpoint, curvature, machine, results
from sam_bench.errors import SettingError, reason
from sam_bench.run import Run
from sam_bench.settings import Settings


def add_to_result(settings: Settings, kind: str) -> dict[str, Any]:
    """Measure a finished run from its last checkpoint and write its result again; returns the result.

    A run that has been measured, in this way or more fully, is left as it is. Raises a SettingError if the run is not
    finished, its checkpoint is not there any more, or another process uses the run folder.
    """
    result = results.read_of(settings)
    if result is None:
        raise SettingError(f"{settings.folder}: is not finished; its sharpness is that of the last weights")
    if results.has_sharpness(result, kind):
        return result
    last = checkpoint.load(settings.folder / "last.pt", settings.config_hash, settings.seed)
    if last is None:
        raise SettingError(f"{settings.folder}: has no last.pt; give another runs=FOLDER to train it again")
    if "shards" in last:
        raise SettingError(
            f"{settings.folder}: was trained with trainer.fsdp=true; sharpness needs weights that are not sharded"
        )
    device = machine.pick_device(settings.trainer.device)
    run = Run(settings, device)  # of which only the model and the data are used
    run.model.load_state_dict(last["model"])
    try:
        with FileLock(settings.folder / ".lock", timeout=1):
            measures = curvature.measure(run.model, *curvature.sample(run.dataset, kind), kind)
            result = {**result, "sharpness": measures}
            results.write_result(settings.folder, result)
    except Timeout as error:
        raise SettingError(f"{settings.folder}: another process uses this run folder") from error
    return result


def shown(result: dict[str, Any]) -> str:
    """The measures of a run in one line."""
    found = result["sharpness"]
    return (
        f"λ max {found['lambda_max']:.4g}  trace {found['trace']:.4g} ± {found['trace_error']:.2g}  "
        f"loss rise {found['loss_rise']:.4g}  m-sharpness {found['m_sharpness']:.4g}  "
        f"adaptive {found['adaptive_sharpness']:.4g}  ({found['kind']}, {found['images']} images)"
    )


def settings_in(folder: Path) -> Settings:
    """The settings in a run folder. Raises a SettingError if it is none."""
    folder = folder.resolve()
    path = folder / "config.yaml"
    try:
        values = yaml.safe_load(path.read_text())
        settings = Settings.model_validate({**values, "runs": folder.parent.parent})
    except (OSError, ValueError, TypeError, yaml.YAMLError, RecursionError) as error:
        raise SettingError(f"{folder}: is not a run folder ({reason(error)}); give runs/CELL/seed-N") from error
    if settings.folder != folder:
        raise SettingError(f"{folder}: has the settings of another run, {settings.folder}")
    return settings


def main(arguments: list[str]) -> None:
    """Measure run folders."""
    parser = argparse.ArgumentParser(
        prog="python -m sam_bench.sharpness",
        description=f"{__doc__}\n{curvature.__doc__}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, runs/CELL/seed-N")
    parser.add_argument(
        "--kind", choices=list(curvature.EFFORTS), default="cheap", help="cheap; or full, with loss surfaces"
    )
    given = parser.parse_args(arguments)
    failed = False
    for folder in given.runs:
        try:
            print(f"{folder}  {shown(add_to_result(settings_in(folder), given.kind))}")
        except (SettingError, RuntimeError) as error:
            line = error if isinstance(error, SettingError) else f"{folder}: {reason(error)}"
            print(f"error: {line}", file=sys.stderr)
            failed = True
    if failed:
        sys.exit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
