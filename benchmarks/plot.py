"""Plots of the measurements in a folder: step times against counted costs."""

import argparse
import csv
from pathlib import Path

import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def steps(paths: list[Path], out: Path) -> None:
    """A panel per model: step times relative to SGD as bars, counted costs as marks."""
    height = 1 + 0.25 * max(len(read(path)) for path in paths)
    figure, panels = plt.subplots(
        1, len(paths), figsize=(1 + 6.5 * len(paths), height), squeeze=False, layout="constrained"
    )
    for panel, path in zip(panels[0], paths, strict=True):
        rows = read(path)[::-1]
        names = [row["optimizer"] for row in rows]
        ratios = [float(row["ratio_to_sgd"]) for row in rows]
        ours = [bool(row["operations"]) for row in rows]
        panel.barh(names, ratios, color=["#4477aa" if own else "#bbbbbb" for own in ours], height=0.65)
        counts = [float(row["count"]) for row in rows]
        panel.plot(counts, names, "|", color="#cc3311", markersize=11, markeredgewidth=2.5)
        for name, row, ratio, count in zip(names, rows, ratios, counts, strict=True):
            label = f"{ratio:.2f}   {int(row['images_per_second']):,} images/s"
            panel.text(max(ratio, count) + 0.05, name, label, va="center", size=8)
        panel.set_xlim(0, max(ratios) + 0.9)
        panel.set_xlabel("step time relative to SGD; red mark: counted cost")
        one = rows[-1]
        panel.set_title(f"{one['model']}, batch {one['batch_size']}, {one['precision']}, {one['device']}", size=10)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, dpi=110)
    print(f"-> {out}")


def scaling(path: Path, out: Path) -> None:
    """A panel per axis: step times of SAM and RST relative to SGD, divided by their counted costs."""
    rows = read(path)
    axes = list(dict.fromkeys(row["axis"] for row in rows))
    figure, panels = plt.subplots(
        1, len(axes), figsize=(3 * len(axes), 3), sharey=True, squeeze=False, layout="constrained"
    )
    for panel, axis in zip(panels[0], axes, strict=True):
        chosen = [row for row in rows if row["axis"] == axis]
        values = [row["value"] for row in chosen]
        for name in ("sam", "rst"):
            panel.plot(values, [float(row[f"{name}_ratio_to_count"]) for row in chosen], "o-", label=name)
        panel.axhline(1, color="#bbbbbb", linewidth=1, zorder=0)
        panel.set_xlabel(axis)
        panel.set_ylim(0, 1.5)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel("step time relative to SGD / counted cost")
    panels[0][0].legend()
    figure.savefig(out, dpi=110)
    print(f"-> {out}")


def markdown(path: Path) -> str:
    """A CSV file as a table for a README, without the columns whose cells are all alike."""
    rows = read(path)
    names = [name for name in rows[0] if len({row[name] for row in rows}) > 1]
    lines = ["| " + " | ".join(name.replace("_", " ") for name in names) + " |", "|" + " --- |" * len(names)]
    return "\n".join([*lines, *("| " + " | ".join(row[name] for name in names) + " |" for row in rows)])


def main() -> None:
    """Draw, and print the tables as Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder with step-*.csv and scaling.csv")
    folder = parser.parse_args().folder
    if paths := sorted(folder.glob("step-*.csv")):
        steps(paths, folder / "step.png")
    if (folder / "scaling.csv").exists():
        scaling(folder / "scaling.csv", folder / "scaling.png")
    for path in sorted(folder.glob("*.csv")):
        print(f"\n{path.name}\n\n{markdown(path)}")


if __name__ == "__main__":
    main()
