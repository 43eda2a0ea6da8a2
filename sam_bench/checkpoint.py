"""`last.pt`: everything that a killed run needs to go on to the same bits."""

import io
from pathlib import Path
from typing import Any

import torch

from sam_bench import files
from sam_bench.errors import SettingError

FORMAT = 1


def save(path: Path, config_hash: str, seed: int, state: dict[str, Any]) -> None:
    """Replace the checkpoint. `state` holds tensors, plain numbers, strings, lists and dicts alone."""
    buffer = io.BytesIO()  # torch.save to a full disk raises a RuntimeError that hides why; a plain write does not
    torch.save({"format": FORMAT, "config_hash": config_hash, "seed": seed, **state}, buffer)
    files.replace(path, buffer.getvalue())


def load(path: Path, config_hash: str, seed: int) -> dict[str, Any] | None:
    """The checkpoint at `path`, on the CPU, or None where there is none.

    Raises:
        SettingError: it is torn, or another run's.

    """
    if not path.exists():
        return None
    try:
        # on the CPU, from where each `load_state_dict` moves what belongs elsewhere: step counters mostly do not
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise SettingError(f"{path}: cannot be read, it is torn or no checkpoint; delete it to start anew") from error
    whose = tuple(state.get(key) for key in ("format", "config_hash", "seed")) if isinstance(state, dict) else None
    if whose != (FORMAT, config_hash, seed):
        raise SettingError(f"{path}: is the checkpoint of another run ({whose}); delete it to start anew")
    return state
