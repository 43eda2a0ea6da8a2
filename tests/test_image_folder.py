"""Folders of images: the right classes, the right images, whatever the number of workers, and no silence."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import get_worker_info

from sam_bench import run
from sam_bench.build import create_dataset
from sam_bench.data.imagefolder import Images
from sam_bench.data.listing import list_images
from sam_bench.errors import SettingError
from tests.batches import batches
from tests.command import settings
from tests.test_command import REPOSITORY, WITHOUT_TORCH
from tests.test_errors import one_line

DRAW = np.random.default_rng(0)


def save_image(path: Path, level: int, size: int = 40) -> None:
    """Noise around a gray level from 0 to 2, by which a class is known."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = DRAW.integers(0, 60, (size, size + 8, 3)) + 90 * level
    Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture
def image_folder(tmp_path) -> Path:
    root = tmp_path / "pets"
    for part, count in (("train", 12), ("val", 5)):
        for level, kind in enumerate(("cat", "dog")):
            for i in range(count):
                save_image(root / part / kind / f"{i}.png", level)
    return root


@pytest.fixture
def tiny_imagenet(tmp_path) -> Path:
    """As distributed: train/CLASS/images/, annotated val/images/, test/images/ without classes, lists of words."""
    root, classes = tmp_path / "tiny-imagenet-200", ("n01443537", "n01629819", "n01641577")
    lines = []
    for level, name in enumerate(classes):
        for i in range(12):
            save_image(root / "train" / name / "images" / f"{name}_{i}.JPEG", level, 64)
        (root / "train" / name / f"{name}_boxes.txt").write_text(f"{name}_0.JPEG\t0\t10\t63\t58\n")
    for i in range(18):
        level = int(DRAW.integers(3))
        save_image(root / "val" / "images" / f"val_{i}.JPEG", level, 64)
        lines.append(f"val_{i}.JPEG\t{classes[level]}\t0\t32\t44\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    save_image(root / "test" / "images" / "test_0.JPEG", 0, 64)
    (root / "wnids.txt").write_text("\n".join(classes))
    (root / "words.txt").write_text("n01443537\tgoldfish, Carassius auratus\n")
    return root


def names(root: Path, *further: str) -> list[str]:
    small = ["logger=none", "dataset.workers=0", "dataset.image_size=32", "trainer.batch_size=8", "trainer.epochs=2"]
    return ["dataset=imagefolder", f"dataset.root={root}", *small, *further]


def open_folder(root: Path, *further: str, seed: int = 0, device: str = "cpu"):
    return create_dataset(settings(*names(root, *further)).dataset, 8, torch.device(device), seed)


@pytest.mark.parametrize("workers", [0, 2])
def test_image_folder(image_folder, workers, device):
    loader = open_folder(image_folder, "dataset.subset=20", f"dataset.workers={workers}", device=device)
    assert (loader.classes, loader.train_size, loader.test_size, loader.steps_per_epoch) == (2, 20, 10, 2)
    epochs = [list(batches(loader, number)) for number in (0, 1)]
    assert [tuple(x.shape) for x, _ in epochs[0]] == [(8, 3, 32, 32)] * 2
    fresh = open_folder(image_folder, "dataset.subset=20", device=device)
    again = list(batches(fresh, 1))  # not after epoch 0: a resumed run starts here
    assert all(torch.equal(a, b) and torch.equal(x, y) for (a, x), (b, y) in zip(epochs[1], again, strict=True))
    assert not torch.equal(epochs[0][0][0], epochs[1][0][0])
    images, labels = loader.sample(6, seed=0)
    assert images.shape == (6, 3, 32, 32)
    assert torch.equal(images.mean((1, 2, 3)) > -0.5, labels.bool())
    assert torch.equal(loader.sample(6, seed=0)[0], images)
    assert not torch.equal(loader.sample(6, seed=1)[0], images)
    tests = list(loader.test())
    assert sum(len(labels) for _, labels in tests) == 10
    for images, labels in tests:
        assert torch.equal(images.mean((1, 2, 3)) > -0.5, labels.bool())  # dogs are the bright ones here


def test_training_on_an_image_folder(image_folder, command):
    status, out, err = command(*names(image_folder, "trainer.epochs=8"))
    assert status == 0, err
    assert "pets-small_resnet-rst-linear" in out
    assert "test accuracy (last epoch)  100.00%" in out


def test_tiny_imagenet_as_distributed_trains_with_the_right_classes(tiny_imagenet, command):
    loader = open_folder(tiny_imagenet)
    assert (loader.classes, loader.train_size, loader.test_size) == (3, 36, 18)
    images, labels = loader.sample(36, seed=0)
    assert labels.bincount().tolist() == [12, 12, 12]
    levels = ((images.mean((1, 2, 3)) + 1.7) / 1.55).round().long()  # the gray level that its class was drawn with
    assert torch.equal(levels, labels)
    tested = [torch.cat(parts) for parts in zip(*loader.test(), strict=True)]
    assert torch.equal(((tested[0].mean((1, 2, 3)) + 1.7) / 1.55).round().long(), tested[1])
    status, _, err = command(*names(tiny_imagenet, "trainer.epochs=15", "optimizer=sgd"))
    assert status == 0, err
    result = json.loads((command.folders()[0] / "result.json").read_text())
    assert (result["dataset"], result["train_images"], result["test_images"]) == ("tiny-imagenet-200", 36, 18)
    assert result["test_accuracy"] == 1  # three levels of gray


def weights(command) -> dict[str, torch.Tensor]:
    (folder,) = command.folders()
    return torch.load(folder / "last.pt", weights_only=True)["model"]


MODELS = {
    "dropout": ["model=timm", "model.architecture=test_vit", "+model.kwargs.drop_rate=0.3"],
    "drop path and BatchNorm": [
        *("model=timm", "model.architecture=test_resnet", "+model.kwargs.drop_path_rate=0.5"),
        "trainer.batch_norm_epochs=1",
    ],
}


@pytest.mark.parametrize("model", MODELS)
def test_the_number_of_workers_changes_nothing(image_folder, command, model):
    """Neither the order, nor the augmentation, nor dropout, nor what a method samples, nor BatchNorm's statistics."""
    found = []
    for workers in (0, 1, 2):
        command.runs = command.runs.with_name(f"{model}-{workers}")
        arguments = names(image_folder, f"dataset.workers={workers}", "optimizer=ssam_f", "optimizer.samples=5")
        status, _, err = command(*arguments, *MODELS[model])
        assert status == 0, err
        found.append((command.folders()[0].parent.name, weights(command)))
    for name, tensors in found[1:]:
        assert name == found[0][0]
        assert all(torch.equal(tensors[key], found[0][1][key]) for key in tensors)


def test_changed_contents_are_another_run(image_folder, command):
    assert command(*names(image_folder))[0] == 0
    moved = image_folder.with_name("elsewhere") / "pets"
    shutil.copytree(image_folder, moved)
    assert "finished before" in command(*names(moved))[1]
    save_image(moved / "train" / "cat" / "another.png", 0)
    assert "finished before" not in command(*names(moved))[1]
    save_image(moved / "train" / "cat" / "another.png", 0, size=50)
    assert "finished before" not in command(*names(moved))[1]
    (moved / "val" / "cat" / "0.png").rename(moved / "val" / "cat" / "00.png")
    assert "finished before" not in command(*names(moved))[1]
    assert len(command.folders()) == 4


def test_a_renamed_folder_is_another_run_that_reports_accept(image_folder, command):
    from sam_bench.report.cells import collect

    assert command(*names(image_folder))[0] == 0
    renamed = image_folder.rename(image_folder.with_name("animals"))
    assert "finished before" not in command(*names(renamed))[1]
    assert len(collect([command.runs])) == 2


def test_equal_names_and_sizes_with_other_pixels_are_another_run(tmp_path):
    hashes = []
    for name in ("a", "b"):
        root = tmp_path / name / "pets"
        for part in ("train", "val"):
            for kind in ("cat", "dog"):
                save_image(root / part / kind / "0.bmp", 0)
        hashes.append(settings(*names(root)).config_hash)
    assert hashes[0] != hashes[1]


def test_validation_on_an_image_folder(image_folder, command):
    status, _, err = command(*names(image_folder, "dataset.validation=0.25"))
    assert status == 0, err
    result = json.loads((command.folders()[0] / "result.json").read_text())
    assert (result["train_images"], result["validation_images"], result["test_images"]) == (18, 6, 10)
    loader = open_folder(image_folder, "dataset.validation=0.25")
    assert torch.cat([labels for _, labels in loader.validation()]).bincount().tolist() == [3, 3]


def remove(root: Path, *parts: str) -> None:
    shutil.rmtree(root.joinpath(*parts))


def move_to_one_class(root: Path) -> None:
    for part in ("train", "val"):
        remove(root, part, "dog")


def make_tiny_without_annotations(root: Path) -> None:
    remove(root, "val")
    save_image(root / "val" / "images" / "val_0.JPEG", 0)


def annotate(root: Path, lines: str) -> None:
    remove(root, "val")
    for i in range(2):
        save_image(root / "val" / "images" / f"val_{i}.JPEG", i)
    (root / "val" / "val_annotations.txt").write_text(lines)


def make_one_level_too_deep(root: Path) -> None:
    (root / "inner").mkdir()
    for part in ("train", "val"):
        (root / part).rename(root / "inner" / part)


WRONG = {
    "no train": (lambda r: remove(r, "train"), "needs a folder train/"),
    "no val": (lambda r: remove(r, "val"), "needs a folder val/"),
    "nothing": (lambda r: remove(r), "needs a folder train/"),
    "one level too deep": (make_one_level_too_deep, r"needs a folder train/.*did you mean dataset\.root=.*/inner\?"),
    "train is a file": (lambda r: (remove(r, "train"), (r / "train").write_text("")), "needs a folder train/"),
    "one class": (move_to_one_class, "train/ has 1 class: cat; needs two or more"),
    "no class": (lambda r: [remove(r, "train", kind) for kind in ("cat", "dog")], "train/ has 0 classes; needs two"),
    "a class that is not tested": (lambda r: remove(r, "val", "dog"), "classes dog only in train/"),
    "a class that is not trained": (lambda r: save_image(r / "val" / "cow" / "0.png", 0), "classes cow only in val/"),
    "an empty class": (lambda r: (r / "train" / "cow").mkdir(), "no image in train/cow"),
    "an empty class in both": (
        lambda r: [(r / part / "cow").mkdir() for part in ("train", "val")],
        "no image in train/cow",
    ),
    "a class of other files": (
        lambda r: [(r / p / "cow").mkdir() or (r / p / "cow" / "0.npy").write_text("") for p in ("train", "val")],
        r"no image in train/cow \(files that end in .bmp",
    ),
    "an image in train": (
        lambda r: save_image(r / "train" / "loose.png", 0),
        r"1 images of train/ are outside a class folder, such as loose\.png; put each into train/CLASS/",
    ),
    "an image in val": (lambda r: save_image(r / "val" / "loose.JPG", 0), "1 images of val/ are outside"),
    "no annotations": (make_tiny_without_annotations, "Tiny ImageNet has the classes of val/images in"),
    "an image without annotation": (
        lambda r: annotate(r, "val_0.JPEG\tcat\t0\n"),
        r"1 images of val/images without a line in val/val_annotations\.txt, such as val_1\.JPEG",
    ),
    "an annotation without image": (
        lambda r: annotate(r, "val_0.JPEG\tcat\nval_1.JPEG\tdog\nval_2.JPEG\tdog\n"),
        r"1 images of val/val_annotations\.txt are not in val/images, such as val_2\.JPEG",
    ),
    "an unknown class": (
        lambda r: annotate(r, "val_0.JPEG\tcat\nval_1.JPEG\tcow\n"),
        "classes dog only in train/, cow only in val/",
    ),
    "an image that is annotated twice": (
        lambda r: annotate(r, "val_0.JPEG\tcat\nval_1.JPEG\tdog\nval_0.JPEG\tdog\n"),
        r"val/val_annotations\.txt names an image twice",
    ),
    "a name that is there twice": (
        lambda r: (
            annotate(r, "val_0.JPEG\tcat\nval_1.JPEG\tdog\n"),
            save_image(r / "val" / "images" / "further" / "val_0.JPEG", 0),
        ),
        "val/images has an image name twice",
    ),
    "one folder for both": (
        lambda r: (remove(r, "val"), (r / "val").symlink_to(r / "train")),
        "train/ and val/ are one folder",
    ),
    "a line break in a name": (lambda r: save_image(r / "val" / "loose\nloose.png", 0), "such as loose loose.png"),
    "empty annotations": (lambda r: annotate(r, ""), "2 images of val/images without a line"),
    "broken annotations": (lambda r: annotate(r, "\0\n\xff\t\n"), "2 images of val/images without a line"),
}


@pytest.mark.parametrize("what", WRONG)
def test_folders_that_cannot_be_what_was_meant(image_folder, command, what):
    change, message = WRONG[what]
    change(image_folder)
    status, out, err = command(*names(image_folder))
    assert (status, out) == (2, "")
    assert re.search(message, one_line(err))
    assert err.count("\n") == 1
    assert not command.runs.exists()


def test_a_missing_train_folder_is_said_at_once(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *names(tmp_path)], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == f"error: dataset.root={tmp_path}: needs a folder train/ that contains class folders\n"


def test_hidden_files_links_and_pipes_are_no_trouble(image_folder):
    before = list_images.__wrapped__(image_folder)
    (image_folder / "train" / "cat" / "._0.png").write_text("")  # what macOS leaves behind
    (image_folder / "train" / ".cache").mkdir()
    (image_folder / "train" / "cat" / "around").symlink_to(image_folder / "train")
    (image_folder / "train" / "itself").symlink_to(image_folder / "train")
    os.mkfifo(image_folder / "train" / "cat" / "pipe.png")
    after = list_images.__wrapped__(image_folder)
    assert after.train == before.train
    shutil.copytree(image_folder / "val" / "cat", image_folder / "cats")
    shutil.rmtree(image_folder / "val" / "cat")
    (image_folder / "val" / "cat").symlink_to(image_folder / "cats")
    assert len(list_images.__wrapped__(image_folder).val) == 10


def test_annotations_with_a_byte_order_mark_and_windows_line_endings(image_folder):
    annotate(image_folder, "")
    text = b"\xef\xbb\xbfval_0.JPEG\tcat\t0\r\nval_1.JPEG\tdog\r\n"
    (image_folder / "val" / "val_annotations.txt").write_bytes(text)
    assert [label for _, label in list_images.__wrapped__(image_folder).val] == [0, 1]


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_images_of_other_depths_are_not_clipped(image_folder, command, mode):
    """PIL would make them white or black."""
    pixels = DRAW.integers(0, 60_000, (40, 48)).astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode])
    Image.fromarray(pixels).save(image_folder / "val" / "cat" / "deep.tiff")
    status, _, err = command(*names(image_folder))
    assert status == 2
    assert f"val/cat/deep.tiff (its pixels are of mode {mode}" in one_line(err)


