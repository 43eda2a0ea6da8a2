import csv
import json

import numpy as np
import pytest
import torch
from filelock import FileLock, Timeout
from hydra.core.utils import run_job
from torchvision.datasets import CIFAR10

from sam_bench import command as entry_point
from sam_bench.build import create_dataset
from sam_bench.data import Arrays, cifar
from sam_bench.data.digits import digits
from sam_bench.data.resident import Augmentation, ResidentData, channel_statistics, check_arrays, reside
from sam_bench.data.sampling import balanced_subset, subset_and_validation
from sam_bench.errors import SettingError
from tests.batches import batches
from tests.command import TINY, settings


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


def test_one_process_downloads_while_the_others_wait(tmp_path, monkeypatch):
    held = []

    class Missing(CIFAR10):
        def __init__(self, root, train, download):
            if not download:
                raise RuntimeError("not there")
            try:
                FileLock(tmp_path / "new" / ".download.lock").acquire(blocking=False)
            except Timeout:
                held.append(train)
            raise RuntimeError("no network")

    with pytest.raises(SettingError, match="no cifar-10-batches-py there, and the download failed"):
        cifar._load(Missing, tmp_path / "new")
    assert held == [True]
    assert not (tmp_path / "new").exists()


def test_real_cifar100_subset(cifar_root, device):
    chosen = settings("dataset=cifar100", f"dataset.root={cifar_root}", "dataset.subset=5000", "dataset.cutout=8")
    loader = create_dataset(chosen.dataset, 128, device, 0)
    assert loader.classes == 100
    assert loader.data.train_labels.bincount().tolist() == [50] * 100
    images, labels = next(batches(loader, 0))
    assert images.shape == (128, 3, 32, 32)
    assert labels.max() > 50


@pytest.mark.parametrize("subset", [None, 1000])
def test_a_validation_set_is_balanced_and_the_same_for_all(subset):
    labels = digits().train_labels
    train, held_out = subset_and_validation(labels, subset, 0.1)
    assert len(held_out) == round(0.1 * (subset or len(labels)))
    assert torch.equal(torch.cat([train, held_out]).sort().values, balanced_subset(labels, subset))
    counts = labels[held_out].bincount()
    assert counts.max() - counts.min() <= 1
    again = subset_and_validation(labels, subset, 0.1)
    assert torch.equal(again[0], train)
    assert torch.equal(again[1], held_out)


def test_a_validation_set_takes_the_same_share_of_unequal_classes():
    labels = torch.tensor([0] * 300 + [1] * 30)
    _, held_out = subset_and_validation(labels, None, 0.1)
    assert labels[held_out].bincount().tolist() == [30, 3]
    with pytest.raises(SettingError, match=r"dataset\.validation=0\.001: holds out 0 of 330 images of 2 classes"):
        subset_and_validation(labels, None, 0.001)
    with pytest.raises(SettingError, match="every class needs an image in both parts"):
        subset_and_validation(torch.tensor([0] * 300 + [1]), None, 0.1)


def test_validation_images_are_not_trained_on_and_are_not_augmented(device):
    loader = open_numbered(device, batch_size=4, padding=2, flip=True, validation=0.2)
    assert (loader.train_size, loader.validation_size, loader.test_size) == (32, 8, 5)
    (held_out,) = (images[:, 0, 0, 0] for images, _ in loader.validation())
    trained = torch.cat([images[:, 0].amax((1, 2)) for images, _ in batches(loader, 0)])
    assert sorted([*held_out.tolist(), *trained.tolist()]) == list(range(1, 41))
    ((images, labels),) = loader.validation()
    whole = numbered()
    index = images[:, 0, 0, 0].long().cpu() - 1
    assert torch.equal(images.cpu().permute(0, 2, 3, 1), whole.train_images[index].float())
    assert torch.equal(labels.cpu(), whole.train_labels[index])


def test_with_a_validation_set_the_test_set_is_used_once(command, monkeypatch):
    tested = []
    test = ResidentData.test
    monkeypatch.setattr(ResidentData, "test", lambda self: tested.append(1) or test(self))
    status, out, err = command(*TINY, "dataset.validation=0.25")
    assert status == 0, err
    assert len(tested) == 1
    (folder,) = command.folders()
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    assert [bool(row["test_accuracy"]) for row in rows] == [False, False, True]
    assert all(0 < float(row["validation_accuracy"]) < 1 for row in rows)
    result = json.loads((folder / "result.json").read_text())
    assert result["validation_accuracy"] == float(rows[-1]["validation_accuracy"])
    assert result["test_accuracy"] == float(rows[-1]["test_accuracy"])
    assert (result["train_images"], result["validation_images"], result["test_images"]) == (240, 80, 360)
    assert f"validation accuracy         {result['validation_accuracy']:.2%}" in out


