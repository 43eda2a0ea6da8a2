"""The one trainer entry point: python -m sam_bench optimizer=rst schedule=linear."""

import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from sam_bench import results
from sam_bench.errors import SettingError
from sam_bench.settings import Settings

HERE = Path(__file__).resolve().parent
CONF = HERE / "conf" if (HERE / "conf").is_dir() else HERE.parent / "conf"  # in a wheel, in a checkout
_failures: list[str] = []


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def run(config: DictConfig) -> float | None:
    """One run: train it, or say what it gave when it was trained. Returns its test accuracy."""
    try:
        settings = Settings.of(config)
        print(f"run folder: {settings.folder}", flush=True)
        result = results.read(settings.folder)
        if result is None:
            from sam_bench.train import train  # torch and timm take seconds; a wrong setting is answered before

            result = train(settings)
        else:
            print("finished before:")
        print(results.table(result), flush=True)
        return result["test_accuracy"]
    except SettingError as error:
        print(f"error: {error}", file=sys.stderr)
        if HydraConfig.get().mode == RunMode.RUN:
            sys.exit(2)
        _failures.append(str(error))  # the other runs of a sweep go on
        return None


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
