"""python -m sam_bench.choose FOLDER: the best trial of each method of a tuning, by validation accuracy.

Writes FOLDER/<data set>-<model>.yaml with the choice and all trials, which `+tuned=<data set>-<model>` applies. Test
accuracies take no part. Imports no torch.
"""

import argparse
import itertools
import re
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import yaml

from sam_bench import files
from sam_bench.errors import SettingError
from sam_bench.report.cells import Cell, Panel, collect, panels
from sam_bench.settings import leaves, shown
from sam_bench.tuning import FOLDER, method_name


def choose(panel: Panel, failed: list[dict[str, Any]]) -> dict[str, Any]:
    """The file of a tuning. `failed` are the settings of runs without a result, which count as trials.

    Raises a SettingError if a run has no validation accuracy, or methods have different numbers of trials or seeds.
    """
    if panel.metric != "validation_accuracy":
        raise SettingError(f"{panel.title}: has runs without a validation set; tune with dataset.validation=0.1")
    methods: dict[str, list[Cell]] = defaultdict(list)
    for cell in panel.cells:
        methods[method_name(cell.optimizer, cell.first.get("inner"))].append(cell)
    lost: dict[str, list[dict[str, Any]]] = {name: [] for name in methods}
    for settings in failed:
        lost.setdefault(method_name(settings["optimizer.name"], settings.get("optimizer.inner.name")), []).append(
            settings
        )
    numbers = {name: len(trials) + len(lost[name]) for name, trials in methods.items()}
    seeds = {name: _seeds(trials) for name, trials in methods.items()}
    for has, of_each in (("{} trials", numbers), ("the seeds {}", seeds)):
        if len(set(of_each.values())) > 1:
            fewest, most = min(of_each, key=of_each.__getitem__), max(of_each, key=of_each.__getitem__)
            raise SettingError(
                f"{panel.title}: {fewest} has {has.format(of_each[fewest])}, {most} has {of_each[most]}; equal tuning "
                "needs the same (python -m sam_bench.status shows what is missing)"
            )
    return {
        "tuned_on": panel.title,
        "methods": {name: _method(trials, lost[name]) for name, trials in sorted(methods.items())},
    }


def _seeds(trials: list[Cell]) -> str:
    return " or ".join(sorted({", ".join(str(run["seed"]) for run in cell.runs) for cell in trials}))


def _method(trials: list[Cell], failed: list[dict[str, Any]]) -> dict[str, Any]:
    """The best trial and all trials; of equal ones the cheapest, then the first in the order of its settings."""
    every = [cell.settings for cell in trials] + failed
    keys = [key for key in dict.fromkeys(itertools.chain(*every)) if len({str(each.get(key)) for each in every}) > 1]
    if other := [key for key in keys if not key.startswith("optimizer.") and not failed]:
        raise SettingError(f"{other[0]}: differs between trials; a tuning can only choose settings of the optimizer")
    keys = [key for key in keys if key.startswith("optimizer.")]
    described: list[dict[str, Any]] = [
        {
            "settings": {key: cell.settings.get(key) for key in keys},
            "validation_accuracy": round(statistics.mean(cell.by_seed("validation_accuracy").values()), 6),
            "counted_cost": round(cell.cost, 4),
            "seeds": [run["seed"] for run in cell.runs],
        }
        for cell in sorted(trials, key=lambda cell: (cell.cost, str([cell.settings.get(key) for key in keys])))
    ]
    best = max(described, key=lambda trial: trial["validation_accuracy"])
    lost = [{"settings": {key: settings.get(key) for key in keys}, "validation_accuracy": 0.0} for settings in failed]
    return {
        "base": trials[0].settings.get("optimizer.base.name"),
        "settings": dict(best["settings"]),
        "validation_accuracy": best["validation_accuracy"],
        "on_the_edge": [key for key in keys if best["settings"][key] in _ends(every, key)],
        "trials": described + [{**trial, "failed": True} for trial in lost],
    }


def _ends(trials: list[dict[str, Any]], key: str) -> tuple[Any, ...]:
    """The smallest and the largest value tried, if there are three or more."""
    values = sorted({value for trial in trials if isinstance(value := trial.get(key), (int, float))})
    return (values[0], values[-1]) if len(values) > 2 else ()


def main(arguments: list[str]) -> None:
    """Write the files and print the choice."""
    parser = argparse.ArgumentParser(
        prog="python -m sam_bench.choose", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER, help=f"folder of trials (default: {FOLDER})")
    folder = parser.parse_args(arguments).folder
    try:
        found, failed = _single(folder), _failed(folder)
        if failed and len(found) > 1:
            raise SettingError(
                f"{folder}: has trials on several data sets or models, and a failed trial cannot be assigned to one; "
                "give a folder with one data set and model"
            )
        chosen = {f"{p.cells[0].first['dataset']}-{p.cells[0].first['model']}": choose(p, failed) for p in found}
        for name, content in chosen.items():
            if not re.fullmatch(r"\w[\w.-]{0,99}", name):
                raise SettingError(f"{folder}: {name[:100]!r} cannot be a file name; rename the data set or model")
            path = folder / f"{name}.yaml"
            head = "# Written by python -m sam_bench.choose; all trials are below the choice\n"
            files.replace(path, head + yaml.safe_dump(content, sort_keys=False, width=110))
            given = name if folder.resolve() == FOLDER.resolve() else path
            print(f"{path}: {content['tuned_on']}; apply it with +tuned={given}")
            for method, best in content["methods"].items():
                settings = " ".join(f"{key}={shown(value)}" for key, value in best["settings"].items())
                edge = (
                    f"  (on the edge of what was tried: {', '.join(best['on_the_edge'])})"
                    if best["on_the_edge"]
                    else ""
                )
                print(f"  {method:<14} {best['validation_accuracy']:.2%}  {settings}{edge}")
    except SettingError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _failed(folder: Path) -> list[dict[str, Any]]:
    """The settings of the trials of which every seed ended with an error, such as a loss that is not finite."""
    found = []
    for cell in sorted(folder.glob("*/")):
        errors = sorted(cell.glob("*/error.txt"))
        if errors and not any(cell.glob("*/result.json")):
            found.append(dict(leaves(yaml.safe_load((errors[0].parent / "config.yaml").read_text()))))
    return found


def _single(folder: Path) -> list[Panel]:
    """The panels of a tuning. Raises a SettingError if two of them would have the same file."""
    found = panels(collect([folder]))
    names = [(panel.cells[0].first["dataset"], panel.cells[0].first["model"]) for panel in found]
    for name in names:
        if names.count(name) > 1:
            raise SettingError(f"{folder}: has two tunings of {' and '.join(name)}; give a folder with one")
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