BROKEN = {
    "empty": b"",
    "text": b"no image",
    "torn": None,
    "a header alone": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR",
}


def break_image(path: Path, content: bytes | None) -> None:
    path.write_bytes(path.read_bytes()[:1000] if content is None else content)


@pytest.mark.parametrize("what", BROKEN)
@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_test_image_is_named(image_folder, command, what, workers):
    broken = image_folder / "val" / "dog" / "3.png"
    break_image(broken, BROKEN[what])
    status, _, err = command(*names(image_folder, f"dataset.workers={workers}"))
    assert status == 2
    assert f"cannot read {broken} (" in one_line(err)


def test_an_unreadable_validation_image_is_named(image_folder, command):
    for path in (image_folder / "train").rglob("*.png"):
        break_image(path, b"")
    _, _, err = command(*names(image_folder, "dataset.validation=0.25", "optimizer=sgd"))
    assert "cannot read 1 of 18 training images" in one_line(err)
    loader = open_folder(image_folder, "dataset.validation=0.25")
    with pytest.raises(SettingError, match=r"cannot read .*, which is an image to test on"):
        list(loader.validation())


@pytest.mark.parametrize("workers", [0, 2])
def test_more_than_one_unreadable_training_image_in_a_thousand(image_folder, command, workers):
    for i in range(11):
        break_image(image_folder / "train" / "dog" / f"{i}.png", b"")
    status, _, err = command(*names(image_folder, f"dataset.workers={workers}"))
    assert status == 2
    assert re.search(r"cannot read 1 of 24 training images, such as .*/dog/\d+\.png \(.*\); one in a th", one_line(err))


