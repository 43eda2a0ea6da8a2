"""How the cost of a step, and SAM's and RST's over what they count, grow with width, depth, batch and data."""

import statistics

from benchmarks import measure
from benchmarks.contenders import Ours

WIDE = ["model._target_=sam_bench.models.wide_resnet.WideResNet"]
AXES = {
    "width": {str(k): [*WIDE, "+model.depth=10", f"+model.widen={k}"] for k in (1, 2, 4)},
    "depth": {str(d): [*WIDE, f"+model.depth={d}", "+model.widen=1"] for d in (10, 16, 28)},
    "batch": {str(b): [f"trainer.batch_size={b}"] for b in (32, 64, 128, 256)},
    "data": {str(n): [f"dataset.subset={n}"] for n in (1000, 5000, 20_000, 50_000)},
}
OPTIMIZERS = ("sgd", "sam", "rst")


def main() -> None:
    """Measure and write."""
    parser = measure.options("scaling", __doc__, rounds=5, steps=3)
    parser.add_argument("--axes", nargs="+", default=list(AXES), choices=list(AXES))
    args = parser.parse_intermixed_args()

    rows = []
    for axis in args.axes:
        for value, overrides in AXES[axis].items():
            contenders = {name: Ours(f"optimizer={name}", *args.overrides, *overrides) for name in OPTIMIZERS}
            times = measure.side_by_side(contenders, args.rounds, args.steps)
            seconds, sgd = times["sgd"][0], contenders["sgd"].run
            rows.append(
                {
                    "axis": axis,
                    "value": value,
                    "parameters": sum(p.numel() for p in sgd.model.parameters()),
                    "sgd_step_ms": round(statistics.median(seconds) * 1e3, 2),
                    "sgd_images_per_second": round(sgd.settings.trainer.batch_size / statistics.median(seconds)),
                    **{
                        f"{name}_ratio_to_count": round(measure.ratio_to_count(*times[name], seconds), 3)
                        for name in OPTIMIZERS[1:]
                    },
                    **measure.how(contenders["sgd"]),
                    **measure.where(contenders["sgd"].device),
                }
            )
            measure.save(args.out, rows)
    measure.write(args.out, rows)


if __name__ == "__main__":
    main()
