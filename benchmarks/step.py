"""The step of every registered optimizer, beside SGD's, the plain loop's and another package's SAM in our loop."""

import copy
import statistics
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import measure
from benchmarks.contenders import Contender, Ours, Plain, PytorchOptimizerSAM
from sam_bench.methods import METHODS

# what `optimizer=NAME` alone does not say: the step that is meant, after what is special in the first epochs
EXTRA = {
    "timm": ["optimizer.base.opt=lamb"],
    "esam": ["trainer.compile=false"],  # it changes its backward every step
    "ausam": ["optimizer.full_epochs=0"],
    "saf": ["optimizer.start_epochs=0"],
    "mesa": ["optimizer.start_epochs=0"],
    "vsam": ["optimizer.sam_epochs=0"],
    "late_sam": ["optimizer.schedule.b=0"],  # its last epochs
}


class OperationsAround(TorchDispatchMode):
    """Counts the operations that reach the dispatcher in a step, but for those of the closure."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.counting = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.counting:
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def operations_around(optimizer: torch.optim.Optimizer, closure: Any, steps: int) -> list[str]:
    """The most operations around the passes of one of `steps` steps."""
    counter, most = OperationsAround(), list[str]()

    def uncounted(call: Any) -> Any:
        def quietly(*args: Any, **kwargs: Any) -> Any:
            counter.counting = False
            try:
                return call(*args, **kwargs)
            finally:
                counter.counting = True

        return quietly

    quiet: Any = uncounted(closure)
    if hasattr(closure, "evaluate"):  # one that tells samples apart
        kind = type(closure)
        methods = {name: uncounted(getattr(kind, name)) for name in ("__call__", "evaluate")}
        quiet = copy.copy(closure)
        quiet.__class__ = type("Uncounted", (kind,), methods)
    for _ in range(steps):
        counter.names.clear()
        with counter:
            optimizer.step(quiet)
        most = max(most, list(counter.names), key=len)
    return most


def main() -> None:
    """Measure and write."""
    parser = measure.options("step", __doc__, rounds=10, steps=8)
    parser.add_argument("--optimizers", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="NAME")
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 2], help="of the plain loop, one each")
    args = parser.parse_intermixed_args()

    names = ["sgd", *(name for name in args.optimizers if name != "sgd")]
    ours = {name: Ours(f"optimizer={name}", *args.overrides, *EXTRA.get(name, [])) for name in names}
    settings, device = ours["sgd"].run.settings, ours["sgd"].device
    trainer = settings.trainer
    contenders: dict[str, Contender] = {**ours}
    if "sam" in ours:
        contenders["sam of pytorch_optimizer"] = PytorchOptimizerSAM(*args.overrides)
    plain: dict[str, Plain] = {}
    for workers in args.workers:
        options = ["--device", str(device), "--model", settings.model.label, "--precision", trainer.precision]
        options += ["--batch-size", str(trainer.batch_size)]
        plain[f"plain loop, {workers} workers"] = Plain(*options, workers=workers)
    contenders |= plain

    times = measure.side_by_side(contenders, args.rounds, args.steps)
    for process in plain.values():
        process.close()

    written = Ours("optimizer=sgd", *args.overrides, "trainer.compile=false").run
    written.closure.batch(*written.dataset.batch())
    flops, peak = written.closure.flops(), measure.matrix_peak(device, trainer.precision)
    rows = []
    for name, (seconds, counts) in times.items():
        ratio, counted = measure.ratio(seconds, times["sgd"][0]), statistics.mean(counts)
        one, median = ours.get(name), statistics.median(seconds)
        rate = statistics.median(n / t for n, t in zip(counts, seconds, strict=True))
        rows.append(
            {
                "model": settings.model.label,
                **(measure.how(one) if one else dict.fromkeys(measure.how(ours["sgd"]), "")),
                "optimizer": name,
                "step_ms": round(median * 1e3, 3),
                "ratio_to_sgd": round(ratio, 3),
                "count": round(counted, 3),
                "ratio_to_count": round(measure.ratio_to_count(seconds, counts, times["sgd"][0]), 3),
                "images_per_second": round(trainer.batch_size / median),
                "share_of_matrix_peak": round(flops * rate / peak, 3),
                "operations": len(operations_around(one.run.optimizer, one.run.closure, 12)) if one else "",
                "extra_copies": round(one.extra_copies(), 2) if one else "",
                **measure.where(device),
            }
        )
    measure.write(args.out, rows)


if __name__ == "__main__":
    main()
