"""The figures of a panel, drawn with matplotlib: as SVG inside the page, and as SVG and PDF files."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes

from sam_bench.report.canvas import INK, STYLE, Canvas, Figure
from sam_bench.report.cells import NAMED, Cell
from sam_bench.report.claims import VERDICTS, Decision
from sam_bench.report.statistics import Interval
from sam_bench.report.tables import SHARPNESS, Row, Table, sharpness
from sam_bench.tuning import method_name

# readable on white and on black; adjacent colors stay distinct for color-blind readers
COLORS = ("#0090d4", "#e07b00", "#00a878", "#c65bb2", "#d04a35", "#8a8f00", "#7d76e0", "#b8860b", "#3aa0a0", "#a0616a")
MARKERS = "osD^vP*X<>hp"


def figures(table: Table, decisions: Sequence[Decision] = ()) -> list[Figure]:
    """Every figure that the results of a panel have numbers for; `decisions` are the claims of its page."""
    families = (
        *(accuracy_against_cost, gains, seeds, curves, accuracy_against_setting),
        *(schedules, accuracy_against_sharpness, sensitivity, surfaces),
    )
    with matplotlib.rc_context(STYLE):
        drawn = [*claims(table, decisions), *(figure for family in families for figure in family(table))]
    names: Counter[str] = Counter()  # long labels may begin alike
    numbered = []
    for figure in drawn:
        names[figure.name] += 1
        number = names[figure.name]
        numbered.append(replace(figure, name=f"{figure.name}-{number}") if number > 1 else figure)
    return numbered


def kind(row: Row) -> tuple[str, ...]:
    """What has a color and a marker of its own: a method, with its inner method and its family of schedules."""
    run = row.cell.first
    return run["optimizer"], run.get("inner") or "", run["schedule"] or ""


def _number(table: Table, row: Row) -> int:
    return sorted({kind(each) for each in table.rows}).index(kind(row))


def color(table: Table, row: Row) -> str:
    """The color of a method, the same in all figures of a panel; that of the text for the base optimizer and SAM."""
    plain = row.cell.is_base or row.cell.optimizer == "sam"
    return INK if plain else COLORS[_number(table, row) % len(COLORS)]


def marker(table: Table, row: Row) -> str:
    """The marker of a method."""
    return MARKERS[_number(table, row) % len(MARKERS)]


def for_matplotlib(text: str) -> str:
    """User text on one line, with $ escaped so that matplotlib does not read a formula."""
    printable = "".join(each if each.isprintable() else " " for each in text)
    return " ".join(printable.split()).replace("$", r"\$")


def short(text: str, length: int = 34) -> str:
    """A label in a plot; the page shows all of it when the cell is pointed at."""
    return for_matplotlib(text if len(text) <= length else text[: length - 1].rstrip() + "…")


def name_at(axes: Axes, text: str, x: float, y: float, tone: str) -> None:
    """Write a label to the right of a point."""
    axes.annotate(short(text), (x, y), (4, 0), textcoords="offset points", fontsize=7, color=tone, va="center")


def described(row: Row) -> str:
    """What is shown when a cell is pointed at."""
    bounds = "" if math.isinf(row.accuracy.low) else f" [{row.accuracy.low:.2f}, {row.accuracy.high:.2f}]"
    accuracy = f"{row.accuracy.estimate:.2f} %{bounds}"
    return f"{row.label}: {accuracy}, counted cost {row.cell.cost:.3f}, n = {len(row.cell.runs)}"


def error_bars(interval: Interval) -> list[list[float]] | None:
    """For matplotlib; None without an interval."""
    if math.isinf(interval.low):
        return None
    return [[interval.estimate - interval.low], [interval.high - interval.estimate]]


def references(axes: Axes, table: Table) -> None:
    """Lines at the accuracies of the base optimizer and of SAM."""
    for index, dashes in ((table.panel.base, (4, 2)), (table.panel.sam, (1, 2))):
        if index is not None:
            row = table.rows[index]
            axes.axhline(row.accuracy.estimate, color=INK, lw=0.9, dashes=dashes, alpha=0.7)


WITH_INTERVALS = " with 95 % t intervals, standard deviation pooled over all rows"
LINES_ACROSS = " Horizontal lines: the base optimizer (dashed) and SAM (dotted)."


def has_intervals(table: Table) -> bool:
    """Whether some cell has two seeds."""
    return table.spread.freedom > 0


def frontier(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other one beats at the same or a lower cost, by cost."""
    kept: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if not kept or points[i][1] > points[kept[-1]][1]:
            kept.append(i)
    return kept


