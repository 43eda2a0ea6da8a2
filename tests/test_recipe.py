"""The recipe of docs/extending.md in a copy of this repository: a new method, and the whole suite still passes."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
RECIPE = (REPOSITORY / "docs" / "extending.md").read_text().split("## Inside this repository")[1]
FILES = re.findall(r"`([\w/]+\.(?:py|yaml))`[^`]*:\n\n```\w+\n(.*?)^```", RECIPE, re.MULTILINE | re.DOTALL)


@pytest.mark.skipif("SAM_BENCH_RECIPE" in os.environ, reason="this is the copy")
def test_two_files_are_all_it_takes(tmp_path):
    """A method is a class and a file. `make docs` writes the catalogue again, and every test passes with it."""
    assert [name for name, _ in FILES] == ["sam_bench/optim/signsam.py", "conf/optimizer/signsam.yaml"]
    ignored = shutil.ignore_patterns(".venv*", ".git", "data", "runs", "bench", ".*_cache", "__pycache__")
    copy = tmp_path / "copy"
    shutil.copytree(REPOSITORY, copy, ignore=ignored)
    for name, text in FILES:
        (copy / name).write_text(text)

    environment = {**os.environ, "SAM_BENCH_RECIPE": "1", "PYTHONPATH": str(copy)}
    environment.setdefault("SAM_BENCH_DATA", str(REPOSITORY / "data"))

    def python(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", *arguments], cwd=copy, capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
        return done.stdout

    tiny = ["logger=none", "trainer.epochs=1", "dataset.subset=320", "trainer.batch_size=32"]
    assert "digits small_resnet signsam seed 0\n" in python("sam_bench", "optimizer=signsam", *tiny)
    out = python("sam_bench", "optimizer=rst", "optimizer/inner=signsam", *tiny)
    assert "digits small_resnet rst linear seed 0\n" in out
    (copy / "docs" / "methods.md").write_text(python("sam_bench.catalogue"))
    assert "| `signsam` | nobody yet | 1 + ascent_share | 1 |" in (copy / "docs" / "methods.md").read_text()
    out = python("ruff", "check", "sam_bench/optim/signsam.py")
    out = python("pytest", "-q", "--color=no", "-p", "no:cacheprovider")
    assert int(re.search(r"(\d+) passed", out)[1]) > 1000, out[-3000:]
