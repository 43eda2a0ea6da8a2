"""python -m sam_bench.status +experiment=NAME protocol=NAME: the runs of a sweep, done, running, failed or missing.

Takes the words of a sweep, with or without -m. Imports no torch.
"""

import re
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
from sam_bench.configuration import CONF, flags_first, folders_of, settings_of_run, store_inner_methods, without_hydra
from sam_bench.errors import SettingError, reason
from sam_bench.settings import Settings
from sam_bench.sweep import runs_of

SEED = re.compile(r"seed=(\d+)")
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

    @property
    def remaining(self) -> float:
        """The share of its epochs that are still to be trained."""
        return 1 - self.epochs / self.settings.trainer.epochs if self.settings and self.state != "done" else 0.0


def states(arguments: list[str]) -> list[State]:
    """Every run of a sweep, once. Raises a SettingError if the words are not those of a sweep."""
    arguments = [each for each in flags_first(arguments) if each not in ("-m", "--multirun")]
    folders = folders_of(arguments)
    for folder in folders:
        store_inner_methods(folder)
    overrides = [each for each in arguments if not each.startswith("-")]
    if "--config-dir" in arguments or "-cd" in arguments:
        overrides.remove(str(folders[0]))
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
        composed: dict[Any, Settings] = {}  # of one seed; the others differ in nothing else
        for run in tqdm(runs, unit="run", disable=None, leave=False):
            mine = tuple(each for each in run if each not in common)
            but_seed = tuple(each for each in run if not SEED.fullmatch(each))
            try:
                if but_seed not in composed:
                    config = loader.load_sweep_config(master, run)
                    choices = config.hydra.runtime.choices
                    composed[but_seed], _ = settings_of_run(without_hydra(config), choices, run, folders, True)
                settings = composed[but_seed]
                if seed := next(filter(None, map(SEED.fullmatch, run)), None):
                    settings = settings.model_copy(update={"seed": int(seed[1])})
                for one in settings.each_seed():
                    found.setdefault(one.folder, state_of(one, mine))
            except SettingError as error:
                found[tuple(run)] = State(None, mine, "refused", note=str(error))
    return list(found.values())


def state_of(settings: Settings, overrides: tuple[str, ...] = ()) -> State:
    """Where the run stands, from its folder."""
    folder = settings.folder
    try:
        if result := results.read_of(settings):
            return State(settings, overrides, "done", settings.trainer.epochs, result=result)
    except SettingError as error:
        return State(settings, overrides, "failed", note=str(error))
    epochs = results.finished_epochs(folder)
    if not folder.exists():
        return State(settings, overrides, "missing")
    if is_locked(folder / ".lock"):
        return State(settings, overrides, "running", epochs)
    if failure := results.read_error(folder):
        return State(settings, overrides, "failed", epochs, failure)
    return State(settings, overrides, "interrupted" if epochs else "missing", epochs)


def is_locked(path: Path) -> bool:
    """Whether a process is training in the folder of this lock."""
    if not path.exists():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError):
        return True
    lock.release()
    return False


def expected_seconds(state: State, done: list[State]) -> float | None:
    """Seconds of training and testing of the whole run, from the finished runs most like it; None if there is none."""
    mine = state.settings
    if mine is None:
        return None

    def likeness(other: State) -> tuple[bool, ...]:
        theirs = other.settings
        assert theirs is not None
        return (
            theirs.cell == mine.cell,
            theirs.model == mine.model and theirs.dataset == mine.dataset,
            theirs.optimizer.name == mine.optimizer.name,
        )

    best = max(map(likeness, done), default=None)
    alike = [other for other in done if likeness(other) == best]
    if not alike or not any(best or ()):
        return None
    per_epoch = [
        (each.result["seconds"] + (each.result.get("test_seconds") or 0)) / each.result["epochs"]
        for each in alike
        if each.result
    ]
    return statistics.mean(per_epoch) * mine.trainer.epochs


def table(all_states: list[State]) -> str:
    """Markdown: a row a cell, a column a state; then what failed; then what remains."""
    cells: dict[str, list[State]] = {}
    for each in all_states:
        cells.setdefault(each.settings.cell if each.settings else " ".join(each.overrides), []).append(each)
    lines = ["| cell | setting | done | running | failed | not done |", "| --- | --- | --- | --- | --- | --- |"]
    for name, seeds in cells.items():
        setting = " ".join(each for each in seeds[0].overrides if not each.lstrip("+").startswith("seed="))
        columns = [_seeds(seeds, "done"), _seeds(seeds, "running"), _seeds(seeds, "failed", "refused")]
        lines.append(f"| {name} | {setting} | {' | '.join([*columns, _seeds(seeds, 'interrupted', 'missing')])} |")
    lines.append("")
    lines += [
        f"{each.state}: {each.settings.folder if each.settings else ' '.join(each.overrides)}: {each.note}"
        for each in all_states
        if each.note
    ]
    counts = Counter(each.state for each in all_states)
    lines.append(
        f"{len(all_states)} runs: {', '.join(f'{counts[state]} {state}' for state in STATES if counts[state])}"
    )
    return "\n".join([*lines, remaining(all_states)])


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
    if not todo:
        return "nothing remains"
    known = [(each, seconds) for each in todo if (seconds := expected_seconds(each, done)) is not None]
    if not known:
        return "remaining: unknown until a run has finished"
    seconds = sum(each.remaining * whole for each, whole in known)
    propagations = 0.0
    for each, _ in known:
        alike = [
            other for other in done if other.settings and each.settings and other.settings.cell == each.settings.cell
        ]
        per_step = [other.result["propagations_per_step"] for other in alike or done if other.result]
        steps = [other.result["steps"] / other.result["epochs"] for other in alike or done if other.result]
        epochs = each.remaining * each.settings.trainer.epochs if each.settings else 0
        propagations += statistics.mean(per_step) * statistics.mean(steps) * epochs
    unknown = f"; {len(todo) - len(known)} runs are like none that has finished" if len(known) < len(todo) else ""
    return (
        f"remaining: {duration(seconds)} and {propagations:,.0f} propagations in one process, "
        f"estimated from {len(done)} finished runs{unknown}"
    )


def duration(seconds: float) -> str:
    """`1 h 23 min`."""
    minutes = round(seconds / 60)
    return (
        f"{seconds:.0f} s"
        if seconds < 60
        else f"{minutes} min"
        if minutes < 60
        else f"{minutes // 60} h {minutes % 60} min"
    )


def main(arguments: list[str]) -> None:
    """Print the table."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return
    try:
        print(table(states(arguments)))
    except Exception as error:
        line = error if isinstance(error, SettingError) else hydra_errors.one_line(error, arguments)
        print(f"error: {line or reason(error)}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