def accuracy_against_cost(table: Table) -> Iterator[Figure]:
    """Accuracy and losses against the counted cost and against the time, with the frontier."""
    base = table.panel.base
    seconds = table.rows[base].cell.mean(lambda run: run["seconds"]) if base is not None else None
    axes_x = {"counted cost (SGD = 1)": lambda cell: cell.cost}
    if seconds and table.panel.is_timed and len({cell.first["device"] for cell in table.panel.cells}) == 1:
        axes_x["training time over the base optimizer's"] = lambda cell: cell.mean(lambda r: r["seconds"]) / seconds
    axes_y = {
        table.panel.accuracy_name: (table.panel.metric, 100),
        "test loss": ("test_loss", 1),
        "train loss": ("train_loss", 1),
    }
    for x_name, x_of in axes_x.items():
        for y_name, (key, scale) in axes_y.items():
            canvas = Canvas(4.8)
            (axes,) = canvas.axes
            points = []
            for i, row in enumerate(table.rows):
                values = row.cell.by_seed(key, scale)
                x, y = x_of(row.cell), float(np.mean(list(values.values())))
                points.append((x, y if scale == 100 else -y))
                dots = axes.plot(
                    [x] * len(values), list(values.values()), ".", ms=3, color=color(table, row), alpha=0.5
                )
                canvas.of_cell(dots[0], i, described(row))
                bars = error_bars(row.accuracy) if scale == 100 else None
                mark = axes.errorbar(
                    x, y, yerr=bars, fmt=marker(table, row), ms=6, color=color(table, row), lw=0.8, capsize=2
                )
                canvas.of_cell(mark.lines[0], i, described(row))
            best = frontier(points)
            line = [(points[i][0], abs(points[i][1])) for i in best]
            axes.step(*zip(*line, strict=True), where="post", color=INK, lw=0.8, alpha=0.5, zorder=0)
            if scale == 100:
                references(axes, table)
            axes.set(xlabel=x_name, ylabel=y_name)
            axes.margins(x=0.05)
            shown = {i: (x, abs(y)) for i, (x, y) in enumerate(points)}
            label_points(canvas, table, shown, first=[*best, table.panel.base, table.panel.sam])
            options = {"x": x_name, "y": y_name}
            yield canvas.finished(
                "cost",
                table,
                f"{y_name} against {x_name}",
                options,
                f"Dots are seeds, markers are means{WITH_INTERVALS if scale == 100 and has_intervals(table) else ''}. "
                "The step line is the Pareto frontier of the means: no cheaper row is better."
                + (LINES_ACROSS if scale == 100 else ""),
            )


