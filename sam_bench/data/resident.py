"""A data set that resides on the device as uint8 and is cropped, flipped, cut and normalized there, batch by batch."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from sam_bench.data import Arrays
from sam_bench.data.sampling import balanced_subset, check_batch
from sam_bench.errors import SettingError
from sam_bench.optim.checks import require_boolean, require_integer
from sam_bench.optim.seeding import derived_seed

TEST_BATCH = 1000


@dataclass(frozen=True)
class Augmentation:
    """How training images are chosen and augmented; lengths are in pixels."""

    subset: int | None = (
        None  # how many of the training images, class-balanced, the same ones for every seed; None: all
    )
    padding: int = 0  # zero padding on each side before a random crop of the original size
    flip: bool = False  # left and right, at random
    cutout: int = 0  # side of a square hole at a random place

    def __post_init__(self) -> None:
        if self.subset is not None:
            require_integer("subset", self.subset, low=1)
        require_integer("padding", self.padding, low=0)
        require_boolean("flip", self.flip)
        require_integer("cutout", self.cutout, low=0)


class Resident(NamedTuple):
    """The arrays on the device, shared by all seeds. The chosen training images are padded once; a crop only reads.

    `mean` and `inverse_std` are those of each channel of the chosen training images.
    """

    train_images: Tensor  # uint8 (N, H + 2 padding, W + 2 padding, C)
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    mean: Tensor
    inverse_std: Tensor
    classes: int


def reside(arrays: Arrays, augmentation: Augmentation, device: torch.device) -> Resident:
    """Choose the subset, compute its statistics, move it to the device. Raises a SettingError if it is too small."""
    chosen = balanced_subset(arrays.train_labels, augmentation.subset)
    images, labels = arrays.train_images[chosen], arrays.train_labels[chosen]
    size, pad = images.shape[2], augmentation.padding
    for name, value in (("padding", pad), ("cutout", augmentation.cutout)):
        if value > size:
            raise SettingError(f"dataset.{name}={value}: is more than the {size} pixels of an image")
    mean, std = channel_statistics(images)
    return Resident(
        F.pad(images, (0, 0, pad, pad, pad, pad)).to(device),
        labels.to(device),
        arrays.test_images.to(device),
        arrays.test_labels.to(device),
        mean.to(device, torch.float32),
        (1 / std).to(device, torch.float32),
        arrays.classes,
    )


class ResidentData:
    """The batches of a small data set, see `sam_bench.data.Data`."""

    knows_examples = True

    def __init__(self, data: Resident, augmentation: Augmentation, batch_size: int, seed: int) -> None:
        self.train_size, self.test_size = len(data.train_labels), len(data.test_labels)
        check_batch(batch_size, self.train_size)
        self.steps_per_epoch = self.train_size // batch_size
        self.classes, self.image_size, self.channels = data.classes, *data.test_images.shape[2:]
        self.data, self.augmentation, self.batch_size, self.seed = data, augmentation, batch_size, seed
        self.device = device = data.train_labels.device
        self.generator = torch.Generator(device)
        # one column per image in the order of the epoch: first pixel of its crop, flip, hole y, hole x, class, index
        self.plan = torch.empty(6, self.train_size, dtype=torch.int64, device=device)
        self.line = torch.arange(self.image_size, device=device)
        self.rows = self.line[:, None] * (self.image_size + 2 * augmentation.padding)
        self.first = torch.arange(batch_size, device=device)
        self.now = torch.empty_like(self.first)  # the columns of the batch

    def start(self, epoch: int) -> None:
        """Draw an order for the epoch and, for each image, a crop, a flip and a hole."""
        n, size, s, device = self.train_size, self.image_size, self.augmentation, self.device
        draw = self.generator.manual_seed(derived_seed("augmentation", self.seed, epoch))
        order = torch.randperm(n, generator=draw, device=device)
        top, left = torch.randint(2 * s.padding + 1, (2, n), generator=draw, device=device)
        flip = torch.randint(1 + s.flip, (n,), generator=draw, device=device)
        hole_y, hole_x = torch.randint(size, (2, n), generator=draw, device=device)
        padded = size + 2 * s.padding
        corner = (order * padded + top) * padded + left
        # in place: a captured batch reads these very tensors
        labels = self.data.train_labels[order]
        self.plan.copy_(torch.stack([corner, flip * (size - 1), hole_y, hole_x, labels, order]))
        self.now.copy_(self.first)

    def fetch(self) -> None:
        """The host has no part in a batch."""

    def batch(self) -> tuple[Tensor, Tensor, Tensor]:
        """The next batch of the plan."""
        plan = self.plan.index_select(1, self.now)
        self.now.add_(self.batch_size)
        corner, flip, hole_y, hole_x = plan[:4, :, None]
        columns = (self.line - flip).abs()  # 0, 1, 2, ..., or from the other end
        where = (corner + columns)[:, None, :] + self.rows  # (B, H, W)
        images = self.normalize(self.data.train_images.view(-1, self.channels)[where])
        if self.augmentation.cutout:
            rows, columns = (_within(self.line, hole, self.augmentation.cutout) for hole in (hole_y, hole_x))
            # the mean color, after normalization
            images.masked_fill_((rows[:, :, None] & columns[:, None])[:, None], 0)
        return images, plan[4], plan[5]

    def sample(self, n: int, seed: int) -> tuple[Tensor, Tensor]:
        """Training images without augmentation."""
        draw = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(self.train_size, generator=draw)[:n].to(self.device)
        pad, size = self.augmentation.padding, self.image_size
        images = self.data.train_images[chosen, pad : pad + size, pad : pad + size]
        return self.normalize(images), self.data.train_labels[chosen]

    def test(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Every test image once, without augmentation."""
        for images, labels in zip(
            self.data.test_images.split(TEST_BATCH), self.data.test_labels.split(TEST_BATCH), strict=True
        ):
            yield self.normalize(images), labels

    def normalize(self, images: Tensor) -> Tensor:
        """Images uint8 (B, H, W, C) to float (B, C, H, W), in channels-last memory format."""
        return images.to(torch.float32).sub_(self.data.mean).mul_(self.data.inverse_std).permute(0, 3, 1, 2)


def _within(line: Tensor, center: Tensor, length: int) -> Tensor:
    start = center - length // 2
    return (line >= start) & (line < start + length)


def channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of images uint8 (..., C), exact, from 256 counts per channel."""
    values = torch.arange(256, dtype=torch.float64)
    counts = torch.stack([torch.bincount(plane.flatten(), minlength=256) for plane in images.unbind(-1)]).double()
    share = counts / counts.sum(1, keepdim=True)
    mean = share @ values
    return mean, (share @ values.square() - mean.square()).sqrt().clamp_min(1e-3)
