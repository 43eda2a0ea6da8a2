"""A data set that resides on the device as uint8 and is cropped, flipped, cut and normalized there, batch by batch."""

from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Integral
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from sam_bench.data import Arrays
from sam_bench.data.sampling import batches_of, check_batch, require_shares, subset_and_validation
from sam_bench.errors import SettingError
from sam_bench.optim.checks import require_boolean, require_integer
from sam_bench.optim.seeding import derived_seed

TEST_BATCH = 1000


@dataclass(frozen=True)
class Augmentation:
    """How training images are chosen and augmented; lengths are in pixels."""

    # how many of the training images, class-balanced, the same ones for every seed; None: all
    subset: int | None = None
    validation: float = 0.0  # share of those that is held out, the same of every class
    padding: int = 0  # zero padding on each side before a random crop of the original size
    flip: bool = False  # left and right, at random
    cutout: int = 0  # side of a square hole at a random place

    def __post_init__(self) -> None:
        require_shares(self.subset, self.validation)
        require_integer("padding", self.padding, low=0)
        require_boolean("flip", self.flip)
        require_integer("cutout", self.cutout, low=0)


class Resident(NamedTuple):
    """The arrays on the device, shared by all seeds. The chosen training images are padded once; a crop only reads.

    `mean` and `inverse_std` are those of each channel of the chosen training images.
    """

    train_images: Tensor  # uint8 (N, H + 2 padding, W + 2 padding, C)
    train_labels: Tensor
    validation_images: Tensor  # uint8 (N, H, W, C), as the test images
    validation_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    mean: Tensor
    inverse_std: Tensor
    classes: int


def check_arrays(where: str, arrays: Any) -> None:
    """Raise a SettingError for the first thing that is wrong with what a loader returned; `where` names the loader."""
    if not isinstance(arrays, Arrays):
        raise SettingError(f"{where}: returned a {type(arrays).__name__}, not Arrays")
    for name, value in zip(Arrays._fields[:4], arrays[:4], strict=True):
        if not isinstance(value, Tensor):
            raise SettingError(f"{where}: {name} is a {type(value).__name__}, not a torch.Tensor")
    given: Any = arrays.classes
    if not isinstance(given, Integral) or isinstance(given, bool) or int(given) < 2:
        raise SettingError(f"{where}: classes={given}, not an integer of at least 2")
    classes = int(given)
    for part in ("train", "test"):
        images: Tensor = getattr(arrays, f"{part}_images")
        labels: Tensor = getattr(arrays, f"{part}_labels")
        shape = tuple(images.shape)
        if images.dtype != torch.uint8:
            raise SettingError(f"{where}: {part}_images has dtype {images.dtype}, not torch.uint8 with values 0 to 255")
        if len(shape) != 4 or 0 in shape or shape[1] != shape[2]:
            first = "; move the channels with .permute(0, 2, 3, 1)" if len(shape) == 4 and shape[2] == shape[3] else ""
            raise SettingError(f"{where}: {part}_images has shape {shape}, not (N, H, W, C) with H = W{first}")
        if labels.dtype != torch.int64:
            raise SettingError(f"{where}: {part}_labels has dtype {labels.dtype}, not torch.int64")
        if tuple(labels.shape) != shape[:1]:
            raise SettingError(
                f"{where}: {part}_labels has shape {tuple(labels.shape)}, not {shape[:1]} as there are {part}_images"
            )
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= classes:
            raise SettingError(f"{where}: {part}_labels range from {low} to {high}, not from 0 to {classes - 1}")
    if arrays.train_images.shape[1:] != arrays.test_images.shape[1:]:
        train, test = (tuple(images.shape[1:]) for images in (arrays.train_images, arrays.test_images))
        raise SettingError(f"{where}: train_images of shape {train}, but test_images of shape {test}")
    present = set(arrays.train_labels.unique().tolist())
    if len(present) < classes:
        absent = next(label for label in range(classes) if label not in present)
        raise SettingError(f"{where}: classes={classes}, but no training image has class {absent}")


def reside(arrays: Arrays, augmentation: Augmentation, device: torch.device) -> Resident:
    """Choose the images, compute their statistics, move them to the device. Raises a SettingError for too few."""
    train, held_out = subset_and_validation(arrays.train_labels, augmentation.subset, augmentation.validation)
    images, labels = arrays.train_images[train], arrays.train_labels[train]
    size, pad = images.shape[2], augmentation.padding
    for name, value in (("padding", pad), ("cutout", augmentation.cutout)):
        if value > size:
            raise SettingError(f"dataset.{name}={value}: is more than the {size} pixels of an image")
    mean, std = channel_statistics(images)
    return Resident(
        F.pad(images, (0, 0, pad, pad, pad, pad)).contiguous().to(device),
        labels.to(device),
        arrays.train_images[held_out].to(device),
        arrays.train_labels[held_out].to(device),
        arrays.test_images.to(device),
        arrays.test_labels.to(device),
        mean.to(device, torch.float32),
        (1 / std).to(device, torch.float32),
        arrays.classes,
    )


class ResidentData:
    """The batches of a small data set, see `sam_bench.data.Data`. Of several ranks, each has a part of every batch."""

    knows_examples = True
    unreadable_images = 0

    def __init__(
        self, data: Resident, augmentation: Augmentation, batch_size: int, seed: int, rank: int = 0, ranks: int = 1
    ) -> None:
        self.train_size, self.test_size = len(data.train_labels), len(data.test_labels)
        self.validation_size = len(data.validation_labels)
        check_batch(batch_size, self.train_size)
        self.steps_per_epoch = self.train_size // batch_size
        self.classes, self.image_size, self.channels = data.classes, *data.test_images.shape[2:]
        self.data, self.augmentation, self.batch_size, self.seed = data, augmentation, batch_size, seed
        self.rank, self.ranks = rank, ranks
        self.device = device = data.train_labels.device
        self.generator = torch.Generator(device)
        # one column per image in the order of the epoch: first pixel of its crop, flip, hole y, hole x, class, index
        self.plan = torch.empty(6, self.train_size, dtype=torch.int64, device=device)
        self.line = torch.arange(self.image_size, device=device)
        self.rows = self.line[:, None] * (self.image_size + 2 * augmentation.padding)
        self.first = torch.arange(batch_size, device=device).chunk(ranks)[rank]
        self.now = torch.empty_like(self.first)  # the columns of the batch

    def start(self, epoch: int, step: int = 0) -> None:
        """Draw an order for the epoch and, for each image, a crop, a flip and a hole. Continue at a step of it."""
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
        self.now.copy_(self.first + step * self.batch_size)

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

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Every validation image once, without augmentation."""
        yield from self.whole(self.data.validation_images, self.data.validation_labels)

    def test(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Every test image once, without augmentation."""
        yield from self.whole(self.data.test_images, self.data.test_labels)

    def whole(self, images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The images that this rank tests on, in order."""
        for indices in batches_of(len(labels), TEST_BATCH, self.rank, self.ranks):
            some = slice(indices.start, indices.stop, indices.step)
            yield self.normalize(images[some]), labels[some]

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
