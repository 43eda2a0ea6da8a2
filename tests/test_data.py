import re
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image

from sam_bench.build import create_dataset
from sam_bench.data import Arrays, Batch, Data
from sam_bench.data.digits import digits
from sam_bench.data.resident import Augmentation, ResidentData, channel_statistics, reside
from sam_bench.data.sampling import balanced_subset
from tests.command import settings


def numbered(n=40, size=6) -> Arrays:
    """Images whose pixels say which image, row and column they are; 0 is kept for the padding."""
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    image = torch.stack([torch.zeros_like(rows), rows + 1, columns + 1], -1)
    images = image.repeat(n, 1, 1, 1)
    images[..., 0] = torch.arange(n)[:, None, None] + 1
    labels = torch.arange(n) % 4
    return Arrays(images.to(torch.uint8), labels, images[:5].to(torch.uint8), labels[:5], 4)


def open_numbered(device, seed=0, batch_size=8, **kwargs) -> ResidentData:
    arrays = numbered()
    chosen = Augmentation(**kwargs)
    plain = {"mean": torch.zeros(3, device=device), "inverse_std": torch.ones(3, device=device)}
    return ResidentData(reside(arrays, chosen, device)._replace(**plain), chosen, batch_size, seed)


def batches(loader: Data, epoch: int) -> Iterator[Batch]:
    loader.start(epoch)
    for _ in range(loader.steps_per_epoch):
        loader.fetch()
        images, labels, _ = loader.batch()
        yield images, labels


def by_hand(image: torch.Tensor, top: int, left: int, flip: bool, padding: int) -> torch.Tensor:
    """Pad, crop, flip: the usual order, one image (H, W, C) at a time."""
    size = image.shape[0]
    padded = torch.zeros(size + 2 * padding, size + 2 * padding, 3, dtype=image.dtype)
    padded[padding : padding + size, padding : padding + size] = image
    crop = padded[top : top + size, left : left + size]
    return crop.flip(1) if flip else crop


def test_every_crop_and_flip_is_one_of_those_made_by_hand(device):
    images = numbered().train_images
    loader = open_numbered(device, padding=2, flip=True)
    seen = set()
    for epoch in range(20):
        for batch, labels in batches(loader, epoch):
            for image, label in zip(batch.permute(0, 2, 3, 1).cpu(), labels.cpu(), strict=True):
                index = int(image[..., 0].max()) - 1
                assert label == index % 4
                choices = {
                    (top, left, flip)
                    for top in range(5)
                    for left in range(5)
                    for flip in (False, True)
                    if torch.equal(by_hand(images[index], top, left, flip, 2).float(), image)
                }
                assert len(choices) == 1
                seen |= choices
    assert len(seen) == 50, "every crop and flip occurs"


def test_a_batch_says_which_images_it_has(device):
    loader = open_numbered(device, padding=1, flip=True)
    for epoch in (0, 1):
        loader.start(epoch)
        images, labels, examples = loader.batch()
        # the pixels say so as well, where they are not padding
        assert torch.equal(images[:, 0].amax((1, 2)).long() - 1, examples)
        assert torch.equal(labels, examples % 4)


def test_a_sample_is_of_training_images_as_they_are(device):
    loader = open_numbered(device, padding=2, flip=True, cutout=3)
    images, labels = loader.sample(12, seed=5)
    chosen = images[:, 0, 0, 0].long() - 1
    assert len(chosen.unique()) == 12
    assert torch.equal(images.permute(0, 2, 3, 1).cpu(), numbered().train_images[chosen.cpu()].float())
    assert torch.equal(labels, chosen % 4)
    assert all(torch.equal(a, b) for a, b in zip(loader.sample(12, seed=5), (images, labels), strict=True))
    assert not torch.equal(loader.sample(12, seed=6)[1], labels)
    assert len(loader.sample(1000, seed=5)[0]) == 40


def test_an_epoch_has_each_image_once_but_for_the_last_part_of_a_batch(device):
    loader = open_numbered(device, batch_size=7)
    indices = torch.cat([batch[:, 0].amax((1, 2)) for batch, _ in batches(loader, 0)])
    assert loader.steps_per_epoch == 5
    assert len(indices) == len(indices.unique()) == 35


