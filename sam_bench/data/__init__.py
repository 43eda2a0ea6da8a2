"""Data sets. A small one is four arrays, which live on the device; a folder of images goes through timm's loader."""

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from sam_bench.data import cifar, digits
from sam_bench.data.device import Arrays, DeviceData
from sam_bench.data.imagefolder import ImageFolderData
from sam_bench.errors import SettingError
from sam_bench.settings import DatasetSettings

ARRAYS: dict[str, Callable[[DatasetSettings], Arrays]] = {
    "digits": digits.load,
    "cifar10": cifar.load,
    "cifar100": cifar.load,
}

Batches = Iterator[tuple[Tensor, Tensor]]  # normalised float images (N, C, H, W) and classes (N,), on the device


class Data(Protocol):
    """What the training loop asks of a data set."""

    classes: int
    channels: int
    image_size: int
    train_size: int
    test_size: int
    steps_per_epoch: int

    def train(self, epoch: int) -> Batches:
        """Whole batches of augmented images in an order of their own: a function of (seed, epoch) alone."""
        ...

    def test(self) -> Batches:
        """Every test image once."""
        ...


def create(settings: DatasetSettings, batch_size: int, device: torch.device, seed: int) -> Data:
    """Open the data set that the settings describe.

    Raises:
        SettingError: it is missing, broken or too small.

    """
    if settings.name == "imagefolder":
        return ImageFolderData(settings, batch_size, device, seed)
    if settings.name not in ARRAYS:
        raise SettingError(f"dataset={settings.name}: registered are {', '.join([*ARRAYS, 'imagefolder'])}")
    return DeviceData(ARRAYS[settings.name](settings), settings, batch_size, device, seed)
