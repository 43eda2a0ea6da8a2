"""A data set of CIFAR's shape and size without its files, opened as any other: no time depends on a pixel's value."""

from typing import Any

import torch

from sam_bench.data import Arrays


def noise(root: Any = None) -> Arrays:
    """50,000 training and 10,000 test images of 32 x 32 random pixels."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(256, (60_000, 32, 32, 3), dtype=torch.uint8, generator=draw)
    labels = torch.randint(10, (60_000,), generator=draw)
    return Arrays(images[:50_000], labels[:50_000], images[50_000:], labels[50_000:], classes=10)
