"""`+tuned=NAME` applies what `python -m sam_bench.choose` chose on a validation set. Imports no torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf, open_dict

from sam_bench.errors import SettingError, did_you_mean, reason

HERE = Path(__file__).resolve().parent
FOLDER = Path("experiments", "tuning")  # here, or where the package has its experiments


def apply(config: DictConfig, choices: Mapping[str, Any], overrides: list[str]) -> None:
    """Set what the tuning that `config.tuned` names chose for this optimizer, except for what is overridden.

    Raises a SettingError if there is no such tuning, or it has no settings for the optimizer.
    """
    name = str(config.tuned)
    path, methods = read(name)
    method = method_name(choices.get("optimizer"), choices.get("optimizer/inner"))
    if method not in methods:
        raise SettingError(f"tuned={name}: {path} has no settings for {method}; it has {', '.join(methods)}")
    overridden = {override.lstrip("+~").partition("=")[0] for override in overrides}
    for setting, value in methods[method]["settings"].items():
        if setting not in overridden:
            with open_dict(config):
                OmegaConf.update(config, setting, value)


def method_name(optimizer: str | None, inner: str | None) -> str:
    """The name of a method in a tuning: RST over SAM is `rst`, over ASAM `rst/asam`."""
    return f"{optimizer}/{inner}" if inner not in (None, "sam") else str(optimizer)


def read(name: str) -> tuple[Path, dict[str, dict[str, Any]]]:
    """The file of a tuning, by its name or path, and its methods. Raises a SettingError if there is none."""
    folders = [FOLDER, HERE / "experiments" / "tuning", HERE.parent / FOLDER]
    named = Path(name) if name.endswith(".yaml") else None
    paths = [named] if named else [folder / f"{name}.yaml" for folder in folders]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        known = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
        raise SettingError(
            f"tuned={name}: no such tuning{did_you_mean(name, known)}; choose {', '.join(known) or 'a file'}, "
            "which python -m sam_bench.choose writes"
        )
    try:
        methods = yaml.safe_load(path.read_text())["methods"]
        for each in methods.values():
            dict(each["settings"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise SettingError(f"tuned={name}: {path} is not a tuning ({reason(error)})") from error
    return path, methods
