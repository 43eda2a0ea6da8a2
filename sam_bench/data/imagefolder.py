"""A folder of images, such as ImageNet, read by torch's loader with timm's transforms.

Training uses timm's standard random resized crop and flip, testing its center crop; both normalize with ImageNet's
statistics, as timm's own recipes do. The layouts are those of `sam_bench.data.listing`.
"""

import copy
import itertools
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.loader import PrefetchLoader
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sam_bench.data.listing import Sample, list_images
from sam_bench.data.sampling import batches_of, check_batch, require_shares, subset_and_validation
from sam_bench.errors import SettingError, reason
from sam_bench.optim.checks import require_integer
from sam_bench.optim.seeding import derived_seed

UNREADABLE_SHARE = 1e-3  # of the training images, at most
MAX_SIZE = 4096  # side of a crop in pixels

Unreadable = tuple[str, str]  # path, why


class Images(Dataset[Any]):
    """Decoded and cropped images. The item (i, epoch) is image i with that epoch's augmentation, in any process."""

    def __init__(self, samples: list[Sample], image_size: int, is_training: bool, seed: int) -> None:
        self.samples, self.is_training, self.seed = samples, is_training, seed
        self.transform = create_transform(
            image_size,
            is_training=is_training,
            color_jitter=0.0,
            use_prefetcher=True,  # uint8, normalized on the device
        )

    def __getitem__(self, item: tuple[int, int]) -> tuple[np.ndarray, int] | Unreadable:
        """Image uint8 (C, H, W) and class; path and reason if it cannot be read."""
        index, epoch = item
        path, label = self.samples[index]
        try:
            with Image.open(path) as file:
                if file.mode.startswith(("I", "F")):  # which `convert` clips to white or black
                    return path, f"its pixels are of mode {file.mode}, not of 8 bits"
                image = file.convert("RGB")
        except Exception as error:  # broken files raise a dozen types
            return path, reason(error)
        if self.is_training:
            seed = derived_seed(f"augmentation of {index}", self.seed, epoch)
            random.seed(seed)  # of the crop
            torch.default_generator.manual_seed(seed)  # of the flip
        return self.transform(image), label


def collate(
    items: list[tuple[np.ndarray, int] | Unreadable],
) -> tuple[Tensor | None, Tensor | None, list[Unreadable]]:
    """Images uint8 (B, C, H, W), classes (B,), and what could not be read.

    A readable image of the batch replaces an unreadable one. Images and classes are None if no image can be read.
    """
    unreadable = [item for item in items if isinstance(item[0], str)]
    read: list[Any] = [item for item in items if not isinstance(item[0], str)]
    if not read:
        return None, None, unreadable
    stand_ins = itertools.cycle(read)
    whole = [item if not isinstance(item[0], str) else next(stand_ins) for item in items]
    images, labels = zip(*whole, strict=True)
    return torch.from_numpy(np.stack(images)), torch.tensor(labels), unreadable


