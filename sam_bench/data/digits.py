"""The handwritten digits inside scikit-learn: 1,797 images of 8 x 8 pixels in 17 grey levels, real and always there.

Alpaydin & Kaynak: Optical Recognition of Handwritten Digits, UCI, 1998 (the test part of it).
"""

import torch

from sam_bench.data.device import Arrays
from sam_bench.settings import DatasetSettings

TEST_SIZE = 360  # a fifth; the set has no official split, so this one is fixed for every seed


def load(settings: DatasetSettings) -> Arrays:
    """1,437 training and 360 test images."""
    # here, since scikit-learn takes two seconds to import
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    images = torch.from_numpy(bunch.images * 15).to(torch.uint8)[..., None]  # 0 to 16 becomes 0 to 240
    labels = torch.from_numpy(bunch.target).long()
    train, test = train_test_split(range(len(labels)), test_size=TEST_SIZE, random_state=0, stratify=labels)
    return Arrays(images[train], labels[train], images[test], labels[test], classes=10)
