"""CIFAR-10 and CIFAR-100 through torchvision, from `dataset.root` or downloaded into it.

Krizhevsky: Learning Multiple Layers of Features from Tiny Images, 2009.
"""

import contextlib
import io
from pathlib import Path

import torch
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.utils import check_integrity

from sam_bench.data.device import Arrays
from sam_bench.errors import SettingError
from sam_bench.settings import DatasetSettings


def load(settings: DatasetSettings) -> Arrays:
    """50,000 training and 10,000 test images.

    Raises:
        SettingError: a file is broken, or the set is missing and cannot be downloaded.

    """
    kind = {"cifar10": CIFAR10, "cifar100": CIFAR100}[settings.name]
    if settings.root is None:
        raise SettingError(f"dataset.root=null: {settings.name} needs the folder that holds it")
    train, test = (_open(kind, settings.root, part) for part in (True, False))
    return Arrays(
        torch.from_numpy(train.data),
        torch.tensor(train.targets),
        torch.from_numpy(test.data),
        torch.tensor(test.targets),
        classes=len(train.classes),
    )


def _open(kind: type[CIFAR10], root: Path, train: bool) -> CIFAR10:
    try:
        return kind(str(root), train=train, download=False)
    except RuntimeError:  # not there, or broken
        for name, md5 in [*kind.train_list, *kind.test_list]:
            file = root / kind.base_folder / name
            if file.exists() and not check_integrity(str(file), md5):
                raise SettingError(f"dataset.root={root}: {file} is broken (its md5 is not {md5}); delete it") from None
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                return kind(str(root), train=train, download=True)
        except (OSError, RuntimeError) as error:
            raise SettingError(
                f"dataset.root={root}: no {kind.base_folder} there, and the download failed ({error}); "
                "put it there, or name its folder with dataset.root or SAM_BENCH_DATA"
            ) from error