def label_points(
    canvas: Canvas,
    table: Table,
    points: dict[int, tuple[float, float]],
    names: dict[int, str] | None = None,
    first: Iterable[int | None] = (),
) -> None:
    """Write the name of each row beside its point, moved up or down where it would lie on a name or a point.

    Names without a place near their point are left out, except those of the rows in `first`.
    """
    (axes,) = canvas.axes
    names = {i: short(text, 40) for i, text in (names or {i: table.rows[i].label for i in points}).items()}
    low, high = axes.get_xlim()
    is_log = axes.get_xscale() == "log"
    # room for the names of the last column
    axes.set_xlim(low, high * (high / low) ** 0.16 if is_log else high + 0.16 * (high - low))
    axes.set_ylim(axes.get_ylim())
    to_fractions = axes.transData + axes.transAxes.inverted()
    places = {i: to_fractions.transform(point).tolist() for i, point in points.items()}
    gap, height, per_letter = 0.012, 0.12 / canvas.height, 0.0088  # of the axes
    taken = [(x - gap / 2, x + gap / 2, y) for x, y in places.values()]
    asked = set(first)
    for i, (x, y) in sorted(places.items(), key=lambda item: (item[0] not in asked, -item[1][1])):
        width = gap + per_letter * len(names[i])
        fits_right = x + width <= 1.02
        left, right = (x + gap / 2, x + width) if fits_right else (x - width, x - gap / 2)
        for shift in (k * sign for k in range(40 if i in asked else 6) for sign in (1, -1)):
            at = y + shift * height / 2
            is_free = all(abs(at - v) >= height or right <= u or left >= w for u, w, v in taken)
            if is_free and 0 < at < 1:
                break
        else:
            continue
        taken.append((left, right, at))
        tone, beside = color(table, table.rows[i]), x + gap if fits_right else x - gap
        if abs(at - y) > height / 4:
            axes.plot([x, beside], [y, at], color=tone, lw=0.4, alpha=0.6, transform=axes.transAxes)
        text = axes.text(
            beside,
            at,
            names[i],
            fontsize=6.5,
            color=tone,
            ha="left" if fits_right else "right",
            va="center",
            transform=axes.transAxes,
        )
        canvas.of_cell(text, i, described(table.rows[i]))


def _forest(table: Table, intervals: dict[int, Interval], dots: dict[int, list[float]], zero: bool) -> Canvas:
    """Rows with dots and intervals, best at the top."""
    order = sorted(intervals, key=lambda i: intervals[i].estimate)
    canvas = Canvas(1.1 + 0.22 * len(order))
    (axes,) = canvas.axes
    for place, i in enumerate(order):
        row, interval = table.rows[i], intervals[i]
        tone = color(table, row)
        line = axes.plot(dots[i], [place] * len(dots[i]), ".", ms=4, color=tone, alpha=0.55)
        canvas.of_cell(line[0], i, described(row))
        bars = axes.errorbar(
            interval.estimate,
            place,
            xerr=error_bars(interval),
            fmt=marker(table, row),
            ms=5,
            color=tone,
            lw=1.2,
            capsize=2,
        )
        canvas.of_cell(bars.lines[0], i, f"{row.label}: {interval.estimate:+.2f}" if zero else described(row))
        for theirs in [] if zero else row.published[:1]:
            axes.plot(theirs.accuracy, place, "d", mfc="none", color=tone, ms=7)
    axes.set_yticks(range(len(order)), [short(table.rows[i].label) for i in order], fontsize=7.5)
    axes.grid(axis="y", visible=False)
    if zero:
        axes.axvline(0, color=INK, lw=0.9)
    return canvas


MARK_OF = {"holds": ("o", "#00a878"), "fails": ("X", "#d04a35"), "undecided": ("D", INK), "incomplete": (".", INK)}


def claims(table: Table, decisions: Sequence[Decision]) -> Iterator[Figure]:
    """The intervals that decide the claims about differences."""
    mine = [each for each in decisions if each.panel == table.panel.title and each.claim.than]
    if not mine:
        return
    canvas = Canvas(1.1 + 0.27 * len(mine))
    (axes,) = canvas.axes
    highest = max((d.interval.high for d in mine if not math.isinf(d.interval.high)), default=0.0)
    for place, each in enumerate(reversed(mine)):
        mark, tone = MARK_OF[each.verdict]
        if margin := each.claim.margin:
            high = margin if each.claim.rule == "equivalent" else max(margin, highest)
            axes.barh(place, high + margin, left=-margin, height=0.62, color=INK, alpha=0.1)
        bars = error_bars(each.interval)
        axes.errorbar(each.interval.estimate, place, xerr=bars, fmt=mark, ms=6, color=tone, lw=1.4, capsize=2)
    labels = [f"{short(each.claim.claim, 70)}: {VERDICTS[each.verdict].lower()}" for each in reversed(mine)]
    axes.set_yticks(range(len(mine)), labels, fontsize=7.5)
    axes.grid(axis="y", visible=False)
    axes.axvline(0, color=INK, lw=0.9)
    axes.set_xlabel("difference, percentage points")
    caption = (
        "Differences with the interval that decides: 95 %, or 90 % for claims with a margin, which is shaded. Circle: "
        "holds. Cross: does not hold. Diamond: undecided. Dot: not decided yet."
    )
    yield canvas.finished("claims", table, "The claims", {}, caption)


