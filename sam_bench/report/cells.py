"""Finished runs as cells (all seeds of one setting) and panels (cells of one data set, model and number of epochs)."""

import csv
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from sam_bench import results
from sam_bench.errors import SettingError
from sam_bench.settings import leaves, shown

BASE = "optimizer.base.name"
INNER = "optimizer.inner.name"
STEADY = 1.5  # the ratio of speeds up to which times are shown

# settings that the title of a panel or a column states, by the end of their names
NAMED = (
    *("_target_", "schedule.name", "model.name", "model.architecture"),
    *("dataset.name", "dataset.root", "dataset.folder", "dataset.contents", "dataset.subset", "dataset.validation"),
    *("dataset.cutout", "trainer.epochs", "trainer.batch_size", "tuned"),
)


@dataclass(frozen=True)
class Cell:
    """The runs of one setting on one device.

    Attributes:
        runs: ordered by seed.
        folders: of the runs.
        length: number of epochs, relative to the other rows of its table.
    """

    runs: list[dict[str, Any]]
    folders: list[Path]
    length: float = 1.0

    @property
    def first(self) -> dict[str, Any]:
        """Any of its runs, for what all have in common."""
        return self.runs[0]

    @property
    def optimizer(self) -> str:
        """The name of the method."""
        return self.first["optimizer"]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Every setting by its dotted name."""
        return dict(leaves(self.first["config"]))

    @property
    def is_base(self) -> bool:
        """Whether it is the base optimizer alone."""
        return self.settings.get(BASE) == self.optimizer

    @property
    def cost(self) -> float:
        """The mean counted cost per step, times `length`: SGD with twice the epochs costs 2."""
        return self.length * self.mean(results.counted_cost)

    def by_seed(self, key: str, scale: float = 1.0) -> dict[int, float]:
        """A number of each run; runs without it are left out."""
        return {run["seed"]: scale * run[key] for run in self.runs if run.get(key) is not None}

    def mean(self, value: Callable[[dict[str, Any]], float]) -> float:
        """The mean over the seeds."""
        return statistics.mean(map(value, self.runs))

    @cached_property
    def metrics(self) -> list[list[dict[str, float]]]:
        """The rows of `metrics.csv` of each run; a run without that file has none."""
        return [_metrics(folder / "metrics.csv") for folder in self.folders]


@dataclass(frozen=True)
class Panel:
    """Cells that are compared with each other.

    Attributes:
        title: what they have in common.
        cells: ordered by cost.
        labels: the method and the settings that tell a cell from the others.
        base: index of the most common base optimizer alone, if there is just one; differences are taken from it.
        sam: index of SAM, if there is just one.
    """

    title: str
    cells: list[Cell]
    labels: list[str] = field(default_factory=list)
    base: int | None = None
    sam: int | None = None

    @property
    def metric(self) -> str:
        """What cells are compared by: validation accuracy in a tuning, else test accuracy."""
        validated = all(run.get("validation_accuracy") is not None for run in self.runs)
        return "validation_accuracy" if validated else "test_accuracy"

    @property
    def accuracy_name(self) -> str:
        """The title of a column or an axis of accuracies."""
        return f"{self.metric.partition('_')[0]} accuracy, %"

    @property
    def sharpness(self) -> str:
        """The kind of the measures of sharpness that are shown: what most runs have, or nothing."""
        kinds = Counter(run["sharpness"]["kind"] for run in self.runs if run.get("sharpness"))
        return max(sorted(kinds), key=kinds.__getitem__, default="")

    @cached_property
    def slowdown(self) -> float:
        """Speed of the fastest run over that of the slowest, of the same method and cost; 1 if there are no two."""
        speeds: dict[str, list[float]] = defaultdict(list)
        for cell in self.cells:
            others = {key: value for key, value in cell.settings.items() if not key.startswith("optimizer.")}
            alike = cell.optimizer, cell.first["device"], round(cell.cost, 1), others
            speeds[str(alike)] += cell.by_seed("images_per_second").values()
        return max((max(each) / min(each) for each in speeds.values() if each), default=1.0)

    @property
    def is_timed(self) -> bool:
        """Whether seconds can be compared: the machine did nothing else that slowed some of the runs."""
        return self.slowdown <= STEADY

    @property
    def without_reference(self) -> list[str]:
        """Why rows are not compared with the base optimizer or SAM, in sentences."""
        lines = []
        for name, index, rows in (
            ("the base optimizer alone", self.base, [cell for cell in self.cells if cell.is_base]),
            ("SAM", self.sam, [cell for cell in self.cells if cell.optimizer == "sam"]),
        ):
            if index is None and len(self.cells) > 1:
                lines.append(f"No row is compared with {name}: there {'are several' if rows else 'is none'}.")
        return lines

    @property
    def runs(self) -> list[dict[str, Any]]:
        """All runs."""
        return [run for cell in self.cells for run in cell.runs]

    @property
    def accuracies(self) -> list[dict[int, float]]:
        """The accuracy of each cell by seed, in %."""
        return [cell.by_seed(self.metric, 100) for cell in self.cells]


def collect(folders: list[Path]) -> list[Cell]:
    """The finished runs in the folders, CELL/seed-N/ below them. A broken one is left out with a warning.

    Raises a SettingError if a folder has none, or two have the same setting and seed.
    """
    cells: dict[tuple[str, ...], dict[int, tuple[Path, dict[str, Any]]]] = defaultdict(dict)
    for folder in folders:
        found = False
        for path in runs_in(folder):
            try:
                result = results.read(path.parent)
            except SettingError as error:
                print(f"warning: {error}", file=sys.stderr)
                continue
            if result is None:  # it was there a moment ago
                continue
            found = True
            seeds = cells[result["config_hash"], result["device"]]
            before, _ = seeds.setdefault(result["seed"], (path, result))
            if before.resolve() != path.resolve():
                raise SettingError(
                    f"{path}: has the same settings and seed as {before}; give only one of the two folders"
                )
        if not found:
            if not folder.is_dir():
                raise SettingError(f"{folder}: is not a folder")
            raise SettingError(f"{folder}: has no finished run (FOLDER/CELL/seed-N/result.json)")
    ordered = [[seeds[seed] for seed in sorted(seeds)] for seeds in cells.values()]
    return [Cell([result for _, result in each], [path.parent for path, _ in each]) for each in ordered]


def runs_in(folder: Path) -> list[Path]:
    """The results of a run folder, a folder of seeds or a folder of runs. What lies deeper is of other experiments."""
    return [path for depth in ("", "*/", "*/*/") for path in sorted(folder.glob(f"{depth}result.json"))]


def panels(cells: Sequence[Cell]) -> list[Panel]:
    """The cells by what they may be compared in."""
    groups: dict[ComparedIn, list[Cell]] = defaultdict(list)
    for cell in cells:
        groups[ComparedIn.of(cell)].append(cell)
    found = []
    for key, group in sorted(_with_longer_trainings(groups).items(), key=str):
        group = sorted(group, key=lambda cell: (round(cell.cost, 1), cell.optimizer, cell.first["config_hash"]))
        labels = [label(cell, group) for cell in group]
        of_device = Counter(labels)
        labels = [
            f"{text} on {cell.first['device']}" if of_device[text] > 1 else text
            for text, cell in zip(labels, group, strict=True)
        ]
        bases = Counter(cell.settings.get(BASE) for cell in group)
        common = bases.most_common(1)[0][0]
        base = [i for i, cell in enumerate(group) if cell.is_base and cell.optimizer == common and cell.length == 1]
        sam = [i for i, cell in enumerate(group) if cell.optimizer == "sam" and cell.settings.get(BASE) == common]
        sam = [i for i in sam if group[i].settings.get("optimizer.ascent_share", 1) == 1]
        found.append(
            Panel(key.title, group, labels, base[0] if len(base) == 1 else None, sam[0] if len(sam) == 1 else None)
        )
    return found


class ComparedIn(NamedTuple):
    """What the cells of a panel have in common."""

    dataset: str
    images: int
    contents: str | None  # the hash of a folder of images
    validation: int
    cutout: int
    model: str
    parameters: int | None
    epochs: int
    batch_size: int | None
    tuned: str | None  # tuned methods are compared with tuned ones

    @classmethod
    def of(cls, cell: Cell) -> "ComparedIn":
        """The values of a cell."""
        run, settings = cell.first, cell.settings
        return cls(
            run["dataset"],
            run["train_images"],
            settings.get("dataset.contents"),
            run.get("validation_images") or 0,
            settings.get("dataset.cutout") or 0,
            run["model"],
            run.get("parameters"),
            run["epochs"],
            settings.get("trainer.batch_size"),
            run.get("tuned"),
        )

    @property
    def title(self) -> str:
        """The title of the panel."""
        parts = [
            f"{self.dataset} ({self.contents})" if self.contents else self.dataset,
            f"{self.images:,} training images",
            f"{self.validation:,} validation images" if self.validation else "",
            f"cutout {self.cutout}" if self.cutout else "",
            self.model,
            f"{self.parameters:,} parameters" if self.parameters else "",
            f"{self.epochs} epochs",
            f"batch {self.batch_size}" if self.batch_size else "",
            f"tuned ({self.tuned})" if self.tuned else "",
        ]
        return ", ".join(filter(None, parts))


def _with_longer_trainings(groups: Mapping[ComparedIn, list[Cell]]) -> dict[ComparedIn, list[Cell]]:
    """Move base optimizers into the one table that differs from theirs in the number of epochs alone, if there is one.

    So SGD can be compared with SAM at equal cost, with twice the epochs.
    """
    joined = {key: list(cells) for key, cells in groups.items()}
    tables = [key for key, cells in groups.items() if not all(cell.is_base for cell in cells)]
    for key in [key for key in groups if key not in tables]:
        alike = [table for table in tables if table._replace(epochs=key.epochs) == key]
        if len(alike) == 1:
            length = key.epochs / alike[0].epochs
            joined[alike[0]] += [replace(cell, length=length) for cell in joined.pop(key)]
    return joined


def label(cell: Cell, group: Sequence[Cell]) -> str:
    """The method, its schedule and the settings that tell it from the other cells of its panel."""
    same = [other.settings for other in group if other.optimizer == cell.optimizer]
    varied = varied_settings(cell.settings, same, [other.settings for other in group])
    schedule = "" if cell.optimizer == "late_sam" else cell.first["schedule"]  # whose schedule is a part of it
    of_schedule = [key for key in cell.settings if ".schedule." in f".{key}" and not key.endswith(NAMED)]
    if schedule:  # short and always stated: schedule.p as p
        varied = [key for key in varied if key not in of_schedule]
        values = ", ".join(f"{key.rpartition('.')[2]}={shown(cell.settings[key])}" for key in of_schedule)
        schedule = f"{schedule}({values})"
    stated = [key for key in varied if cell.settings[key] is not None]  # another row has a value
    settings = [f"{short_name(key)}={shown(cell.settings[key])}" for key in stated]
    if cell.length != 1:
        settings.append(f"trainer.epochs={cell.first['epochs']}")
    return " ".join(filter(None, [cell.optimizer, schedule, *settings]))


def short_name(key: str) -> str:
    """A setting in a label: `inner` for `optimizer.inner.name`."""
    return key.removeprefix("optimizer.").removesuffix(".name")


def varied_settings(
    mine: dict[str, Any], same_optimizer: Sequence[dict[str, Any]], neighbors: Sequence[dict[str, Any]]
) -> list[str]:
    """The settings to state in the label of a row.

    Those whose value at most half of the rows of its optimizer have; for the data set, the trainer and the base
    optimizer, those that differ from the most common value of the table; and any inner method but SAM.
    """
    bases = [other for other in neighbors if other.get(BASE) == mine.get(BASE)]

    def most_have_another(key: str) -> bool:
        if not key.startswith(("dataset.", "trainer.", "optimizer.base.")):
            return key == INNER and mine[key] != "sam"
        others = bases if key.startswith("optimizer.base.") and key != BASE else neighbors
        values = [other[key] for other in others if key in other]
        return mine[key] != max(values, key=values.count)

    def half_of_its_own_have_another(key: str) -> bool:
        if key == INNER:
            return False
        others = same_optimizer
        if key.startswith("optimizer.inner."):  # those of another inner method say nothing
            others = [other for other in others if other.get(INNER) == mine.get(INNER)]
        values = [other.get(key) for other in others]
        if None in values:  # which is never stated
            return mine[key] is not None
        return 2 * values.count(mine[key]) <= len(values)

    return [
        key
        for key in mine
        if not key.endswith(NAMED)
        and (key != BASE or mine[key] != mine["optimizer.name"])
        and (half_of_its_own_have_another(key) or most_have_another(key))
    ]


def _metrics(path: Path) -> list[dict[str, float]]:
    try:
        with path.open(newline="") as file:
            rows = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
        if any(not abs(value) < 1e30 for row in rows for value in row.values()):  # which cannot be drawn
            raise ValueError("a number is too large")
        return rows
    except (OSError, ValueError, TypeError, AttributeError, csv.Error):
        print(f"warning: {path}: cannot be read; its curve is left out", file=sys.stderr)
        return []