class ImageFolder:
    """The batches of a folder of images, see `sam_bench.data.Data`. Raises a SettingError if it cannot be used.

    Args:
        root: holds train/ and val/.
        image_size: side of the crops in pixels.
        workers: processes that read and crop; 0: the main process does. Results do not depend on it.
        subset: how many of the training images to use, class-balanced; None: all.
        validation: share of those that is held out.
        batch_size, device, seed: of the training.
        rank, ranks: which part of every batch is this process's.
    """

    knows_examples = False  # a batch does not tell
    channels = 3

    def __init__(
        self,
        root: Path | None,
        *,
        image_size: int = 224,
        workers: int = 4,
        subset: int | None = None,
        validation: float = 0.0,
        batch_size: int,
        device: torch.device,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        require_integer("image_size", image_size, low=1, high=MAX_SIZE)
        require_integer("workers", workers, low=0)
        require_shares(subset, validation)
        listing = list_images(root)
        train, held_out = subset_and_validation(torch.tensor([label for _, label in listing.train]), subset, validation)
        check_batch(batch_size, len(train))

        self.root, self.seed, self.device = root, seed, device
        self.rank, self.ranks, self.batch_size = rank, ranks, batch_size // ranks
        self.classes, self.image_size = len(listing.classes), image_size
        self.train_size, self.validation_size, self.test_size = len(train), len(held_out), len(listing.val)
        self.steps_per_epoch = self.train_size // batch_size
        self.workers = min(workers, os.cpu_count() or 1)
        train_samples = [listing.train[i] for i in train.tolist()]
        self.train_images = Images(train_samples, image_size, True, seed)
        self.sample_images = Images(train_samples, image_size, False, seed)
        self.validation_images = Images([listing.train[i] for i in held_out.tolist()], image_size, False, seed)
        self.test_images = Images(listing.val, image_size, False, seed)
        self.to_device = PrefetchLoader(None, device=device)  # moves and normalizes the batches of a copy's `loader`
        if device.type == "cuda":  # for all copies: torch caches memory per stream
            self.to_device.stream = torch.cuda.Stream(device)
        self.unreadable: dict[str, str] = {}  # of this epoch
        self.test_images_are_readable = False  # not known yet
        self.fetched: tuple[Tensor, Tensor] | None = None

    @property
    def unreadable_images(self) -> int:
        """Training images found to be unreadable in this epoch so far."""
        return len(self.unreadable)

    def batches(self, images: Images, items: list[list[tuple[int, int]]], *, of_training_set: bool) -> Iterator[Any]:
        """These batches of items on the device, normalized. The workers start with the first batch."""
        loader = DataLoader(
            images,
            batch_sampler=items,
            num_workers=self.workers,
            collate_fn=collate,
            pin_memory=self.device.type == "cuda",
        )

        def readable() -> Iterator[tuple[Tensor | None, Tensor | None]]:
            workers = iter(loader)
            while True:
                try:
                    some, labels, unreadable = next(workers)
                except StopIteration:
                    return
                except RuntimeError as error:  # a worker was killed, or there is no shared memory left
                    raise SettingError(f"dataset.workers={self.workers}: {reason(error)}") from error
                self.note(unreadable, of_training_set, some is None)
                yield some, labels

        on_device = copy.copy(self.to_device)
        on_device.loader = readable()
        return iter(on_device)

    def note(self, unreadable: list[Unreadable], of_training_set: bool, whole_batch: bool) -> None:
        """Count unreadable training images. Raise a SettingError for too many, or for one of another set."""
        for path, why in unreadable:
            if not of_training_set:
                raise SettingError(
                    f"dataset.root={self.root}: cannot read {path} ({why}), which is an image to test on"
                )
            self.unreadable[path] = why
            if whole_batch or len(self.unreadable) > UNREADABLE_SHARE * self.train_size:
                raise SettingError(
                    f"dataset.root={self.root}: cannot read {len(self.unreadable)} of {self.train_size} training "
                    f"images, such as {path} ({why}); one in a thousand may be unreadable"
                )

    def start(self, epoch: int, step: int = 0) -> None:
        """Prepare an epoch, or the rest of it from a step on."""
        self.unreadable = {}
        draw = torch.Generator().manual_seed(derived_seed("order", self.seed, epoch))
        order = torch.randperm(self.train_size, generator=draw)[: self.steps_per_epoch * self.batch_size * self.ranks]
        mine = order.view(-1, self.ranks, self.batch_size)[step:, self.rank]
        items = [[(i, epoch) for i in batch] for batch in mine.tolist()]
        self.epoch = self.batches(self.train_images, items, of_training_set=True)

    def fetch(self) -> None:
        """Take the next batch of the workers. Raises a SettingError if they cannot read it."""
        images, labels = next(self.epoch)
        if self.fetched and self.device.type == "cuda":
            for at, new in zip(self.fetched, (images, labels), strict=True):  # where a captured step reads
                at.copy_(new)
                new.record_stream(torch.cuda.current_stream(self.device))  # the loader's own stream made it
        else:
            self.fetched = images, labels

    def batch(self) -> tuple[Tensor, Tensor, None]:
        """The fetched batch."""
        assert self.fetched
        return *self.fetched, None

    def sample(self, n: int, seed: int) -> tuple[Tensor, Tensor]:
        """Training images with the center crop of testing."""
        order = torch.randperm(self.train_size, generator=torch.Generator().manual_seed(seed))
        items = [[(i, 0) for i in some.tolist()] for some in order[:n].split(self.batch_size)]
        batches = self.batches(self.sample_images, items, of_training_set=True)
        images, labels = zip(*batches, strict=True)
        return torch.cat(images), torch.cat(labels)

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Every validation image of this rank once. Test images are read before, to name an unreadable one early."""
        if not self.test_images_are_readable:
            for _ in self.test():
                pass
            self.test_images_are_readable = True
        yield from self.batches(self.validation_images, self.whole(self.validation_size), of_training_set=False)

    def test(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Every test image of this rank once."""
        yield from self.batches(self.test_images, self.whole(self.test_size), of_training_set=False)

    def whole(self, n: int) -> list[list[tuple[int, int]]]:
        """The items of n images that this rank tests on."""
        return [[(i, 0) for i in batch] for batch in batches_of(n, self.batch_size, self.rank, self.ranks)]
