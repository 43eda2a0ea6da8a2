"""A data set that lives on the device as uint8 and is cropped, flipped, cut and normalised there, a batch at a time."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from sam_bench.data.sampling import balanced_subset, check_batch, derived_seed
from sam_bench.errors import SettingError
from sam_bench.settings import DatasetSettings

TEST_BATCH = 1000


class Arrays(NamedTuple):
    """A data set in memory: uint8 images (N, H, W, C) and int64 classes (N,)."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: int


class DeviceData:
    """The batches of a small data set, see `sam_bench.data.Data`."""

    def __init__(
        self, arrays: Arrays, settings: DatasetSettings, batch_size: int, device: torch.device, seed: int
    ) -> None:
        chosen = balanced_subset(arrays.train_labels, settings.subset)
        images, labels = arrays.train_images[chosen], arrays.train_labels[chosen]
        check_batch(batch_size, len(images))
        self.classes = arrays.classes
        self.image_size, self.channels = images.shape[2], images.shape[3]
        for name, value in (("padding", settings.padding), ("cutout", settings.cutout)):
            if value > self.image_size:
                raise SettingError(f"dataset.{name}={value}: is more than the {self.image_size} pixels of an image")
        self.train_size, self.test_size = len(images), len(arrays.test_images)
        self.steps_per_epoch = len(images) // batch_size
        self.batch_size, self.seed, self.settings, self.device = batch_size, seed, settings, device

        mean, std = channel_statistics(images)
        self.mean = mean.to(device, torch.float32)
        self.inverse_std = (1 / std).to(device, torch.float32)
        # padded once, so that a random crop is a matter of where to read
        pad = settings.padding
        self.train_images = F.pad(images, (0, 0, pad, pad, pad, pad)).to(device)
        self.train_labels = labels.to(device)
        self.test_images, self.test_labels = arrays.test_images.to(device), arrays.test_labels.to(device)
        self.generator = torch.Generator(device)

    def train(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Whole batches in random order, each image with a crop, flip and hole of its own."""
        n, size, s, device = self.train_size, self.image_size, self.settings, self.device
        draw = self.generator.manual_seed(derived_seed("augmentation", self.seed, epoch))
        order = torch.randperm(n, generator=draw, device=device)
        top, left = torch.randint(2 * s.padding + 1, (2, n, 1), generator=draw, device=device)
        flip = torch.randint(1 + s.flip, (n, 1), generator=draw, device=device).bool()
        hole_y, hole_x = torch.randint(size, (2, n, 1), generator=draw, device=device)

        padded = size + 2 * s.padding
        pixels = self.train_images.view(-1, self.channels)
        line = torch.arange(size, device=device)
        for step in range(self.steps_per_epoch):
            now = slice(step * self.batch_size, (step + 1) * self.batch_size)
            index = order[now]
            rows = top[now] + line  # (B, H)
            columns = left[now] + torch.where(flip[now], size - 1 - line, line)  # (B, W)
            first = index * padded * padded
            where = (first[:, None] + rows * padded)[:, :, None] + columns[:, None, :]  # (B, H, W)
            images = self.normalise(pixels[where])
            if s.cutout:
                hole = _within(line, hole_y[now], s.cutout)[:, :, None] & _within(line, hole_x[now], s.cutout)[:, None]
                images.masked_fill_(hole[:, None], 0)  # the mean colour, after normalisation
            yield images, self.train_labels[index]

    def test(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Every test image once, as it is."""
        for images, labels in zip(self.test_images.split(TEST_BATCH), self.test_labels.split(TEST_BATCH), strict=True):
            yield self.normalise(images), labels

    def normalise(self, images: Tensor) -> Tensor:
        """Images (B, H, W, C) of uint8 to float (B, C, H, W), which in memory stay as they lay: channels last."""
        return images.to(torch.float32).sub_(self.mean).mul_(self.inverse_std).permute(0, 3, 1, 2)


def _within(line: Tensor, centre: Tensor, length: int) -> Tensor:
    start = centre - length // 2
    return (line >= start) & (line < start + length)


def channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of uint8 images (..., C), exact, from 256 counts a channel."""
    values = torch.arange(256, dtype=torch.float64)
    counts = torch.stack([torch.bincount(plane.flatten(), minlength=256) for plane in images.unbind(-1)]).double()
    share = counts / counts.sum(1, keepdim=True)
    mean = share @ values
    return mean, (share @ values.square() - mean.square()).sqrt().clamp_min(1e-3)
