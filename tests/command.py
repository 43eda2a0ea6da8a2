"""The command, in this process: real configuration, real training, without the seconds that imports take."""

import sys
from pathlib import Path

import pytest

from sam_bench import command as entry_point
from sam_bench.configuration import compose_settings as settings

__all__ = ["TINY", "Command", "command", "settings"]

# 10 steps per epoch, a fraction of a second
TINY = ["logger=none", "dataset.subset=320", "trainer.batch_size=32", "trainer.epochs=3"]


class Command:
    """`python -m sam_bench ARGUMENTS` with its run folders in `runs`."""

    def __init__(self, runs: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self.runs, self.monkeypatch, self.capfd = runs, monkeypatch, capfd

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """Exit status, standard output, standard error."""
        self.capfd.readouterr()
        runs = [] if any(each.startswith("runs=") for each in arguments) else [f"runs={self.runs}"]
        self.monkeypatch.setattr(sys, "argv", ["sam_bench", *arguments, *runs])
        status = 0
        try:
            entry_point.main()
        except SystemExit as exit_:
            status = exit_.code if isinstance(exit_.code, int) else 1
        return status, *self.capfd.readouterr()

    def folders(self) -> list[Path]:
        return sorted(path.parent for path in self.runs.glob("*/*/result.json"))


@pytest.fixture
def command(tmp_path, monkeypatch, capfd) -> Command:
    return Command(tmp_path / "runs", monkeypatch, capfd)
