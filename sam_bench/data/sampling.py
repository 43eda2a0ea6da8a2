"""Subsets, splits and batch sizes."""

import math
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from sam_bench.errors import SettingError
from sam_bench.optim.checks import require_integer, require_number


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


def batches_of(total: int, size: int, rank: int, ranks: int) -> list[range]:
    """Indices rank, rank + ranks, ... below the total in batches of at most `size`.

    Every rank gets the same number of batches: with FSDP, a rank that has one less would leave the others waiting.
    """
    mine = range(rank, total, ranks)
    if ranks == 1:
        return [mine[at : at + size] for at in range(0, total, size)]
    n = math.ceil(math.ceil(total / ranks) / size)
    bounds = [len(mine) * i // n for i in range(n + 1)]
    return [mine[start:stop] for start, stop in pairwise(bounds)]


def require_shares(subset: int | None, validation: float) -> None:
    """Raise an ArgumentError unless `subset` is None or an integer of at least 1, and `validation` in [0, 1)."""
    if subset is not None:
        require_integer("subset", subset, low=1)
    require_number("validation", validation, low=0, below=1)


def subset_and_validation(labels: Tensor, subset: int | None, validation: float) -> tuple[Tensor, Tensor]:
    """Sorted indices of the images to train on and of those to validate on, the same for every seed and method.

    `subset` images are chosen first. A share `validation` of them, the same of every class, is then held out. Raises a
    SettingError if a class would have none in one of the two.
    """
    classes = len(labels.unique())
    if subset is not None and subset < classes:
        raise SettingError(f"dataset.subset={subset}: is fewer than the {classes} classes")
    chosen = balanced_subset(labels, subset)
    if not validation:
        return chosen, chosen[:0]
    mine = labels[chosen]
    size = round(validation * len(mine))
    refusal = SettingError(
        f"dataset.validation={validation}: holds out {size} of {len(mine)} images of {classes} classes; "
        "every class needs an image in both parts"
    )
    if size < classes:
        raise refusal
    train, held_out = (
        torch.from_numpy(part) for part in stratified_split(mine.numpy(), size, np.random.RandomState(0))
    )
    if min(len(mine[part].unique()) for part in (train, held_out)) < classes:
        raise refusal
    return chosen[train].sort().values, chosen[held_out].sort().values


def stratified_split(classes: np.ndarray, test_size: int, draw: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """Training and test indices, shuffled; those of `train_test_split(..., stratify=classes)` of scikit-learn."""
    counts = np.bincount(classes)
    in_train = _apportion(counts, len(classes) - test_size, draw)
    in_test = _apportion(counts - in_train, test_size, draw)
    train, test = [], []
    for label, count in enumerate(counts):
        shuffled = np.flatnonzero(classes == label)[draw.permutation(count)]
        train.append(shuffled[: in_train[label]])
        test.append(shuffled[in_train[label] :][: in_test[label]])
    return draw.permutation(np.concatenate(train)), draw.permutation(np.concatenate(test))


def _apportion(counts: np.ndarray, total: int, draw: np.random.RandomState) -> np.ndarray:
    """Integers that sum to the total, in proportion to counts, by largest remainder; ties are drawn."""
    exact = counts / counts.sum() * total
    shares, remainders = np.floor(exact), exact - np.floor(exact)
    for remainder in np.unique(remainders)[::-1]:
        lacking = int(total - shares.sum())
        if not lacking:
            break
        tied = np.flatnonzero(remainders == remainder)
        shares[draw.choice(tied, min(lacking, len(tied)), replace=False)] += 1
    return shares.astype(int)


def check_batch(batch_size: int, train_size: int) -> None:
    """Raise a SettingError if a batch is larger than the training set."""
    if batch_size > train_size:
        raise SettingError(f"trainer.batch_size={batch_size}: is more than the {train_size} training images")
