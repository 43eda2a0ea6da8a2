"""Several seeds side by side in one process, as `trainer.seeds` trains them: images per second together."""

import statistics
from collections.abc import Sequence

from benchmarks import measure
from benchmarks.contenders import Ours
from sam_bench import machine


class Together:
    """Some of the runs, a step of each in turn."""

    untimed = 1

    def __init__(self, runs: Sequence[Ours]) -> None:
        self.runs = runs

    def go(self, steps: int) -> float:
        """So many steps of each."""
        before = sum(one.run.optimizer.propagations for one in self.runs)
        for _ in range(steps):
            for one in self.runs:
                one.launch()
        machine.wait_for(self.runs[0].device)
        return sum(one.run.optimizer.propagations for one in self.runs) - before


def main() -> None:
    """Measure and write."""
    parser = measure.options("seeds", __doc__, rounds=5, steps=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--models", nargs="+", default=["small_resnet", "resnet18"])
    args = parser.parse_intermixed_args()

    rows = []
    for model in args.models:
        runs = [Ours(f"model={model}", "optimizer=sam", f"seed={i}", *args.overrides) for i in range(max(args.seeds))]
        together = {str(n): Together(runs[:n]) for n in args.seeds}
        measured = measure.side_by_side(together, args.rounds, args.steps)
        times = {name: seconds for name, (seconds, _) in measured.items()}
        batch_size, first = runs[0].run.settings.trainer.batch_size, str(args.seeds[0])
        for name, seconds in times.items():
            times_the_work = int(name) / args.seeds[0]
            rows.append(
                {
                    "model": model,
                    "optimizer": "sam",
                    **measure.how(runs[0]),
                    "seeds": name,
                    "images_per_second_together": round(int(name) * batch_size / statistics.median(seconds)),
                    f"over_{first}_seed": round(times_the_work * measure.ratio(times[first], seconds), 2),
                    **measure.where(runs[0].device),
                }
            )
        measure.save(args.out, rows)
    measure.write(args.out, rows)


if __name__ == "__main__":
    main()
