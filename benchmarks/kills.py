"""python -m benchmarks.kills: a joblib sweep of many tiny runs, processes of which are killed, and two more calls.

Prints the time of the three calls over that of the same sweep without kills, and checks that every run is finished,
once, with the weights of the undisturbed one.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

TINY = ("logger=none", "dataset.subset=320", "trainer.batch_size=32", "trainer.epochs=20", "optimizer=sam")


def start(runs: Path, n: int) -> subprocess.Popen[str]:
    """The sweep."""
    command = [sys.executable, "-m", "sam_bench", "-m", "hydra/launcher=joblib", *TINY, f"seed=range({n})"]
    return subprocess.Popen([*command, f"runs={runs}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def workers(runs: Path) -> list[int]:
    """The processes that do a run at this moment: those with a log open."""
    found = []
    for folder in Path("/proc").glob("[0-9]*/fd"):
        try:
            files = [os.readlink(link) for link in folder.iterdir()]
        except OSError:  # it has ended
            continue
        if any(file.startswith(str(runs / ".launcher")) for file in files):
            found.append(int(folder.parent.name))
    return found


def main() -> None:
    """Sweep, sweep with kills, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--kills", type=int, default=20)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        undisturbed, disturbed = Path(folder, "undisturbed").resolve(), Path(folder, "disturbed").resolve()
        begun = time.perf_counter()
        start(undisturbed, given.runs).communicate()
        ideal = time.perf_counter() - begun

        begun = time.perf_counter()
        process, draw = start(disturbed, given.runs), random.Random(0)
        moments = sorted(draw.uniform(0.1, 0.8) * ideal for _ in range(given.kills))
        kills = 0
        for moment in moments:
            time.sleep(max(0.0, begun + moment - time.perf_counter()))
            while not (busy := workers(disturbed)) and process.poll() is None:
                time.sleep(0.01)
            if busy:
                os.kill(draw.choice(busy), signal.SIGKILL)
                kills += 1
        out, _ = process.communicate()
        print(f"first call: status {process.returncode}, {kills} kills, {out.count('was killed') // 2} runs killed")
        for call in ("second", "third"):
            process = start(disturbed, given.runs)
            out, _ = process.communicate()
            print(f"{call} call: status {process.returncode}: {out.strip().splitlines()[0]}")
        total = time.perf_counter() - begun

        finished = sorted(path.parent.name for path in disturbed.glob("*/*/result.json"))
        assert len(finished) == len(set(finished)) == given.runs, finished
        assert not list(disturbed.glob("*/*/*.partial"))
        for path in undisturbed.glob("*/*/last.pt"):
            one, other = (
                torch.load(each, weights_only=True)["model"]
                for each in (path, disturbed / path.relative_to(undisturbed))
            )
            assert all(torch.equal(one[key], other[key]) for key in one), path
        print(f"{given.runs} runs: {ideal:.0f} s undisturbed, {total:.0f} s in three calls, ratio {total / ideal:.3f}")


if __name__ == "__main__":
    main()
