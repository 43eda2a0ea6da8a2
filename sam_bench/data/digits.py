"""The handwritten digits inside scikit-learn: 1,797 images of 8 x 8 pixels in 17 gray levels, real and always there.

Alpaydin & Kaynak: Optical Recognition of Handwritten Digits, UCI, 1998 (its test part).
"""

import importlib.util
from pathlib import Path

import numpy as np
import torch

from sam_bench.data import Arrays

TEST_SIZE = 360  # a fifth; the set has no official split, so this one is fixed for every seed


def digits() -> Arrays:
    """1,437 training and 360 test images."""
    # the file alone: importing scikit-learn takes two seconds
    package = importlib.util.find_spec("sklearn")
    assert package is not None
    assert package.origin is not None
    table = np.loadtxt(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    pixels, classes = table[:, :-1].reshape(-1, 8, 8, 1), table[:, -1].astype(np.int64)
    images = torch.from_numpy(pixels * 15).to(torch.uint8)  # 0 to 16 becomes 0 to 240
    labels = torch.from_numpy(classes)
    train, test = stratified_split(classes, TEST_SIZE, np.random.RandomState(0))
    return Arrays(images[train], labels[train], images[test], labels[test], classes=10)


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