def test_a_sweeper_sees_the_validation_accuracy(monkeypatch, tmp_path):
    """`run` returns what an optimizing sweeper maximizes."""
    seen = []

    def run_and_keep(*args, **kwargs):
        done = run_job(*args, **kwargs)
        seen.append(done.return_value)
        return done

    monkeypatch.setattr("hydra._internal.hydra.run_job", run_and_keep)
    for share in ("0", "0.25"):
        monkeypatch.setattr("sys.argv", ["sam_bench", *TINY, f"dataset.validation={share}", f"runs={tmp_path}"])
        entry_point.main()
    found = [json.loads(path.read_text()) for path in tmp_path.glob("*/*/result.json")]
    plain, split = sorted(found, key=lambda result: result["validation_images"])
    assert seen == [plain["test_accuracy"], split["validation_accuracy"]]


def test_without_one_every_epoch_is_tested(command):
    command(*TINY)
    (folder,) = command.folders()
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    assert all(row["test_accuracy"] and not row["validation_accuracy"] for row in rows)
    assert json.loads((folder / "result.json").read_text())["validation_accuracy"] is None


def changed(**fields):
    return numbered(200, 8)._replace(**fields)


GOOD = numbered(200, 8)
BAD_ARRAYS = {
    "labels that are too few": (changed(train_labels=GOOD.train_labels[:150]), r"train_labels has shape \(150,\), not"),
    "labels in a column": (changed(train_labels=GOOD.train_labels[:, None]), r"train_labels has shape \(200, 1\), not"),
    "too few test labels": (changed(test_labels=GOOD.test_labels[:3]), "test_labels has shape"),
    "channels first": (
        changed(train_images=GOOD.train_images.permute(0, 3, 1, 2)),
        r"shape \(200, 3, 8, 8\), .*move the channels with \.permute\(0, 2, 3, 1\)",
    ),
    "floats": (changed(train_images=GOOD.train_images / 255), "train_images has dtype torch.float32, not torch.uint8"),
    "int32 images": (changed(train_images=GOOD.train_images.int()), "train_images has dtype torch.int32"),
    "float test images": (changed(test_images=GOOD.test_images.float()), "test_images has dtype torch.float32"),
    "int32 labels": (changed(train_labels=GOOD.train_labels.int()), "train_labels has dtype torch.int32"),
    "one-hot labels": (changed(train_labels=torch.eye(4).long()[GOOD.train_labels]), "train_labels has shape"),
    "a class too high": (
        changed(train_labels=GOOD.train_labels + 1),
        "train_labels range from 1 to 4, not from 0 to 3",
    ),
    "a class below 0": (changed(test_labels=GOOD.test_labels - 1), "test_labels range from -1 to"),
    "not square": (changed(train_images=GOOD.train_images[:, :, :6]), r"shape \(200, 8, 6, 3\), not"),
    "without channels": (changed(train_images=GOOD.train_images[..., 0]), r"shape \(200, 8, 8\), not"),
    "empty": (changed(test_images=GOOD.test_images[:0], test_labels=GOOD.test_labels[:0]), r"shape \(0, 8, 8, 3\)"),
    "other sizes": (changed(test_images=GOOD.test_images[:, :4, :4]), "but test_images of shape"),
    "other channels": (changed(test_images=GOOD.test_images[..., :1]), "but test_images of shape"),
    "numpy": (changed(train_images=GOOD.train_images.numpy()), "train_images is a ndarray, not a torch.Tensor"),
    "a list": (changed(train_labels=GOOD.train_labels.tolist()), "train_labels is a list"),
    "one class": (changed(classes=1), "classes=1, not an integer of at least 2"),
    "classes that are no number": (changed(classes=True), "classes=True"),
    "far more classes than images": (changed(classes=10**12), "but no training image has class 4"),
    "a class without images": (changed(classes=5), "classes=5, but no training image has class 4"),
    "a plain tuple": (tuple(GOOD), "returned a tuple, not Arrays"),
    "nothing": (None, "returned a NoneType, not Arrays"),
}


@pytest.mark.parametrize("what", BAD_ARRAYS)
def test_arrays_are_checked_on_entry(what):
    arrays, message = BAD_ARRAYS[what]
    with pytest.raises(SettingError, match=f"^dataset=mine: .*{message}") as refused:
        check_arrays("dataset=mine", arrays)
    assert "\n" not in str(refused.value)


def test_good_arrays_pass():
    check_arrays("dataset=mine", GOOD)
    check_arrays("dataset=mine", changed(classes=np.int64(4)))


def test_images_that_were_permuted_train_without_padding(device):
    """As the message about channels that come first advises."""
    first = GOOD.train_images.permute(0, 3, 1, 2).contiguous()
    chosen = Augmentation()
    permuted, plain = (
        ResidentData(reside(changed(train_images=images), chosen, device), chosen, 50, 0)
        for images in (first.permute(0, 2, 3, 1), GOOD.train_images)
    )
    for (one, _), (other, _) in zip(batches(permuted, 0), batches(plain, 0), strict=True):
        assert torch.equal(one, other)