def seeds(table: Table) -> Iterator[Figure]:
    """Every seed of every cell, with intervals and published accuracies."""
    intervals = {i: row.accuracy for i, row in enumerate(table.rows)}
    dots = {i: list(row.cell.by_seed(table.panel.metric, 100).values()) for i, row in enumerate(table.rows)}
    canvas = _forest(table, intervals, dots, False)
    canvas.axes[0].set_xlabel(table.panel.accuracy_name)
    has_published = any(row.published for row in table.rows)
    extra = " Open diamonds are published accuracies; their sources and settings are listed below." * has_published
    caption = f"Dots are seeds, markers are means{WITH_INTERVALS if has_intervals(table) else ''}.{extra}"
    yield canvas.finished("seeds", table, f"{table.panel.accuracy_name} by method", {}, caption)


def gains(table: Table) -> Iterator[Figure]:
    """Differences from the base optimizer and from SAM."""
    for name, which, index in (("base", "gain", table.panel.base), ("SAM", "over_sam", table.panel.sam)):
        if index is None or len(table.rows) < 2:
            continue
        reference = table.rows[index]
        intervals = {i: getattr(row, which).difference for i, row in enumerate(table.rows) if getattr(row, which)}
        theirs = reference.cell.by_seed(table.panel.metric, 100)
        mine = {i: table.rows[i].cell.by_seed(table.panel.metric, 100) for i in intervals}
        dots = {i: [value - theirs[seed] for seed, value in mine[i].items() if seed in theirs] for i in intervals}
        canvas = _forest(table, intervals, dots, True)
        label = f"gain over {reference.label}, percentage points"
        canvas.axes[0].set_xlabel(for_matplotlib(label))
        together = (
            "with Dunnett's intervals, which hold simultaneously with 95 % confidence for the whole table; a "
            "difference whose interval includes 0 is not distinguishable"
        )
        means = f"Markers are differences of means{f' {together}' if has_intervals(table) else ''}."
        caption = f"{means} Dots are differences between runs with the same seed."
        yield canvas.finished("gain", table, label, {"over": f"{reference.label} ({name})"}, caption)


def curves(table: Table) -> Iterator[Figure]:
    """What is measured after each epoch, against the propagations so far; the mean over the seeds."""
    part = table.panel.metric.partition("_")[0]
    for key, name, scale in (
        (f"{part}_accuracy", f"{part} accuracy, %", 100),
        (f"{part}_loss", f"{part} loss", 1),
        ("train_loss", "train loss", 1),
        ("epsilon_cosine", "cosine between perturbation and gradient", 1),
        ("epsilon_loss_rise", "rise of the loss at the perturbed weights", 1),
    ):
        for x_key, x_name in (("propagations", "propagations"), ("seconds", "seconds of training")):
            if x_key == "seconds" and not table.panel.is_timed:
                continue
            means = {i: mean_curve(row.cell, x_key, key) for i, row in enumerate(table.rows)}
            lines = {i: line for i, line in means.items() if line}
            if not lines:
                continue
            canvas = Canvas(4.2)
            (axes,) = canvas.axes
            for i, (x, y) in lines.items():
                row = table.rows[i]
                dashes = (4, 2) if row.cell.is_base else (1, 1.5) if row.cell.optimizer == "sam" else (None, None)
                line = axes.plot(x, np.multiply(scale, y), color=color(table, row), lw=1.3, dashes=dashes)
                canvas.of_cell(line[0], i, described(row))
            axes.set(xlabel=x_name, ylabel=name)
            ends = {i: (x[-1], scale * y[-1]) for i, (x, y) in lines.items()}
            label_points(canvas, table, ends, first=[table.panel.base, table.panel.sam])
            caption = "Means over the seeds at each test; the end of a line is the result."
            yield canvas.finished("curves", table, f"{name} against {x_name}", {"x": x_name, "y": name}, caption)