def test_epochs_follow_from_seed_and_epoch_alone(device):
    def epoch(seed, number):
        return torch.cat([x for x, _ in batches(open_numbered(device, seed, padding=1, flip=True, cutout=2), number)])

    loader = open_numbered(device, 3, padding=1, flip=True, cutout=2)
    for number in (0, 1, 2):
        again = torch.cat([x for x, _ in batches(loader, number)])
        assert torch.equal(again, epoch(3, number))
    assert not torch.equal(epoch(3, 0), epoch(3, 1))
    assert not torch.equal(epoch(3, 0), epoch(4, 0))


def test_cutout_is_a_square_hole_that_may_lie_partly_outside(device):
    sizes = []
    for batch, _ in batches(open_numbered(device, cutout=4), 0):
        for image in batch:
            hole = (image == 0).all(0)
            rows, columns = hole.any(1).sum().item(), hole.any(0).sum().item()
            assert hole.sum() == rows * columns
            sizes.append((rows, columns))
    assert max(sizes) == (4, 4)
    assert min(min(size) for size in sizes) == 2  # a centre on the border


def test_images_are_channels_last_in_memory(device):
    batch, _ = next(batches(open_numbered(device, padding=1), 0))
    assert batch.shape == (8, 3, 6, 6)
    assert batch.is_contiguous(memory_format=torch.channels_last)


def test_train_statistics_normalise(device):
    chosen, arrays = Augmentation(), digits()
    loader = ResidentData(reside(arrays, chosen, device), chosen, 1437, 0)
    ((images, _),) = list(batches(loader, 0))
    assert images.mean().item() == pytest.approx(0, abs=1e-5)
    assert images.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    tests = torch.cat([x for x, _ in loader.test()])
    assert tests.shape == (360, 1, 8, 8)
    assert tests.mean().item() != pytest.approx(0, abs=1e-5)


def test_statistics_are_exact():
    images = torch.randint(256, (100, 4, 4, 3), dtype=torch.uint8)
    mean, std = channel_statistics(images)
    flat = images.double().reshape(-1, 3)
    torch.testing.assert_close(mean, flat.mean(0))
    torch.testing.assert_close(std, flat.std(0, correction=0))


@pytest.mark.parametrize("size", [1, 4, 10, 37, 100])
def test_a_subset_is_balanced_and_always_the_same(size):
    labels = torch.arange(100) % 10
    chosen = balanced_subset(labels, size)
    counts = labels[chosen].bincount(minlength=10)
    assert len(chosen.unique()) == size
    assert counts.max() - counts.min() <= 1
    assert torch.equal(chosen, balanced_subset(labels, size))
    assert size == 100 or not torch.equal(chosen, torch.arange(size))


def test_a_subset_of_unequal_classes_takes_what_there_is():
    labels = torch.tensor([0] * 50 + [1] * 3)
    assert labels[balanced_subset(labels, 20)].bincount().tolist() == [17, 3]


def test_digits_split_is_fixed_and_has_no_image_twice():
    arrays = digits()
    assert (len(arrays.train_images), len(arrays.test_images)) == (1437, 360)
    assert arrays.test_labels.bincount().min() >= 34
    both = torch.cat([arrays.train_images, arrays.test_images]).flatten(1)
    assert len(both.unique(dim=0)) == 1797
    assert both.max() == 240


def test_digits_split_is_that_of_scikit_learn():
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    train, test = train_test_split(range(1797), test_size=360, random_state=0, stratify=bunch.target)
    images = torch.from_numpy(bunch.images * 15).to(torch.uint8)[..., None]
    arrays = digits()
    assert torch.equal(arrays.train_images, images[train])
    assert torch.equal(arrays.test_images, images[test])
    assert arrays.train_labels.tolist() == bunch.target[train].tolist()
    assert arrays.test_labels.tolist() == bunch.target[test].tolist()


