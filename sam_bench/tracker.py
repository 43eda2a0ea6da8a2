"""Weights & Biases: logs the rows of `metrics.csv`. An error in W&B does not stop the run."""

import re
import secrets
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from sam_bench.errors import reason
from sam_bench.settings import Settings


def id_in(folder: Path) -> str | None:
    """The id under which W&B has the run in this folder. A run of the same settings in another folder has its own."""
    names = [path.name for path in sorted(folder.glob("wandb/*run-*"))]
    return next((found[1] for name in names if (found := re.search(r"run-\d+_\d+-(.+)", name))), None)


class Tracker:
    """A W&B run, or none. If W&B fails, one warning is printed and logging stops."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.run: Any = None
        self.failed = settings.logger.name != "wandb"
        self._try(lambda: self._start(settings, folder))

    def _start(self, settings: Settings, folder: Path) -> None:
        import wandb

        self.run = wandb.init(
            project=settings.logger.project,
            entity=settings.logger.entity,
            mode=settings.logger.mode,
            dir=str(folder),
            id=id_in(folder) or f"{settings.config_hash}-{settings.seed}-{secrets.token_hex(3)}",
            name=f"{settings.cell}-seed-{settings.seed}",
            resume="allow",
            group=settings.cell,
            job_type=settings.optimizer.name,
            tags=[
                *(tag for tag in (settings.experiment, settings.protocol) if tag),
                *(settings.dataset.label, settings.model.name),
                *settings.logger.tags,
            ],
            # a panel can only be grouped by a key of the config
            config={**settings.dump(), "cell": settings.cell, "group": settings.cell},
            reinit="create_new",  # the runs of several seeds are open side by side
            settings=wandb.Settings(silent=True, console="off"),
        )
        self.run.define_metric("propagations")
        self.run.define_metric("*", step_metric="propagations")  # methods compare at equal numbers of gradients

    def log(self, row: dict[str, Any]) -> None:
        """Log an epoch's row without what it does not have. W&B leaves out a row that it already has."""
        known = {key: value for key, value in row.items() if value is not None}
        self._try(lambda: self.run.log(known, step=row["epoch"]))

    def finish(self, result: dict[str, Any] | None) -> None:
        """End the run, with its result, or without one if it failed."""
        self._try(lambda: self.run.summary.update(result or {}))
        if self.run is not None:
            with suppress(Exception):
                self.run.finish(exit_code=0 if result else 1)

    def _try(self, action: Callable[[], Any]) -> None:
        if self.failed:
            return
        try:
            action()
        except Exception as error:
            self.failed = True
            print(f"warning: logger=wandb: {reason(error)}; training continues without it", file=sys.stderr)