def test_one_in_a_thousand_is_counted(tmp_path, command):
    root = tmp_path / "pets"
    for level, kind in enumerate(("cat", "dog")):
        save_image(root / "val" / kind / "0.png", level, size=8)
        save_image(root / "train" / kind / "0.png", level, size=8)
        for i in range(1, 500):
            shutil.copy(root / "train" / kind / "0.png", root / "train" / kind / f"{i}.png")
    break_image(root / "train" / "dog" / "7.png", b"")
    small = ["dataset.image_size=8", "trainer.batch_size=100", "optimizer=sgd"]
    status, out, err = command(*names(root, *small))
    assert status == 0, err
    assert "1 unreadable training images" in out + err
    assert "unreadable training images  1 of 1,000" in out
    (folder,) = command.folders()
    assert json.loads((folder / "result.json").read_text())["unreadable_images"] == 1
    assert [row["unreadable_images"] for row in csv.DictReader((folder / "metrics.csv").open())] == ["1", "1"]
    break_image(root / "train" / "cat" / "7.png", b"")
    status, _, err = command(*names(root, *small))
    assert status == 2
    assert "cannot read 2 of 1000 training images" in one_line(err)


def test_a_stand_in_keeps_its_own_class(image_folder):
    break_image(image_folder / "train" / "dog" / "3.png", b"")
    loader = open_folder(image_folder)
    loader.train_size = 10**6  # of which one may be unreadable
    loader.steps_per_epoch, loader.batch_size = 1, 24
    items = [[(i, 0) for i in range(24)]]
    ((images, labels),) = loader.batches(loader.sample_images, items, of_training_set=True)
    assert labels.bincount().tolist() == [13, 11]  # the first image of the batch stands in
    broken = [path for path, _ in loader.train_images.samples].index(str(image_folder / "train" / "dog" / "3.png"))
    assert torch.equal(images[broken], images[0])
    assert loader.unreadable_images == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_a_folder_that_disappears_during_training(image_folder, command, monkeypatch, workers):
    end = run.Run.end

    def end_and_remove(self, *arguments):
        row = end(self, *arguments)
        shutil.rmtree(image_folder)
        return row

    monkeypatch.setattr(run.Run, "end", end_and_remove)
    status, _, err = command(*names(image_folder, f"dataset.workers={workers}"))
    assert status == 2
    assert "cannot read 1 of 24 training images" in one_line(err)
    assert "No such file or directory" in err


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_worker_that_dies_is_one_line(image_folder, command, monkeypatch, part):
    """In training and in testing."""
    get = Images.__getitem__

    def get_and_die(self, item):
        if get_worker_info() and f"/{part}/" in self.samples[0][0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return get(self, item)

    monkeypatch.setattr(Images, "__getitem__", get_and_die)
    status, _, err = command(*names(image_folder, "dataset.workers=1"))
    assert status == 2
    assert re.search(
        r"dataset\.workers=1: DataLoader worker .*(killed by signal: Killed|exited unexpectedly)", one_line(err)
    )


def test_an_unreadable_test_image_is_named_before_the_training_is_done(image_folder, command):
    """With a validation set, the test images are used after the last epoch."""
    break_image(image_folder / "val" / "dog" / "3.png", b"")
    status, _, err = command(*names(image_folder, "dataset.validation=0.25", "trainer.epochs=100"))
    assert status == 2
    assert f"cannot read {image_folder}/val/dog/3.png" in one_line(err)
    assert not list(command.runs.glob("*/*/last.pt"))


def test_tiny_imagenet_that_was_sorted_into_classes(image_folder):
    """Common scripts move the images into class folders and leave the annotations behind."""
    (image_folder / "val" / "val_annotations.txt").write_text("val_0.JPEG\tcat\t0\n")
    assert open_folder(image_folder).test_size == 10


@pytest.mark.parametrize("optimizer", [["optimizer=saf"], ["optimizer=rst", "optimizer/inner=ausam"]])
def test_a_method_that_remembers_images_needs_to_know_them(image_folder, command, optimizer):
    status, _, err = command(*names(image_folder, *optimizer))
    assert status == 2
    assert re.match(r"error: optimizer(/inner)?=\w+: needs the index of each training image.* choose dataset=", err)
    assert not command.runs.exists()


def test_two_folders_of_one_name_are_told_apart(image_folder, command):
    from sam_bench.report.cells import collect, panels

    command(*names(image_folder, "optimizer=sgd"))
    other = image_folder.with_name("elsewhere") / "pets"
    shutil.copytree(image_folder, other)
    save_image(other / "train" / "cat" / "another.png", 0)
    command(*names(other, "optimizer=sgd"))
    one, two = panels(collect([command.runs]))  # which are not compared with each other
    contents = [re.match(r"pets \((\w{10})\), ", panel.title)[1] for panel in (one, two)]
    assert contents[0] != contents[1]