def mean_curve(cell: Cell, *keys: str) -> list[list[float]] | None:
    """Columns of `metrics.csv`, averaged over the seeds; None if they have fewer than two epochs in common."""
    runs = [[line for line in run if set(keys) <= line.keys()] for run in cell.metrics]
    epochs = min(map(len, runs))
    if epochs < 2:
        return None
    return [[float(np.mean([run[epoch][key] for run in runs])) for epoch in range(epochs)] for key in keys]


def accuracy_against_setting(table: Table) -> Iterator[Figure]:
    """Accuracy against each numeric setting that a method has at three values or more."""
    keys: dict[str, list[list[int]]] = {}
    for indices in by_optimizer(table).values():
        for key in table.rows[indices[0]].cell.settings:
            lines: dict[Any, list[int]] = {}
            for i in indices:
                settings = table.rows[i].cell.settings
                if isinstance(settings.get(key), (int, float)) and not isinstance(settings[key], bool):
                    others = {k: v for k, v in settings.items() if k != key}
                    alike = str((sorted(others.items(), key=str), table.rows[i].cell.first["device"]))
                    lines.setdefault(alike, []).append(i)
            keys.setdefault(key, []).extend(line for line in lines.values() if len(line) >= 3)
    for key, found in keys.items():
        if not found:
            continue
        setting = key.removeprefix("optimizer.")
        ends: dict[int, tuple[float, float]] = {}
        names: dict[int, str] = {}
        canvas = Canvas(3.8)
        (axes,) = canvas.axes
        for line in found:
            line = sorted(line, key=lambda i: table.rows[i].cell.settings[key])
            rows = [table.rows[i] for i in line]
            x = [row.cell.settings[key] for row in rows]
            axes.plot(x, [row.accuracy.estimate for row in rows], color=color(table, rows[0]), lw=1)
            for i, row, at in zip(line, rows, x, strict=True):
                bars = axes.errorbar(
                    at,
                    row.accuracy.estimate,
                    yerr=error_bars(row.accuracy),
                    fmt=marker(table, row),
                    ms=5,
                    color=color(table, row),
                    lw=0.8,
                    capsize=2,
                )
                canvas.of_cell(bars.lines[0], i, described(row))
            ends[line[-1]] = x[-1], rows[-1].accuracy.estimate
            names[line[-1]] = without(rows[-1].label, setting, x[-1])
        values = [table.rows[i].cell.settings[key] for line in found for i in line]
        if min(values) > 0 and max(values) / min(values) >= 20:
            axes.set_xscale("log")
        references(axes, table)
        axes.set(xlabel=setting, ylabel=table.panel.accuracy_name)
        label_points(canvas, table, ends, names)
        yield canvas.finished(
            "setting",
            table,
            f"{table.panel.accuracy_name} against {setting}",
            {"setting": setting},
            f"Means over the seeds{WITH_INTERVALS if has_intervals(table) else ''}; lines join rows that differ only "
            f"in this setting.{LINES_ACROSS}",
        )


def by_optimizer(table: Table) -> dict[str, list[int]]:
    """The indices of the rows of each optimizer, with its inner method."""
    found: dict[str, list[int]] = {}
    for i, row in enumerate(table.rows):
        found.setdefault(method_name(row.cell.optimizer, row.cell.first.get("inner")), []).append(i)
    return found


def without(label: str, setting: str, value: Any) -> str:
    """A label without one of its settings: `rst constant(p=0.5)` without `schedule.p` is `rst constant`."""
    for name in (setting, setting.rpartition(".")[2]):
        label = re.sub(rf"(?<![\w.]){re.escape(name)}={re.escape(str(value))}(?![\w.])(, )?", "", label)
    return " ".join(label.replace("()", "").replace(", )", ")").split())


