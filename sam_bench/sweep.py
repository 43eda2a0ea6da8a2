"""What a sweep trains, as lists of overrides. Used by Hydra's sweeper and by `sam_bench.status`. Imports no torch.

An experiment lists `rows`, the methods that it compares. A protocol lists the `scale`: models, data, epochs, seeds.
A sweep trains every row at every scale. Both are products or lists of products, such as

    rows:
      - {optimizer: [sgd, sam]}
      - {optimizer: rst, schedule: constant, schedule.p: [0.25, 0.5]}
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from sam_bench.configuration import settings_of_run, without_hydra
from sam_bench.errors import SettingError
from sam_bench.settings import SEEDS, Settings

SEED = re.compile(r"seed=(\d+)")
PROTOCOLS = ("paper", "cpu", "smoke")
Overrides = dict[str, str]  # of one run, keyed by setting or group


def runs_of(
    sweeper: DictConfig, choices: Mapping[str, Any], arguments: list[str], parser: OverridesParser
) -> list[list[str]]:
    """The overrides of each run of a sweep, without duplicates.

    Later ones replace earlier ones: rows, scale, arguments. But an argument with a value that some of the runs have
    selects those runs: `optimizer=sam` trains the rows of SAM.

    Args:
        sweeper: `hydra.sweeper`.
        choices: the chosen files, `hydra.runtime.choices`.
        arguments: the overrides of the command line.
        parser: of overrides.

    Raises:
        SettingError: the experiment needs a protocol, lacks the chosen one, or is not written as above.
    """
    settings: Any = OmegaConf.to_container(sweeper, resolve=True)
    for override in parser.parse_overrides(arguments):
        if _name(override) in ("experiment", "protocol") and override.is_sweep_override():
            raise SettingError(f"{override.input_line}: give one {_name(override)} at a time")
    experiment, protocol = choices.get("experiment"), choices.get("protocol")
    scales = {name: settings.get(name) for name in PROTOCOLS if settings.get(name)}
    available = ", ".join(name for name in PROTOCOLS if name != "paper" or name in scales)
    if scales and not protocol:
        raise SettingError(f"protocol: experiment={experiment} needs one; choose {available}")
    scale = scales.get(protocol or "") or settings.get("scale")
    if protocol and not scale:
        raise SettingError(
            f"protocol={protocol}: experiment={experiment or 'none'} has no such scale; choose {available}"
        )
    rows = settings.get("rows") or settings.get("params")
    for name, products in (("rows", rows), (f"the scale of protocol={protocol}", scale)):
        if not all(isinstance(each, dict) for each in (products if isinstance(products, list) else [products or {}])):
            raise SettingError(
                f"experiment={experiment}: hydra.sweeper: {name} should be a dictionary of settings, or a list of them"
            )
    runs: list[Overrides] = [{**row, **at} for at in _products(scale, parser) for row in _products(rows, parser)]
    seeds = list(dict.fromkeys(run.get("seed", "") for run in runs))
    runs.sort(key=lambda run: seeds.index(run.get("seed", "")))  # a sweep that is stopped early has whole tables
    if experiment and (folder := settings.get("folder")):
        runs = [{"runs": f"runs={folder}/{experiment}", **run} for run in runs]
    for override in parser.parse_overrides(arguments):
        runs = _select_or_replace(runs, override, parser)
    return [list(run) for run in dict.fromkeys(tuple(run.values()) for run in runs)]


def but_seed(run: Sequence[str]) -> tuple[str, ...]:
    """The overrides of a run without its seed, on which no other setting depends."""
    return tuple(each for each in run if not SEED.fullmatch(each))


def own_overrides(runs: Sequence[Sequence[str]]) -> list[str]:
    """The name of each run within its sweep: its overrides that not all runs have."""
    common = set.intersection(*map(set, runs)) if len(runs) > 1 else set()
    return [" ".join(each for each in run if each not in common) for run in runs]


def settings_of_runs(
    loader: ConfigLoader, master: DictConfig, runs: Iterable[list[str]], folders: list[Path]
) -> Iterator[tuple[list[str], Settings | SettingError]]:
    """Each run with its checked settings, or with what is wrong with them.

    Hydra composes the seeds of a setting once, since nothing else in them differs.

    Args:
        loader: Hydra's.
        master: the configuration of the sweep.
        runs: overrides, as `runs_of` returns them.
        folders: of configurations, the user's own first.
    """
    composed: dict[Any, Settings] = {}  # of one seed; the others differ in nothing else
    for run in runs:
        setting = but_seed(run)
        try:
            if setting not in composed:
                config = loader.load_sweep_config(master, run)
                choices = config.hydra.runtime.choices
                composed[setting], _ = settings_of_run(without_hydra(config), choices, run, folders, True)
            settings = composed[setting]
            if seed := next(filter(None, map(SEED.fullmatch, run)), None):
                if int(seed[1]) + settings.trainer.seeds > SEEDS:
                    raise SettingError(f"{seed[0]}: should be at most {SEEDS - settings.trainer.seeds}")
                settings = settings.model_copy(update={"seed": int(seed[1])})
            yield run, settings
        except SettingError as error:
            yield run, error


def _products(products: Any, parser: OverridesParser) -> list[Overrides]:
    """The runs of a product, or of each product of a list."""
    found: list[Overrides] = []
    for product in products if isinstance(products, list) else [products or {}]:
        lines = [f"{name}={_written(value)}" for name, value in product.items()]
        choices = [[(_name(each), line) for line in _lines(each)] for each in parser.parse_overrides(lines)]
        found += [dict(combination) for combination in itertools.product(*choices)]
    return found


def _written(value: Any) -> str:
    """A value of a YAML file as on the command line; a list is a sweep over its items."""
    if isinstance(value, list):
        return ",".join(map(_written, value))
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{_written(item)}' for key, item in value.items())}}}"
    return "null" if value is None else str(value)


def _name(override: Override) -> str:
    """What it is about: `rho` and `++rho` are one setting."""
    return override.get_key_element().lstrip("+~")


def _lines(override: Override) -> Iterable[str]:
    """One override for each value."""
    if not override.is_sweep_override():
        return [override.input_line or ""]
    if not override.is_discrete_sweep():
        raise SettingError(f"{override.input_line}: should be a list of values, such as A,B, range(1,4) or glob(*)")
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


def _select_or_replace(runs: list[Overrides], override: Override, parser: OverridesParser) -> list[Overrides]:
    name = _name(override)
    values = {line: _value(line, parser) for run in runs if (line := run.get(name))}
    found: list[Overrides] = []
    for line in _lines(override):
        value = _value(line, parser)
        selected = [run for run in runs if values.get(run.get(name, "")) == value]
        found += selected or [{**run, name: line} for run in runs]
    return found


def _value(line: str, parser: OverridesParser) -> tuple[bool, Any]:
    """What can be compared: 1 and 1.0 are equal, 1 and true are not."""
    value = parser.parse_override(line).value()
    return isinstance(value, bool), value
