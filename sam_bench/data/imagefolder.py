"""Any tree of train/CLASS/IMAGE and val/CLASS/IMAGE, such as ImageNet, through timm's loader.

Training uses timm's standard random resized crop and flip, testing its center crop; both normalize with ImageNet's
statistics, as timm's own recipes do.
"""

import copy
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import ImageDataset, create_loader
from torch import Tensor

from sam_bench.data.sampling import balanced_subset, check_batch
from sam_bench.errors import SettingError, reason
from sam_bench.optim.checks import require_integer
from sam_bench.optim.seeding import derived_seed


class ImageFolder:
    """The batches of a folder of images, see `sam_bench.data.Data`. Raises a SettingError if it cannot be used.

    Args:
        root: holds train/ and val/.
        image_size: side of the crops in pixels.
        workers: processes that read and crop; 0: the main process does.
        subset: how many of the training images to use, class-balanced; None: all.
        batch_size, device, seed: of the training.
    """

    knows_examples = False  # the loader does not tell
    channels = 3

    def __init__(
        self,
        root: Path | None,
        *,
        image_size: int = 224,
        workers: int = 4,
        subset: int | None = None,
        batch_size: int,
        device: torch.device,
        seed: int,
    ) -> None:
        if root is None:
            raise SettingError("dataset.root=null: imagefolder needs the folder that holds train/ and val/")
        for name, value, low in (
            ("image_size", image_size, 1),
            ("workers", workers, 0),
            ("subset", 1 if subset is None else subset, 1),
        ):
            require_integer(name, value, low)
        images = {}
        for part in ("train", "val"):
            folder = root / part
            if not folder.is_dir():
                raise SettingError(f"dataset.root={root}: needs a folder {part}/ that contains class folders")
            try:
                images[part] = ImageDataset(str(folder))
            except RuntimeError as error:  # no image in it
                raise SettingError(f"dataset.root={root}: {reason(error)}") from error
        train, val = (images[part].reader for part in ("train", "val"))
        if train.class_to_idx != val.class_to_idx:
            odd = sorted(set(train.class_to_idx) ^ set(val.class_to_idx))
            raise SettingError(f"dataset.root={root}: classes in only one of train/ and val/: {', '.join(odd[:5])}")
        labels = torch.tensor([label for _, label in train.samples])
        train.samples = [train.samples[i] for i in balanced_subset(labels, subset).tolist()]
        check_batch(batch_size, len(train.samples))

        self.seed, self.device, self.train_images = seed, device, images["train"]
        self.fetched: tuple[Tensor, Tensor] | None = None
        self.classes, self.image_size = len(train.class_to_idx), image_size
        self.train_size, self.test_size = len(train.samples), len(val.samples)
        self.steps_per_epoch = self.train_size // batch_size
        self.workers, self.batch_size = workers, batch_size
        self.train_loader, self.test_loader = self.loader(images["train"], True), self.loader(images["val"], False)

    def loader(self, images: ImageDataset, is_training: bool) -> Any:
        """Timm's loader of a folder."""
        return create_loader(
            images,
            input_size=(3, self.image_size, self.image_size),
            batch_size=self.batch_size,
            is_training=is_training,
            color_jitter=0.0,
            num_workers=min(self.workers, os.cpu_count() or 1),
            pin_memory=self.device.type == "cuda",
            device=self.device,
            persistent_workers=False,  # fresh workers take the epoch's seed, which an exact resume needs
        )

    def start(self, epoch: int) -> None:
        """Prepare an epoch. The workers start with the first batch."""
        self.batches, self.next = iter(self.train_loader), epoch * self.steps_per_epoch

    def fetch(self) -> None:
        """Take the next batch of the workers. Their transforms follow the global generators."""
        seed = derived_seed("augmentation", self.seed, self.next)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        self.next += 1
        images, labels = next(self.batches)
        if self.fetched and self.device.type == "cuda":
            for at, new in zip(self.fetched, (images, labels), strict=True):  # where a captured step reads
                at.copy_(new)
                new.record_stream(torch.cuda.current_stream())  # the loader's own stream made it
        else:
            self.fetched = images, labels

    def batch(self) -> tuple[Tensor, Tensor, None]:
        """The fetched batch."""
        assert self.fetched
        return *self.fetched, None

    def sample(self, n: int, seed: int) -> tuple[Tensor, Tensor]:
        """Training images with the center crop of testing."""
        order = torch.randperm(self.train_size, generator=torch.Generator().manual_seed(seed))
        some = copy.copy(self.train_images)
        some.reader = copy.copy(some.reader)
        some.reader.samples = [some.reader.samples[i] for i in order[:n].tolist()]
        images, labels = zip(*self.loader(some, False), strict=True)
        return torch.cat(images), torch.cat(labels)

    def test(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Every test image once."""
        yield from self.test_loader
