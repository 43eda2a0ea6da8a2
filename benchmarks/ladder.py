"""Images per second of SGD, from a plain loop to ours, with one change per row."""

import statistics
from typing import Any

from benchmarks import measure
from benchmarks.contenders import Contender, Ours, Plain
from sam_bench import machine

WORKERS = "2 workers in the loader"
RUNGS: dict[str, list[str]] = {
    "plain loop": [],
    WORKERS: [],
    "data set on the device": ["--resident"],
    "channels last": ["--channels-last"],
    "freed memory kept": ["--keep-freed-memory"],
    "fused SGD": ["--fused"],
    "compiled": ["--compile"],
    "bf16": ["--precision", "bf16"],
}


def main() -> None:
    """Measure and write."""
    parser = measure.options("ladder", __doc__, rounds=8, steps=8)
    parser.add_argument("--model", default="small_resnet")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="of every row except bf16")
    args = parser.parse_intermixed_args()

    device = machine.pick_device(args.device)
    options = ["--device", str(device), "--model", args.model, "--precision", args.precision]
    contenders: dict[str, Contender] = {}
    plain = []
    for rung, option in RUNGS.items():
        if rung == WORKERS:  # which the data on the device makes needless
            plain.append(Plain(*options, workers=2))
        else:
            options += option
            plain.append(Plain(*options))
        contenders[rung] = plain[-1]
    of_ours = [f"model={args.model}", "optimizer=sgd", f"trainer.device={args.device}"]
    of_ours += ["trainer.deterministic=false", f"trainer.precision={args.precision}", *args.overrides]
    ours, run_of_ours = " ".join(["sam_bench", *args.overrides]), Ours(*of_ours)
    contenders[ours] = run_of_ours

    batch_size = run_of_ours.run.settings.trainer.batch_size

    before_it = dict(zip(list(contenders)[1:], contenders, strict=False)) | {"data set on the device": "plain loop"}

    def row(rung: str, times: measure.Times) -> dict[str, Any]:
        seconds, before = times[rung][0], times[before_it.get(rung, rung)][0]
        return {
            "model": args.model,
            "rung": rung,
            "images_per_second": round(batch_size / statistics.median(seconds)),
            "over_the_rung_before": "" if rung == ours else round(measure.ratio(before, seconds), 3),
            "over_the_plain_loop": round(measure.ratio(times["plain loop"][0], seconds), 3),
            **measure.where(device),
        }

    times = measure.table(contenders, args, row)
    for process in plain:
        process.close()
    measure.write(args.out, [row(rung, times) for rung in times])


if __name__ == "__main__":
    main()
