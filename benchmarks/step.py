"""Step time of every optimizer, compared with SGD, a plain loop, and the SAM of pytorch_optimizer in our loop."""

import statistics
from typing import Any

from benchmarks import measure
from benchmarks.contenders import Contender, Ours, Plain, PytorchOptimizerSAM
from sam_bench.conf_files import CONF, optimizer_files
from sam_bench.testing.dispatch import operations_around

METHODS = list(optimizer_files(CONF))

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


def main() -> None:
    """Measure and write."""
    parser = measure.options("step", __doc__, rounds=10, steps=8)
    parser.add_argument("--optimizers", nargs="+", default=METHODS, choices=METHODS, metavar="NAME")
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 2], help="of the plain loop, a row for each")
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
        options = ["--device", str(device), "--model", settings.model.name, "--precision", trainer.precision]
        options += ["--batch-size", str(trainer.batch_size)]
        plain[f"plain loop, {workers} workers"] = Plain(*options, workers=workers)
    contenders |= plain

    eager = Ours("optimizer=sgd", *args.overrides, "trainer.compile=false").run
    eager.closure.batch(*eager.dataset.batch())
    flops, peak = eager.closure.flops(), measure.matrix_peak(device, trainer.precision)

    def row(name: str, times: measure.Times) -> dict[str, Any]:
        (seconds, counts), of_sgd = times[name], times["sgd"][0]
        one, median = ours.get(name), statistics.median(seconds)
        rate = statistics.median(n / t for n, t in zip(counts, seconds, strict=True))
        return {
            "model": settings.model.name,
            **(measure.how(one) if one else dict.fromkeys(measure.how(ours["sgd"]), "")),
            "optimizer": name,
            "step_ms": round(median * 1e3, 3),
            "ratio_to_sgd": round(measure.ratio(seconds, of_sgd), 3),
            "count": round(statistics.mean(counts), 3),
            "ratio_to_count": round(measure.ratio_to_count(seconds, counts, of_sgd), 3),
            "images_per_second": round(trainer.batch_size / median),
            "share_of_matrix_peak": round(flops * rate / peak, 3),
            "operations": operations.get(name, ""),
            "extra_copies": round(one.extra_copies(), 2) if one else "",
            **measure.where(device),
        }

    operations: dict[str, Any] = dict.fromkeys(ours, "")
    times = measure.table(contenders, args, row)
    for process in plain.values():
        process.close()
    for name, one in ours.items():
        operations[name] = len(operations_around(one.run.optimizer, one.run.closure, 12))
    measure.write(args.out, [row(name, times) for name in times])


if __name__ == "__main__":
    main()
