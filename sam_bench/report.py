"""python -m sam_bench.report [FOLDER ...]: finished runs as a Markdown table, mean ± std over seeds."""

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from sam_bench.errors import SettingError

COLUMNS = (
    "data set | model | optimizer | schedule | epochs | seeds | test accuracy, % | propagations a step | seconds | "
    "images/s | device, precision"
)


def collect(folders: list[Path]) -> dict[str, list[dict[str, Any]]]:
    """The results under `folders`, by setting.

    Raises:
        SettingError: a folder has none.

    """
    cells: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for folder in folders:
        paths = sorted(folder.rglob("result.json"))
        if not paths:
            raise SettingError(f"{folder}: no finished run in it (a folder with result.json)")
        for path in paths:
            result = json.loads(path.read_text())
            cells[result["config_hash"]].append(result)
    return cells


def mean_and_deviation(values: list[float], digits: int) -> str:
    """`mean ± standard deviation`, without the deviation for a single value."""
    text = f"{statistics.mean(values):,.{digits}f}"
    return text if len(values) == 1 else f"{text} ± {statistics.stdev(values):,.{digits}f}"


def table(cells: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown, in the order of the data sets, models and costs."""

    def order(runs: list[dict[str, Any]]) -> tuple[Any, ...]:
        first = runs[0]
        return first["dataset"], first["model"], first["expected_propagations_per_step"], first["optimizer"]

    lines = [f"| {COLUMNS} |", "|" + " --- |" * len(COLUMNS.split("|"))]
    for runs in sorted(cells.values(), key=order):
        first = runs[0]
        cells_of_row = [
            f"{first['dataset']}, {first['train_images']:,} images",
            first["model"],
            first["optimizer"],
            first["schedule"] or "",
            str(first["epochs"]),
            str(len(runs)),
            mean_and_deviation([100 * run["test_accuracy"] for run in runs], 2),
            mean_and_deviation([run["propagations_per_step"] for run in runs], 3),
            mean_and_deviation([run["seconds"] for run in runs], 1),
            mean_and_deviation([run["images_per_second"] for run in runs], 0),
            f"{first['device']}, {first['precision']}",
        ]
        lines.append(f"| {' | '.join(cells_of_row)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        print(table(collect([Path(argument) for argument in sys.argv[1:] or ["runs"]])))
    except SettingError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
