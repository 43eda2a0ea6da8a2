"""The handwritten digits inside scikit-learn: 1,797 images of 8 x 8 pixels in 17 gray levels, no download needed.

Alpaydin & Kaynak: Optical Recognition of Handwritten Digits, UCI, 1998 (its test part).

python -m sam_bench.data.digits FOLDER writes them as a folder of images, to try dataset=imagefolder with.
"""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import torch

from sam_bench.data import Arrays
from sam_bench.data.sampling import stratified_split

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


def write_images(folder: Path) -> None:
    """Write FOLDER/train/CLASS/N.png and FOLDER/val/CLASS/N.png."""
    from PIL import Image

    arrays = digits()
    for part, images, labels in (
        ("train", arrays.train_images, arrays.train_labels),
        ("val", arrays.test_images, arrays.test_labels),
    ):
        for number, (image, label) in enumerate(zip(images.numpy(), labels.tolist(), strict=True)):
            path = folder / part / str(label) / f"{number:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[:, :, 0]).resize((32, 32)).save(path)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("error: give one folder: python -m sam_bench.data.digits FOLDER")
    write_images(Path(sys.argv[1]))