def schedules(table: Table) -> Iterator[Figure]:
    """p(t), the random draws of the first seed and the propagations so far, of each cell with a schedule."""
    needed = {"epoch", "steps", "sharpness_aware_steps", "propagations"}
    for i, row in enumerate(table.rows):
        run, metrics = row.cell.first, [line for line in row.cell.metrics[0] if needed <= line.keys()]
        if not run["schedule"] or not metrics:
            continue
        steps, tossed = run["steps"], coin(row.cell)
        canvas = Canvas(2.8, columns=2)
        left, right = canvas.axes
        if tossed:
            p, draw = tossed
            some = np.linspace(0, steps - 1, min(steps, 400)).astype(int)
            left.plot(some, [p(t) for t in some.tolist()], color=INK, lw=1.3)
            heads = [t for t in some.tolist() if draw(t)]
            left.eventplot(heads, lineoffsets=1.09, linelengths=0.08, linewidths=0.5, colors=COLORS[1])
        before, t = 0.0, 0.0
        for line in metrics:
            share = (line["sharpness_aware_steps"] - before) / (line["steps"] - t)
            dot = left.plot([(line["steps"] + t) / 2], [share], "o", ms=3.5, color=COLORS[0])
            canvas.of_cell(dot[0], i, f"epoch {line['epoch']:.0f}: {share:.0%} of the steps sharpness-aware")
            before, t = line["sharpness_aware_steps"], line["steps"]
        left.set(xlabel="step", ylabel="p(t); share of sharpness-aware steps", ylim=(-0.04, 1.16))
        t_all = [0.0, *(line["steps"] for line in metrics)]
        right.plot(t_all, [0.0, *(line["propagations"] for line in metrics)], color=COLORS[0], lw=1.5)
        right.plot([0, steps], [0, run["expected_propagations_per_step"] * steps], color=INK, lw=0.9, dashes=(4, 2))
        right.plot([0, steps], [0, steps], color=INK, lw=0.6, alpha=0.5)
        right.plot([0, steps], [0, 2 * steps], color=INK, lw=0.6, alpha=0.5)
        right.set(xlabel="step", ylabel="propagations so far")
        yield canvas.finished(
            "schedule",
            table,
            f"schedule of {row.label}",
            {"cell": row.label},
            f"{row.label}, seed {run['seed']}. Left: p(t); dots: the share of sharpness-aware steps in each epoch; "
            "ticks above: the sharpness-aware ones among up to 400 evenly spaced steps. Right: propagations so far; "
            "dashed: the expected mean rate; thin: one and two per step.",
        )


def coin(cell: Cell) -> tuple[Any, Any] | None:
    """p(t) and the draws of RST in the first run, as the optimizer computes them; None for a schedule of others."""
    from sam_bench.optim import rst, schedules  # torch takes seconds, and few panels need it

    settings, run = cell.settings, cell.first
    family = next((name for name in vars(schedules) if name.lower() == run["schedule"]), None)
    arguments = {
        k.rpartition(".")[2]: v for k, v in settings.items() if ".schedule." in f".{k}" and not k.endswith(NAMED)
    }
    if not family:
        return None
    schedule = getattr(schedules, family)(**arguments)
    warmup = settings.get("optimizer.warmup_epochs", 0) * run["steps"] // run["epochs"]

    def p(t: int) -> float:
        return rst.probability(schedule, t, run["steps"], warmup)

    return p, lambda t: rst.draw(run["seed"], t, p(t))


def accuracy_against_sharpness(table: Table) -> Iterator[Figure]:
    """Accuracy against each measure of sharpness, with a mark for each seed and for the mean."""
    for key, name in SHARPNESS.items():
        found = [(i, row, sharpness(row.cell, key, table.panel.sharpness)) for i, row in enumerate(table.rows)]
        found = [each for each in found if each[2]]
        if len(found) < 2:
            continue
        canvas = Canvas(4.0)
        (axes,) = canvas.axes
        means = {}
        for i, row, values in found:
            accuracies, tone = row.cell.by_seed(table.panel.metric, 100), color(table, row)
            x, y = list(values.values()), [accuracies[seed] for seed in values]
            means[i] = float(np.mean(x)), float(np.mean(y))
            text = f"{described(row)}, {name} {means[i][0]:.4g}"
            canvas.of_cell(axes.plot(x, y, marker(table, row), ms=4, color=tone, alpha=0.45)[0], i, text)
            canvas.of_cell(axes.plot(*means[i], marker(table, row), ms=8, mfc="none", color=tone)[0], i, text)
        every = [value for *_, values in found for value in values.values()]
        if min(every) > 0 and max(every) / min(every) > 20:
            axes.set_xscale("log")
        axes.set(xlabel=f"{name} ({table.panel.sharpness})", ylabel=table.panel.accuracy_name)
        label_points(canvas, table, means)
        yield canvas.finished(
            "sharpness",
            table,
            f"{table.panel.accuracy_name} against {name}",
            {"x": name},
            "Small markers are seeds, open markers are their means. Sharpness of the final weights on a fixed part of "
            "the training data, in float32.",
        )


