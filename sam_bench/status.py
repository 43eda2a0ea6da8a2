"""python -m sam_bench.status +experiment=NAME protocol=NAME: the runs of a sweep, done, running, failed or missing.

Takes the same arguments as the sweep, with or without -m. Imports no torch.
"""

import os
import statistics
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from tqdm import tqdm

from sam_bench import hydra_errors, results
from sam_bench.conf_files import CONF
from sam_bench.configuration import folders_of, overrides_in, store_inner_methods
from sam_bench.errors import SettingError, reason
from sam_bench.settings import Settings
from sam_bench.sweep import but_seed, runs_of, settings_of_runs

STATES = ("done", "running", "failed", "interrupted", "missing", "refused")


@dataclass(frozen=True)
class State:
    """Where a run stands."""

    settings: Settings | None  # None: refused
    overrides: tuple[str, ...]  # what distinguishes it within the sweep
    state: str  # one of STATES
    epochs: int = 0  # finished ones
    note: str = ""  # the error
    result: dict[str, Any] | None = None  # of a finished run


def states(arguments: list[str]) -> list[State]:
    """Every run of a sweep, once. Raises a SettingError if an argument is wrong."""
    overrides, folders = overrides_in(arguments), folders_of(arguments)
    for folder in folders:
        store_inner_methods(folder)
    if not folders[0].is_dir():
        raise SettingError(f"--config-dir={folders[0]}: is not a folder")
    if folders[0] != CONF:
        overrides.append(f"hydra.searchpath=[file://{folders[0].resolve()}]")
    found: dict[Any, State] = {}
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("config", overrides, run_mode=RunMode.MULTIRUN)
        hydra = master.hydra
        parser = OverridesParser.create(config_loader=loader)
        task: Any = list(hydra.overrides.task)
        runs = runs_of(hydra.sweeper, hydra.runtime.choices, task, parser)
        common = set.intersection(*map(set, runs)) if runs else set()
        bar = tqdm(runs, unit="run", disable=None, leave=False)
        for run, settings in settings_of_runs(loader, master, bar, folders):
            mine = tuple(each for each in run if each not in common)
            if isinstance(settings, SettingError):
                found[tuple(run)] = State(None, mine, "refused", note=str(settings))
                continue
            for one in settings.each_seed():
                found.setdefault(one.folder, state_of(one, mine))
    return list(found.values())


def state_of(settings: Settings, overrides: tuple[str, ...] = ()) -> State:
    """Where the run stands, from its folder."""
    folder = settings.folder
    try:
        if result := results.read_of(settings):
            return State(settings, overrides, "done", settings.trainer.epochs, result=result)
    except SettingError as error:
        return State(settings, overrides, "failed", note=str(error))
    epochs = min(results.finished_epochs(folder), settings.trainer.epochs)
    if not folder.exists():
        return State(settings, overrides, "missing")
    if is_locked(folder / ".lock"):
        return State(settings, overrides, "running", epochs)
    if result := results.read(folder):  # finished a moment ago
        return State(settings, overrides, "done", settings.trainer.epochs, result=result)
    if failure := results.read_error(folder):
        return State(settings, overrides, "failed", epochs, failure)
    return State(settings, overrides, "interrupted", epochs)


def is_locked(path: Path) -> bool:
    """Whether a process is training in the folder of this lock."""
    if not path.is_file() or not os.access(path, os.W_OK):  # there is none, or it is not ours to take
        return False
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def estimate(state: State, done: list[State]) -> tuple[float, float] | None:
    """Seconds of training and testing, and propagations, that the rest of a run takes; None if nothing is like it.

    From the finished seeds of its cell. If there are none, from the runs on the same data and model, with the counted
    cost of the runs of the same method.
    """
    mine = state.settings
    if mine is None:
        return None
    same_data = [each for each in done if each.settings and _data(each.settings) == _data(mine)]
    if not same_data:
        return None
    same_method = [each for each in done if each.settings and each.settings.optimizer.name == mine.optimizer.name]
    same_cell = [each for each in done if each.settings and each.settings.cell == mine.cell]
    alike = _results(same_cell or same_method or same_data)
    propagations = statistics.mean(r["propagations_per_step"] for r in alike)
    cost = statistics.mean(map(results.counted_cost, alike))
    per_epoch = statistics.mean(
        cost * r["seconds"] / results.counted_cost(r) / r["epochs"] + (r.get("test_seconds") or 0) / r["epochs"]
        for r in _results(same_cell or same_data)
    )
    steps = statistics.mean(r["steps"] / r["epochs"] for r in _results(same_data))
    epochs = mine.trainer.epochs - state.epochs
    return epochs * per_epoch, epochs * steps * propagations


