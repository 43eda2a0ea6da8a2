"""Startup time: seconds to an answer and to the first training step, and the overhead of twenty short runs."""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks import measure
from sam_bench import machine

SAM_BENCH = [sys.executable, "-m", "sam_bench"]
SHORT = ["trainer.epochs=1", "logger=none"]  # on digits, with the small ResNet
COMMANDS = {
    "--help": [*SAM_BENCH, "--help"],
    "a wrong setting": [*SAM_BENCH, "optimizer.inner.rho=-1"],
    "import torch": [sys.executable, "-c", "import torch"],
}
TRAININGS = {
    "one epoch of digits": ["optimizer=rst"],
    "20 runs, seed=range(20)": ["-m", "optimizer=rst", "seed=range(20)"],
    "20 runs, 4 optimizers, trainer.seeds=5": ["-m", "optimizer=sgd,sam,rst,grst", "trainer.seeds=5"],
}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description=__doc__)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path("startup.csv"))
    args = parser.parse_args()

    rows: list[dict[str, Any]] = []
    with tqdm(total=args.repeats * (len(COMMANDS) + len(TRAININGS)), unit="command", disable=None, leave=False) as bar:
        for what, command in COMMANDS.items():
            seconds = []
            for _ in range(args.repeats):
                start = time.perf_counter()
                status = subprocess.run(command, capture_output=True, check=False).returncode
                seconds.append(time.perf_counter() - start)
                assert status == (2 if what == "a wrong setting" else 0), what
                bar.update()
            rows.append(row(what, statistics.median(seconds)))
        for what, words in TRAININGS.items():
            measured = []
            for _ in range(args.repeats):
                measured.append(training([*SAM_BENCH, *words, *SHORT, f"trainer.device={args.device}"]))
                bar.update()
            rows.append(row(what, *(statistics.median(column) for column in zip(*measured, strict=True))))
    device = machine.pick_device(args.device)
    measure.write(args.out, [{**one, **measure.where(device)} for one in rows])


def training(command: list[str]) -> tuple[float, float, float, float]:
    """Seconds in all, to the first step, of training alone, and what came after the first step over the latter."""
    with tempfile.TemporaryDirectory() as runs:
        start, began = time.perf_counter(), time.time()
        subprocess.run([*command, f"runs={runs}"], capture_output=True, check=True)
        total = time.perf_counter() - start
        # config.yaml is written just before the first step
        first = min(path.stat().st_mtime for path in Path(runs).glob("*/*/config.yaml")) - began
        own = sum(json.loads(path.read_text())["seconds"] for path in Path(runs).glob("*/*/result.json"))
        return total, first, own, (total - first) / own


def row(what: str, *values: float) -> dict[str, Any]:
    """A row of the table; what a command has not is empty."""
    names = ("seconds", "to_first_step", "training", "after_first_step_over_training")
    return {"what": what, **dict.fromkeys(names, ""), **{n: round(v, 2) for n, v in zip(names, values, strict=False)}}


if __name__ == "__main__":
    main()
