"""Subsets and batch sizes."""

import torch
from torch import Tensor

from sam_bench.errors import SettingError


def balanced_subset(labels: Tensor, size: int | None) -> Tensor:
    """Sorted indices of a class-balanced subset of `size` examples, the same at every call; all of them for None.

    The numbers of examples per class differ by at most one, unless a class has too few. Raises a SettingError if there
    are fewer examples.
    """
    if size is None:
        return torch.arange(len(labels))
    if size > len(labels):
        raise SettingError(f"dataset.subset={size}: the training set has {len(labels)} images")
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    by_class = labels[shuffled].argsort(stable=True)  # each class together, shuffled within
    counts = labels.bincount()
    rank_in_class = torch.arange(len(labels)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    in_turn = by_class[rank_in_class.argsort(stable=True)]  # the first of every class, then the second, ...
    return shuffled[in_turn[:size]].sort().values


def check_batch(batch_size: int, train_size: int) -> None:
    """Raise a SettingError if a batch is larger than the training set."""
    if batch_size > train_size:
        raise SettingError(f"trainer.batch_size={batch_size}: is more than the {train_size} training images")
