"""A typical training loop: DataLoader, torchvision's transforms on PIL images, eager PyTorch, SGD.

Each option turns on one optimization of sam_bench; `benchmarks.ladder` measures them one after the other. For each
number of steps read from standard input, it runs that many steps and prints the number of propagations.
"""

import argparse
import sys
from collections.abc import Iterator

import torch
import torch.nn.functional as F  # noqa: N812
from PIL import Image
from torch import Tensor
from torchvision import transforms

from benchmarks.contenders import noise, settings_of
from sam_bench import machine
from sam_bench.build import create_dataset, create_model

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


class Images(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """CIFAR as torchvision opens it: an array, a PIL image an item, the usual transforms."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images.numpy(), labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def loaded(batch_size: int, workers: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches without end from a DataLoader."""
    arrays = noise()
    loader = torch.utils.data.DataLoader(
        Images(arrays.train_images, arrays.train_labels),
        batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        persistent_workers=workers > 0,
    )
    while True:
        for images, labels in loader:
            yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def resident(batch_size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches without end from the device."""
    dataset = create_dataset(settings_of().dataset, batch_size, device, 0)
    for epoch in range(1_000_000):
        dataset.start(epoch)
        for _ in range(dataset.steps_per_epoch):
            images, labels, _ = dataset.batch()
            yield images, labels


def main() -> None:
    """Step as told until standard input ends."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plain", description=__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--model", default="small_resnet")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--resident", action="store_true", help="the data set on the device, batched there")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--keep-freed-memory", action="store_true")
    parser.add_argument("--fused", action="store_true")
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()

    device = machine.pick_device(args.device)
    torch.backends.cudnn.benchmark = True
    if args.keep_freed_memory:
        machine.keep_freed_memory()
    settings = settings_of(f"model={args.model}")
    model = create_model(settings.model, 10, 3, 32).to(device).train()
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    model = model.to(memory_format=layout)
    forward = torch.compile(model) if args.compile else model
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=args.fused or None
    )
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200 * 390)
    batches = resident(args.batch_size, device) if args.resident else loaded(args.batch_size, args.workers, device)

    print(0.0, flush=True)  # ready
    for line in sys.stdin:
        for _ in range(int(line)):
            images, labels = next(batches)
            images = images.contiguous(memory_format=layout)
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled=args.precision == "bf16"):
                loss = F.cross_entropy(forward(images), labels)
            loss.backward()
            optimizer.step()
            scheduler.step()
        machine.wait_for(device)
        print(float(line), flush=True)


if __name__ == "__main__":
    main()
