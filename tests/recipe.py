"""python -m tests.recipe: the whole suite, in a copy of this repository that follows the recipe of docs/extending.md.

The recipe adds a method by writing two files. So each run of the suite also shows that nothing else is needed: the new
method trains, keeps the contract, and no test that was there before fails. Arguments go to pytest.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
NOT_COPIED = {".git", ".venv", ".venv-unpack", "data", "runs", "bench", "build", "dist"}


def files_of_the_recipe() -> dict[str, str]:
    """What it says to write, by path."""
    recipe = (REPOSITORY / "docs" / "extending.md").read_text().split("## Inside this repository")[1]
    block = r"`([\w/]+\.(?:py|yaml))`[^`]*:\n\n```\w+\n(.*?)^```"
    return dict(re.findall(block, recipe, re.MULTILINE | re.DOTALL))


def main() -> int:
    """Copy, follow the recipe, test; return pytest's exit status."""
    with tempfile.TemporaryDirectory(prefix="sam_bench-") as folder:
        copy = Path(folder) / "sam_bench"
        copy.mkdir()
        for path in REPOSITORY.iterdir():
            if path.is_dir() and path.name not in NOT_COPIED:
                shutil.copytree(path, copy / path.name, ignore=shutil.ignore_patterns("__pycache__", ".*_cache"))
            elif path.is_file():
                shutil.copy(path, copy)
        for name, text in files_of_the_recipe().items():
            (copy / name).write_text(text)
        environment = {**os.environ, "SAM_BENCH_RECIPE": "followed", "SAM_BENCH_HISTORY": str(REPOSITORY / ".git")}
        environment.setdefault("SAM_BENCH_DATA", str(REPOSITORY / "data"))
        with (copy / "docs" / "methods.md").open("w") as page:  # make docs
            subprocess.run([sys.executable, "-m", "sam_bench.catalogue"], cwd=copy, stdout=page, check=True)
        return subprocess.run([sys.executable, "-m", "pytest", *sys.argv[1:]], cwd=copy, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