def test_real_cifar10(cifar_root, device):
    loader = create_dataset(settings("dataset=cifar10", f"dataset.root={cifar_root}").dataset, 128, device, 0)
    assert (loader.train_size, loader.test_size, loader.classes, loader.steps_per_epoch) == (50_000, 10_000, 10, 390)
    assert (loader.channels, loader.image_size) == (3, 32)
    # the statistics that everyone quotes for CIFAR-10
    assert (loader.data.mean / 255).tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=1e-4)
    assert (1 / loader.data.inverse_std / 255).tolist() == pytest.approx([0.2470, 0.2435, 0.2616], abs=1e-4)
    assert torch.cat([labels for _, labels in loader.test()]).bincount().tolist() == [1000] * 10


def test_real_cifar100_subset(cifar_root, device):
    chosen = settings("dataset=cifar100", f"dataset.root={cifar_root}", "dataset.subset=5000", "dataset.cutout=8")
    loader = create_dataset(chosen.dataset, 128, device, 0)
    assert loader.classes == 100
    assert loader.data.train_labels.bincount().tolist() == [50] * 100
    images, labels = next(batches(loader, 0))
    assert images.shape == (128, 3, 32, 32)
    assert labels.max() > 50


@pytest.fixture
def image_folder(tmp_path):
    draw = np.random.default_rng(0)
    for part, count in (("train", 12), ("val", 5)):
        for kind in ("cat", "dog"):
            folder = tmp_path / part / kind
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = draw.integers(0, 80, (40, 48, 3), dtype=np.uint8) + (150 if kind == "dog" else 0)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    return tmp_path


@pytest.mark.parametrize("workers", [0, 2])
def test_image_folder(image_folder, workers, device):
    def open_folder(seed=0):
        names = ["dataset=imagefolder", f"dataset.root={image_folder}", f"dataset.workers={workers}"]
        chosen = settings(*names, "dataset.image_size=32", "dataset.subset=20").dataset
        return create_dataset(chosen, 8, device, seed)

    loader = open_folder()
    assert (loader.classes, loader.train_size, loader.test_size, loader.steps_per_epoch) == (2, 20, 10, 2)
    epochs = [list(batches(loader, number)) for number in (0, 1)]
    assert [tuple(x.shape) for x, _ in epochs[0]] == [(8, 3, 32, 32)] * 2
    again = list(batches(open_folder(), 1))  # not after epoch 0: a resumed run starts here
    assert all(torch.equal(a, b) and torch.equal(x, y) for (a, x), (b, y) in zip(epochs[1], again, strict=True))
    assert not torch.equal(epochs[0][0][0], epochs[1][0][0])
    images, labels = loader.sample(6, seed=0)
    assert images.shape == (6, 3, 32, 32)
    assert torch.equal(images.mean((1, 2, 3)) > 0, labels.bool())
    assert torch.equal(loader.sample(6, seed=0)[0], images)
    assert not torch.equal(loader.sample(6, seed=1)[0], images)
    tests = list(loader.test())
    assert sum(len(labels) for _, labels in tests) == 10
    for images, labels in tests:
        assert torch.equal(images.mean((1, 2, 3)) > 0, labels.bool())  # dogs are the bright ones here


def test_training_on_an_image_folder(image_folder, command):
    arguments = ["dataset=imagefolder", f"dataset.root={image_folder}", "dataset.workers=0", "dataset.image_size=32"]
    status, out, err = command(*arguments, "logger=none", "trainer.batch_size=8", "trainer.epochs=8")
    assert status == 0, err
    assert f"{image_folder.name}-small_resnet-rst-linear" in out
    assert "test accuracy (last epoch)  100.00%" in out


@pytest.mark.parametrize("optimizer", [["optimizer=saf"], ["optimizer=rst", "optimizer/inner=ausam"]])
def test_a_method_that_remembers_images_needs_to_know_them(image_folder, command, optimizer):
    arguments = ["dataset=imagefolder", f"dataset.root={image_folder}", "dataset.workers=0", "dataset.image_size=32"]
    status, _, err = command(*arguments, *optimizer, "logger=none", "trainer.batch_size=8")
    assert status == 2
    assert re.match(r"error: optimizer(/inner)?=\w+: needs the index of each training image.* choose dataset=", err)
    assert not command.runs.exists()