def _data(settings: Settings) -> tuple[object, ...]:
    return settings.dataset, settings.model, settings.trainer.batch_size


def _results(runs: list[State]) -> list[dict[str, Any]]:
    return [each.result for each in runs if each.result]


def table(all_states: list[State]) -> str:
    """Markdown: one row per cell, one column per state; then the errors; then what remains."""
    cells: dict[str, list[State]] = {}
    for each in all_states:
        cells.setdefault(each.settings.cell if each.settings else " ".join(each.overrides), []).append(each)
    lines = [
        "| cell | overrides | done | running | failed | interrupted | missing |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, seeds in cells.items():
        setting = " ".join(but_seed(seeds[0].overrides))
        columns = [("done",), ("running",), ("failed", "refused"), ("interrupted",), ("missing",)]
        lines.append(f"| {name} | {setting} | {' | '.join(_seeds(seeds, *wanted) for wanted in columns)} |")
    lines.append("")
    lines += [
        f"{each.state}: {each.settings.folder if each.settings else ' '.join(each.overrides)}: {one_line(each.note)}"
        for each in all_states
        if each.note
    ]
    counts = Counter(each.state for each in all_states)
    runs = "1 run" if len(all_states) == 1 else f"{len(all_states)} runs"
    lines.append(f"{runs}: {', '.join(f'{counts[state]} {state}' for state in STATES if counts[state])}")
    return "\n".join([*lines, remaining(all_states)])


def one_line(text: str, length: int = 300) -> str:
    """Text of a file in one line, without control characters."""
    line = "".join(each if each.isprintable() else " " for each in text)
    return line if len(line) <= length else f"{line[:length]} …"


def _seeds(seeds: list[State], *wanted: str) -> str:
    shown = []
    for each in seeds:
        if each.state in wanted and each.settings:
            part = f" ({each.epochs}/{each.settings.trainer.epochs})" if each.state != "done" and each.epochs else ""
            shown.append(f"{each.settings.seed}{part}")
    return f"seed {', '.join(shown)}" if shown else "all" if any(each.state in wanted for each in seeds) else ""


def remaining(all_states: list[State]) -> str:
    """The time and the propagations that remain, as far as finished runs tell."""
    done = [each for each in all_states if each.result]
    todo = [each for each in all_states if each.state not in ("done", "refused")]
    refused = sum(each.state == "refused" for each in all_states)
    if not todo:
        runs = "1 run is" if refused == 1 else f"{refused} runs are"
        return f"{runs} refused; the others are done" if refused else "nothing remains"
    known = [found for each in todo if (found := estimate(each, done))]
    if not known:
        return "remaining: unknown until a run has finished"
    seconds, propagations = (sum(part) for part in zip(*known, strict=True))
    unknown = len(todo) - len(known)
    return (
        f"remaining: {duration(seconds)} and {propagations:,.0f} propagations in one process, estimated from the "
        f"{len(done)} finished run{'s' * (len(done) > 1)}"
        + (f"; for {unknown} more, no run with the same data and model has finished" if unknown else "")
    )


def duration(seconds: float) -> str:
    """`1 h 23 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def main(arguments: list[str]) -> None:
    """Print the table."""
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return
    try:
        found = states(arguments)
        if found and {(each.state, each.note) for each in found} == {("refused", found[0].note)}:
            raise SettingError(found[0].note)
        print(table(found))
    except Exception as error:
        line = error if isinstance(error, SettingError) else hydra_errors.one_line(error, arguments)
        print(f"error: {line or reason(error)}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
