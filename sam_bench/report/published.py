"""Published accuracies, `experiments/published.csv`: each with its source."""

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sam_bench.report.cells import Cell, Panel
from sam_bench.settings import shown

HERE = Path(__file__).resolve().parent.parent
FILES = (
    HERE / "experiments" / "published.csv",
    HERE.parent / "experiments" / "published.csv",
)  # in a wheel, a checkout


@dataclass(frozen=True)
class Published:
    """A published accuracy and its standard deviation in %, the paper, and what it says about the settings."""

    accuracy: float
    deviation: float | None
    source: str
    epochs: int | None
    note: str

    def __str__(self) -> str:
        """As in a table."""
        return f"{self.accuracy:.2f}" + (f" ± {self.deviation:.2f}" if self.deviation is not None else "")


@cache
def rows() -> list[dict[str, str]]:
    """All rows of published.csv."""
    path = next(path for path in FILES if path.exists())
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def published(panel: Panel, i: int) -> list[Published]:
    """The published accuracies for the same method, data set and model.

    None are returned if several cells of the panel use this method: it would be unclear which cell they belong to.
    """
    cell = panel.cells[i]
    same = [other for other in panel.cells if other.optimizer == cell.optimizer and other.length == 1]
    if panel.metric != "test_accuracy" or same != [cell]:
        return []
    names = {cell.optimizer, "base"} if i == panel.base else {cell.optimizer}
    model = {"vit_small_patch32_224": "vit_s32"}.get(cell.first["model"], cell.first["model"])
    found = []
    for row in rows():
        if row["method"] in names and (row["dataset"], row["model"]) == (cell.first["dataset"], model):
            found.append(
                Published(
                    float(row["accuracy"]),
                    float(row["accuracy_std"]) if row["accuracy_std"] else None,
                    f"{row['source']}, {row['table']}",
                    int(row["epochs"]) if row["epochs"] else None,
                    row["note"],
                )
            )
    return found


def how_settings_differ(cell: Cell, other: Published) -> str:
    """Theirs, as far as published, and ours."""
    run, settings = cell.first, cell.settings
    ours = {
        "epochs": run["epochs"],
        "training images": f"{run['train_images']:,}",
        "batch": settings.get("trainer.batch_size"),
        "lr": settings.get("optimizer.base.lr"),
        "weight decay": settings.get("optimizer.base.weight_decay"),
        "rho": settings.get("optimizer.rho", settings.get("optimizer.inner.rho")),
        "cutout": settings.get("dataset.cutout"),
        "label smoothing": settings.get("trainer.label_smoothing"),
        "seeds": len(cell.runs),
    }
    mine = ", ".join(f"{name} {shown(value)}" for name, value in ours.items() if value is not None)
    theirs = ", ".join(filter(None, [f"epochs {other.epochs}" if other.epochs else "", other.note]))
    return f"theirs: {theirs or 'not stated'}; ours: {mine}"
