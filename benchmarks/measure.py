"""Timing side by side, and what all tables say of where they were made."""

import argparse
import csv
import datetime
import math
import os
import random
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.contenders import Contender, Ours
from sam_bench import machine

# steps; on a GPU enough that RST has made three of each kind, which capturing waits for, and recorded both
WARM_UP = 24 if torch.cuda.is_available() else 4

SETTLE = 0.2  # seconds: workers of a loader fill their queues, threads that spin go to sleep


def options(table: str, doc: str | None, rounds: int, steps: int) -> argparse.ArgumentParser:
    """The options of every table that is timed side by side."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{table}", description=doc)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--steps", type=int, default=steps, help="steps per round")
    parser.add_argument("--out", type=Path, default=Path(f"{table}.csv"))
    parser.add_argument("overrides", nargs="*", help="settings as for python -m sam_bench: model=resnet18 ...")
    return parser


Times = dict[str, tuple[list[float], list[float]]]  # seconds per step and counts per step of each round, by contender


def side_by_side(
    contenders: Mapping[str, Contender],
    rounds: int,
    steps: int,
    warm_up: int = WARM_UP,
    after_round: Callable[[Times], None] = lambda _: None,
) -> Times:
    """Time the contenders in rounds.

    A round times `steps` steps of each contender, in an order of its own, so that a busy machine disturbs all of them
    alike. Times of the same round are compared. `after_round` gets the times so far.
    """
    # each contender compiles the closure for its own model, in both modes of BatchNorm
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 4 * len(contenders))
    times: Times = {name: ([], []) for name in contenders}
    with tqdm(total=rounds * len(contenders), unit="timing", disable=None, leave=False) as bar:
        for name, contender in contenders.items():
            bar.set_postfix_str(f"warming up {name}")
            contender.go(warm_up)
        order = random.Random(0)
        for _ in range(rounds):
            for name in order.sample(list(contenders), len(contenders)):
                bar.set_postfix_str(name)
                time.sleep(SETTLE)
                contenders[name].go(contenders[name].untimed)
                start = time.perf_counter()
                count = contenders[name].go(steps)
                times[name][0].append((time.perf_counter() - start) / steps)
                times[name][1].append(count / steps)
                bar.update()
            after_round(times)
    return times


def ratio(times: list[float], others: list[float]) -> float:
    """The median over the rounds of one contender's time over another's."""
    return statistics.median(a / b for a, b in zip(times, others, strict=True))


def ratio_to_count(times: list[float], counts: list[float], others: list[float]) -> float:
    """The same over what each round counts, since RST's differ from round to round."""
    return statistics.median(a / b / n for a, b, n in zip(times, others, counts, strict=True))


def matrix_peak(device: torch.device, precision: str) -> float:
    """Operations a second of the best of a few square matrix products in the precision of the training."""
    size, repeats = (8192, 20) if device.type == "cuda" else (2048, 3)
    torch.set_float32_matmul_precision("high")  # TF32 on a GPU, which convolutions use as well
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = math.inf
    for _ in range(6):
        machine.wait_for(device)
        start = time.perf_counter()
        for _ in range(repeats):
            a @ b
        machine.wait_for(device)
        best = min(best, (time.perf_counter() - start) / repeats)
    return 2 * size**3 / best


def how(one: Ours) -> dict[str, Any]:
    """How a run of ours makes its steps."""
    trainer = one.run.settings.trainer
    return {
        "batch_size": trainer.batch_size,
        "precision": trainer.precision,
        "compiled": one.compiled,
        "captured": one.captured,
        "deterministic": trainer.deterministic,
    }


def where(device: torch.device) -> dict[str, Any]:
    """Device, version and date, which stand in every row."""
    name = machine.describe(device) if device.type == "cuda" else f"{os.cpu_count()} CPU cores"
    return {"device": name, "torch": torch.__version__, "date": datetime.date.today().isoformat()}


def table(
    contenders: Mapping[str, Contender], args: argparse.Namespace, row: Callable[[str, Times], dict[str, Any]]
) -> Times:
    """Time the contenders and write the table after every round, a row for each."""
    return side_by_side(
        contenders, args.rounds, args.steps, after_round=lambda times: save(args.out, [row(n, times) for n in times])
    )


def save(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the rows as CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the rows as CSV, and as a table on standard output."""
    save(path, rows)
    hidden = set(where(torch.device("cpu")))
    names = [name for name in rows[0] if name not in hidden]
    cells = [names, *([str(row[name]) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    print(f"-> {path}\n", flush=True)
