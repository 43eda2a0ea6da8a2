"""CIFAR-10 and CIFAR-100 through torchvision, from `dataset.root` or downloaded into it.

Krizhevsky: Learning Multiple Layers of Features from Tiny Images, 2009.
"""

import contextlib
import io
from pathlib import Path

import torch
from filelock import FileLock
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.utils import check_integrity

from sam_bench.data import Arrays
from sam_bench.errors import SettingError


def cifar10(root: Path | None) -> Arrays:
    """50,000 training and 10,000 test images of 32 x 32 pixels in 10 classes."""
    return _load(CIFAR10, root)


def cifar100(root: Path | None) -> Arrays:
    """50,000 training and 10,000 test images of 32 x 32 pixels in 100 classes."""
    return _load(CIFAR100, root)


def _load(dataset: type[CIFAR10], root: Path | None) -> Arrays:
    """Raise a SettingError if a file is broken, or the set is missing and cannot be downloaded."""
    if root is None:
        raise SettingError(f"dataset.root=null: {dataset.__name__.lower()} needs the folder that holds it")
    train, test = (_open(dataset, root, is_training) for is_training in (True, False))
    return Arrays(
        torch.from_numpy(train.data),
        torch.tensor(train.targets),
        torch.from_numpy(test.data),
        torch.tensor(test.targets),
        classes=len(train.classes),
    )


def _open(dataset: type[CIFAR10], root: Path, is_training: bool) -> CIFAR10:
    try:
        return dataset(str(root), train=is_training, download=False)
    except RuntimeError:  # a file is missing or broken
        folder, existed = root / dataset.base_folder, root.exists()
        md5 = {folder / name: digest for name, digest in [*dataset.train_list, *dataset.test_list]}
        missing = [file.name for file in md5 if not file.exists()]
        if broken := [file for file in md5 if file.exists() and not check_integrity(str(file), md5[file])]:
            raise SettingError(
                f"dataset.root={root}: {broken[0]} is broken (its md5 is not {md5[broken[0]]}); move it away"
            ) from None
        try:
            root.mkdir(parents=True, exist_ok=True)
            # of several processes, one downloads
            with FileLock(root / ".download.lock"), contextlib.redirect_stdout(io.StringIO()):
                return dataset(str(root), train=is_training, download=True)
        except (OSError, RuntimeError) as error:
            if not existed:
                with contextlib.suppress(OSError):
                    (root / ".download.lock").unlink(missing_ok=True)
                    root.rmdir()
            what = f"{folder} lacks {', '.join(missing)}" if folder.is_dir() else f"no {dataset.base_folder} there"
            raise SettingError(
                f"dataset.root={root}: {what}, and the download failed ({error}); "
                "put it there, or name its folder with dataset.root or SAM_BENCH_DATA"
            ) from error
