"""What the training loop asks of a data set, and what a loader of a small one returns. Imports no torch by itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

# normalized float images (N, C, H, W) and classes int64 (N,), on the device
Batch: TypeAlias = "tuple[Tensor, Tensor]"
# and their indices in the training set, if known
TrainBatch: TypeAlias = "tuple[Tensor, Tensor, Tensor | None]"


class Arrays(NamedTuple):
    """A data set in memory: images uint8 (N, H, W, C), H = W, and classes int64 (N,) from 0 to `classes` - 1."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: int


class Data(Protocol):
    """The batches of a data set. Of several ranks, each has its part of every batch and of the images to test on."""

    classes: int
    channels: int
    image_size: int
    train_size: int
    validation_size: int  # 0: there is no validation set
    test_size: int
    steps_per_epoch: int
    knows_examples: bool  # whether a batch comes with the indices of its images in the training set
    unreadable_images: int  # training images found to be unreadable so far

    def start(self, epoch: int, step: int = 0) -> None:
        """Prepare an epoch, or the rest of it from a step on. Order and augmentation depend only on (seed, epoch)."""
        ...

    def fetch(self) -> None:
        """Do the host's part of the next batch."""
        ...

    def batch(self) -> TrainBatch:
        """The fetched images, augmented, and their classes; work for the device alone."""
        ...

    def sample(self, n: int, seed: int) -> Batch:
        """Up to n training images without augmentation, drawn without replacement by a seed of their own."""
        ...

    def validation(self) -> Iterator[Batch]:
        """Every validation image once, as in testing."""
        ...

    def test(self) -> Iterator[Batch]:
        """Every test image once."""
        ...