def sensitivity(table: Table) -> Iterator[Figure]:
    """The spread over the trials of a tuning."""
    if table.panel.metric != "validation_accuracy":
        return
    methods = by_optimizer(table)
    best = {name: max(table.rows[i].accuracy.estimate for i in indices) for name, indices in methods.items()}
    order = sorted(methods, key=lambda name: best[name])
    canvas = Canvas(1.1 + 0.24 * len(order))
    (axes,) = canvas.axes
    for place, name in enumerate(order):
        values = [table.rows[i].accuracy.estimate for i in methods[name]]
        axes.plot([min(values), max(values)], [place, place], color=INK, lw=0.7, alpha=0.5)
        for i, value in zip(methods[name], values, strict=True):
            row = table.rows[i]
            dot = axes.plot(value, place, "o", ms=7 if value == best[name] else 4, color=color(table, row))
            canvas.of_cell(dot[0], i, described(row))
    axes.set_yticks(
        range(len(order)), [for_matplotlib(f"{name} ({len(methods[name])})") for name in order], fontsize=7.5
    )
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(table.panel.accuracy_name)
    yield canvas.finished(
        "sensitivity",
        table,
        "spread over the trials of each method",
        {},
        "One dot per trial, the larger one is the best; the number of trials is in parentheses. The length of a line "
        "depends on the range that was searched, and includes the noise of the seeds.",
    )


def surfaces(table: Table) -> Iterator[Figure]:
    """Filter-normalized loss surfaces around the last weights of the first seed of each cell."""
    found_in = [(i, row, row.cell.first.get("sharpness") or {}) for i, row in enumerate(table.rows)]
    rows = [each for each in found_in if "line" in each[2]]
    if not rows:
        return
    canvas = Canvas(3.8)
    (axes,) = canvas.axes
    for i, row, found in rows:
        at, loss = found["line"]["distance"], np.asarray(found["line"]["loss"], dtype=float)  # None: it overflowed
        line = axes.plot(at, loss, color=color(table, row), lw=1.3)
        canvas.of_cell(line[0], i, described(row))
        end = int(np.flatnonzero(np.isfinite(loss)).max(initial=0))
        name_at(axes, row.label, at[end], loss[end], color(table, row))
    axes.margins(x=0.12)
    axes.set(xlabel="distance along a filter-normalized random direction", ylabel="train loss")
    yield canvas.finished(
        "surface",
        table,
        "loss along a line",
        {"surface": "line, all methods"},
        "Loss along one random direction, scaled filter by filter to the norm of the weights (Li et al., arXiv "
        "1712.09913).",
    )
    for _, row, found in rows:
        canvas = Canvas(4.0)
        (axes,) = canvas.axes
        at = found["plane"]["distance"]
        loss = np.asarray(found["plane"]["loss"], dtype=float)
        levels = np.unique(np.quantile(loss[np.isfinite(loss)], np.linspace(0, 1, 14)))
        if len(levels) > 1:
            lines = axes.contour(at, at, loss, levels=levels, cmap="viridis", linewidths=1)
            axes.clabel(lines, fontsize=6.5, fmt="%.3g")
        axes.plot(0, 0, "+", color=INK)
        axes.set(xlabel="direction 1", ylabel="direction 2", aspect="equal")
        yield canvas.finished(
            "surface",
            table,
            f"loss around the weights of {row.label}",
            {"surface": f"plane, {row.label}"},
            f"{row.label}: loss over two random directions, scaled filter by filter (Li et al., arXiv 1712.09913).",
        )
