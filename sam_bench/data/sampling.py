"""Seeds and subsets."""

import hashlib

import torch
from torch import Tensor

from sam_bench.errors import SettingError


def derived_seed(purpose: str, seed: int, moment: int = 0) -> int:
    """A seed for one purpose in one epoch or step, unlike all others.

    Since whatever is random follows from it, no generator's state need be kept for an exact resume.
    """
    return int.from_bytes(hashlib.sha256(f"{purpose} {seed} {moment}".encode()).digest()[:6])


def balanced_subset(labels: Tensor, size: int | None) -> Tensor:
    """Sorted indices of a class-balanced `size` of the examples, the same at every call; all of them for None.

    Classes differ by one at most in what they give, unless one of them has too few examples.

    Raises:
        SettingError: there are fewer examples.

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
    """Refuse a batch that the training set cannot fill."""
    if batch_size > train_size:
        raise SettingError(f"trainer.batch_size={batch_size}: is more than the {train_size} training images")
