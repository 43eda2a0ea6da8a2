"""Images per second of `dataset=imagefolder`, by number of workers, compared with the speed of the model."""

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from benchmarks import measure
from benchmarks.contenders import Ours, settings_of
from sam_bench import machine
from sam_bench.build import create_dataset

CLASSES, SIDE = 4, 256


def write_images(root: Path, images: int) -> None:
    """JPEG files of about a photograph's size: noise on a coarse grid, made smooth."""
    draw = np.random.default_rng(0)
    for part, count in (("train", images), ("val", CLASSES)):
        for i in range(count):
            folder = root / part / str(i % CLASSES)
            folder.mkdir(parents=True, exist_ok=True)
            coarse = Image.fromarray(draw.integers(256, size=(32, 32, 3), dtype=np.uint8))
            coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(folder / f"{i}.jpeg")


def main() -> None:
    """Measure and write."""
    parser = measure.options("loader", __doc__, rounds=3, steps=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--model", default="resnet18", help="a model name of timm")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--precision", default="fp32")
    args = parser.parse_intermixed_args()

    device, rates = machine.pick_device(args.device), {}
    with tempfile.TemporaryDirectory() as root:
        write_images(Path(root), args.images)
        overrides = ["dataset=imagefolder", f"dataset.root={root}", f"dataset.image_size={args.image_size}"]
        overrides += [f"trainer.batch_size={args.batch_size}", f"trainer.device={args.device}"]
        for workers in tqdm(args.workers, unit="loader", disable=None, leave=False):
            folder = create_dataset(
                settings_of(*overrides, f"dataset.workers={workers}").dataset, args.batch_size, device, 0
            )
            seconds = []
            for epoch in range(args.rounds):
                folder.start(epoch)
                made_before = workers + 1  # the start of the workers, and a batch of each, are no part of the rate
                for _ in range(made_before):
                    folder.fetch()
                start = time.perf_counter()
                for _ in range(folder.steps_per_epoch - made_before):
                    folder.fetch()
                    folder.batch()
                machine.wait_for(device)
                seconds.append((time.perf_counter() - start) / (folder.steps_per_epoch - made_before))
            rates[f"loader, {workers} workers"] = args.batch_size / statistics.median(seconds)

        model = ["optimizer=sgd", "model=timm", f"model.architecture={args.model}", "dataset.workers=0"]
        ours = Ours(*overrides, *model, f"trainer.precision={args.precision}", "trainer.deterministic=false")
        run, seconds = ours.run, []
        with run.on_stream():
            run.dataset.fetch()
            for _ in range(args.steps + 2):
                start = time.perf_counter()
                run.closure.batch(*run.dataset.batch())
                run.optimizer.step(run.closure)
                machine.wait_for(device)
                seconds.append(time.perf_counter() - start)
        rates[f"{args.model}, SGD, {args.precision}, eager"] = args.batch_size / statistics.median(seconds[2:])
    rows = [
        {"image_size": args.image_size, "what": what, "images_per_second": round(rate, 1), **measure.where(device)}
        for what, rate in rates.items()
    ]
    measure.write(args.out, rows)


if __name__ == "__main__":
    main()
