"""How the configuration of a run is composed. Imports no torch."""

import argparse
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf, open_dict

from sam_bench import tuning
from sam_bench.conf_files import CONF, group_files, optimizer_files, own_settings, wraps_a_method
from sam_bench.errors import SettingError
from sam_bench.settings import Settings, is_base_alone


def leave_out_where_absent(
    config: DictConfig, choices: Mapping[str, Any], overrides: list[str], folders: list[Path]
) -> list[str]:
    """In a sweep, `++optimizer.rho=0.1` applies only to runs that have this setting. Remove it from the others.

    It is removed only if another file of its group has it. A misspelled setting stays and is refused.

    Args:
        config: of one run of a sweep, from which it is removed.
        choices: the chosen files of that run, `hydra.runtime.choices`.
        overrides: of that run.
        folders: of configurations, the user's own first.

    Returns:
        One line for each setting that was left out.
    """
    lines = []
    for override in overrides:
        name, _, value = override.removeprefix("++").partition("=")
        group, setting = _split(name, folders)
        if not override.startswith("++") or not group:
            continue
        chosen, files = choices.get(group.replace(".", "/")), group_files(group, folders)
        if _has(files.get(chosen, {}), setting) or not any(_has(file, setting) for file in files.values()):
            continue
        path = name.split(".")
        with open_dict(config):
            while path:  # and the groups that this override made
                within = OmegaConf.select(config, ".".join(path[:-1])) if path[:-1] else config
                del within[path.pop()]
                if within:
                    break
        lines.append(f"{name}={value} is ignored: {group}={chosen or 'none'} has no such setting")
    return lines


def _split(name: str, folders: list[Path]) -> tuple[str, str]:
    """A dotted name as the innermost group that has files and the setting in it; no group for `seed`."""
    parts = name.split(".")
    for n in range(len(parts) - 1, 0, -1):
        folder = "optimizer" if parts[:n] == ["optimizer", "inner"] else "/".join(parts[:n])
        if any((conf / folder).is_dir() for conf in folders):
            return ".".join(parts[:n]), ".".join(parts[n:])
    return "", name


def _has(settings: Any, name: str) -> bool:
    for key in name.split("."):
        if not isinstance(settings, dict) or key not in settings:
            return False
        settings = settings[key]
    return True


def store_inner_methods(conf: Path) -> None:
    """Make `optimizer/inner=NAME` the settings of conf/optimizer/NAME.yaml without its base, so one file serves both.

    Excluded: methods that wrap another method, plain base optimizers, and methods that configure their base.
    """
    mine = optimizer_files(conf)
    files = mine if conf == CONF else optimizer_files(CONF) | mine
    for name, settings in mine.items():
        own = own_settings(settings, files)
        if not wraps_a_method(settings) and not is_base_alone(own.get("_target_", "")) and "base" not in settings:
            ConfigStore.instance().store(name, own, group="optimizer/inner")


def flags_first(arguments: list[str]) -> list[str]:
    """The command line with Hydra's flags before the settings, as its parser needs them.

    Raises a SettingError for an unknown or incomplete flag.
    """
    settings = overrides_in(arguments)
    return [each for each in arguments if each not in settings] + settings


def overrides_in(arguments: list[str]) -> list[str]:
    """The command line without Hydra's flags. Raises a SettingError for an unknown or incomplete flag."""
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise SettingError(message)

    parser.error = refuse  # type: ignore[method-assign]  # which would print the usage
    known, further = parser.parse_known_args(arguments)
    if unknown := [each for each in further if each.startswith("-")]:
        raise SettingError(f"{unknown[0]}: no such flag; --help lists them")
    return [*known.overrides, *further]


def config_dir(arguments: list[str]) -> Path | None:
    """The user's own folder of configurations on a command line, which Hydra adds to its search path."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd", type=Path)
    return parser.parse_known_args(arguments)[0].config_dir


def settings_of_run(
    config: DictConfig, choices: Mapping[str, Any], overrides: list[str], folders: list[Path], in_sweep: bool
) -> tuple[Settings, list[str]]:
    """The checked settings of a run, and one line for each override that it leaves out.

    Args:
        config: composed, without `hydra`; it is changed.
        choices: the chosen files, `hydra.runtime.choices`.
        overrides: of this run.
        folders: of configurations, the user's own first.
        in_sweep: whether `++NAME=VALUE` is left out where there is no such setting.

    Raises:
        SettingError: a setting is wrong.
    """
    notes = leave_out_where_absent(config, choices, overrides, folders) if in_sweep else []
    left_out = {note.partition(" ")[0] for note in notes}
    own = [each.lstrip("+") for each in overrides if each.lstrip("+").startswith("optimizer.")]
    stated = [each for each in own if not each.startswith(("optimizer.base.", "optimizer.schedule."))]
    if "tuned" in config:
        notes += tuning.apply(config, choices, overrides)
    settings = Settings.of(config, choices)
    # without the folders of this machine, and without what only other runs of the sweep take
    unused = left_out | {each.lstrip("+") for each in unused_schedule(settings, overrides, folders)}
    given = [each for each in overrides if not each.startswith(("runs=", "dataset.root="))]
    command = shlex.join(["python", "-m", "sam_bench", *(each for each in given if each.lstrip("+") not in unused)])
    return settings.model_copy(
        update={"stated": [each for each in stated if each not in left_out], "command": command}
    ), notes


def unused_schedule(settings: Settings, overrides: list[str], folders: list[Path]) -> list[str]:
    """The overrides of a schedule that the method does not take.

    Raises a SettingError for a setting that no schedule has.
    """
    if settings.optimizer.schedule and settings.optimizer.schedule._group:
        return []
    found = [each for each in overrides if re.match(r"[+~]*schedule\b", each)]
    for override in found:
        setting = override.lstrip("+~").partition("=")[0].partition(".")[2]
        if setting and not any(setting in file for file in group_files("schedule", folders).values()):
            raise SettingError(f"schedule.{setting}: no schedule has such a setting")
    return found


def folders_of(arguments: list[str]) -> list[Path]:
    """The folders of configurations of a command line, the user's own first."""
    own = config_dir(arguments)
    return [own, CONF] if own else [CONF]


def compose_settings(*overrides: str) -> Settings:
    """The settings that `python -m sam_bench OVERRIDES` would train. Raises a SettingError if a setting is wrong."""
    store_inner_methods(CONF)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", list(overrides), return_hydra_config=True)
    return settings_of_run(without_hydra(config), config.hydra.runtime.choices, list(overrides), [CONF], False)[0]


def without_hydra(config: DictConfig) -> DictConfig:
    """A composed configuration without its node `hydra`."""
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
