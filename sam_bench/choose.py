"""python -m sam_bench.choose FOLDER: the best trial of each method of a tuning, by validation accuracy.

Writes FOLDER/<data set>-<model>.yaml with the choice and all trials, which `+tuned=<data set>-<model>` applies. Test
accuracies take no part. Imports no torch.
"""

import argparse
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import yaml

from sam_bench import files
from sam_bench.errors import SettingError
from sam_bench.report.cells import Cell, Panel, collect, panels
from sam_bench.settings import shown
from sam_bench.tuning import FOLDER, method_name


def choose(panel: Panel) -> dict[str, Any]:
    """The file of a tuning.

    Raises a SettingError if a run has no validation accuracy, or methods have different numbers of trials or seeds.
    """
    methods: dict[str, list[Cell]] = defaultdict(list)
    for cell in panel.cells:
        methods[method_name(cell.optimizer, cell.first.get("inner"))].append(cell)
    if panel.metric != "validation_accuracy":
        raise SettingError(f"{panel.title}: has runs without a validation set; tune with dataset.validation=0.1")
    for what, counts in (
        ("trials", {name: len(trials) for name, trials in methods.items()}),
        ("seeds", {name: min(len(cell.runs) for cell in trials) for name, trials in methods.items()}),
    ):
        if len(set(counts.values())) > 1:
            fewest, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
            raise SettingError(
                f"{panel.title}: {fewest} has {counts[fewest]} {what}, {most} has {counts[most]}; "
                "equal tuning needs equal numbers (python -m sam_bench.status shows what is missing)"
            )
    return {
        "tuned_on": panel.title,
        "trials_per_method": len(next(iter(methods.values()))),
        "methods": {name: _method(trials) for name, trials in sorted(methods.items())},
    }


def _method(trials: list[Cell]) -> dict[str, Any]:
    keys = [
        key
        for key in trials[0].settings
        if key.startswith("optimizer.") and len({str(cell.settings.get(key)) for cell in trials}) > 1
    ]
    described = [
        {
            "settings": {key: cell.settings[key] for key in keys},
            "validation_accuracy": round(statistics.mean(cell.by_seed("validation_accuracy").values()), 6),
            "seeds": [run["seed"] for run in cell.runs],
            "config_hash": cell.first["config_hash"],
        }
        for cell in trials
    ]
    best = max(described, key=lambda trial: trial["validation_accuracy"])
    return {
        "settings": best["settings"],
        "validation_accuracy": best["validation_accuracy"],
        "on_the_edge": [key for key in keys if best["settings"][key] in _ends(described, key)],
        "trials": described,
    }


def _ends(trials: list[dict[str, Any]], key: str) -> tuple[Any, ...]:
    """The smallest and the largest value tried, if there are three or more."""
    values = sorted({trial["settings"][key] for trial in trials})
    return (values[0], values[-1]) if len(values) > 2 else ()


def main(arguments: list[str]) -> None:
    """Write the files and print the choice."""
    parser = argparse.ArgumentParser(
        prog="python -m sam_bench.choose", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER, help=f"of the trials ({FOLDER})")
    folder = parser.parse_args(arguments).folder
    try:
        chosen = {f"{p.cells[0].first['dataset']}-{p.cells[0].first['model']}": choose(p) for p in _single(folder)}
        for name, content in chosen.items():
            path = folder / f"{name}.yaml"
            head = "# Written by python -m sam_bench.choose; all trials are below the choice\n"
            files.replace(path, head + yaml.safe_dump(content, sort_keys=False, width=110))
            print(f"{path}: {content['tuned_on']}; apply it with +tuned={name}")
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
