"""`last.pt`: everything that an interrupted run needs to resume with bit-identical results."""

import hashlib
import io
import shutil
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map_only, tree_map_with_path

from sam_bench import files
from sam_bench.errors import SettingError, reason

FORMAT = 5
SHARD = "in the folder of the shards"
CHECKSUM_LENGTH = 64  # hexadecimal digits


def save(path: Path, config_hash: str, seed: int, state: dict[str, Any]) -> None:
    """Replace the checkpoint. `state` holds tensors, plain numbers, strings, lists and dicts alone.

    The file ends with the SHA-256 of all before it, as the comment of the zip archive that torch writes.
    """
    state = tree_map_only(torch.Tensor, lambda t: t.cpu(), state)
    buffer = io.BytesIO()  # torch.save to a full disk raises a RuntimeError that hides why; a plain write does not
    torch.save({"format": FORMAT, "config_hash": config_hash, "seed": seed, **state}, buffer)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.comment = bytes(CHECKSUM_LENGTH)  # its length is part of what is hashed
    content = buffer.getbuffer()[:-CHECKSUM_LENGTH]
    files.replace(path, content, hashlib.sha256(content).hexdigest().encode())


def load(path: Path, config_hash: str, seed: int) -> dict[str, Any] | None:
    """The checkpoint at `path`, on the CPU, or None if there is none.

    Raises a SettingError if it is damaged or belongs to another run.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SettingError(f"{path}: cannot be read: {error.strerror}") from error
    digest = hashlib.sha256(content[:-CHECKSUM_LENGTH]).hexdigest().encode()
    if content[-CHECKSUM_LENGTH:] != digest:
        raise SettingError(f"{path}: is damaged (its checksum does not match); move it away to start over")
    try:
        # on the CPU, from where each `load_state_dict` moves what belongs elsewhere: step counters mostly do not
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        raise SettingError(f"{path}: is not a checkpoint ({reason(error)}); move it away to start over") from error
    whose = {key: state.get(key) for key in ("format", "config_hash", "seed")} if isinstance(state, dict) else None
    mine = {"format": FORMAT, "config_hash": config_hash, "seed": seed}
    if whose != mine:
        raise SettingError(f"{path}: is the checkpoint of another run ({whose}, not {mine}); give another runs=FOLDER")
    return state


def save_shards(folder: Path, name: str, state: dict[str, Any]) -> dict[str, Any]:
    """Write the tensors that FSDP shards into a folder of their own, on all ranks together.

    Returns the state with `SHARD` in the place of each, for `last.pt`.
    """
    from torch.distributed import checkpoint

    shards = {}

    def take(path: Any, value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or not hasattr(value, "to_local"):
            return value
        shards[".".join(str(key.key) for key in path)] = value
        return SHARD

    rest = tree_map_with_path(take, state)
    checkpoint.save(shards, checkpoint_id=folder / name)
    return rest | {"shards": name}


def load_shards(folder: Path, state: dict[str, Any], parameters: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Load the shards into the state. All ranks call it; their number may differ from when the shards were saved.

    `parameters` are this rank's shards, keyed by name prefix.
    """
    from torch.distributed import checkpoint

    shards: dict[str, torch.Tensor] = {}

    def make(path: Any, value: Any) -> Any:
        if not isinstance(value, str) or value != SHARD:
            return value
        name = ".".join(str(key.key) for key in path)
        like = parameters[name] if name in parameters else parameters[name.rpartition(".")[0]]
        shards[name] = torch.zeros_like(like.detach())
        return shards[name]

    whole = tree_map_with_path(make, state)
    try:
        checkpoint.load(shards, checkpoint_id=folder / state["shards"])
    except checkpoint.CheckpointException as error:
        raise ValueError(f"{state['shards']}: {reason(error)}") from error
    return whole


def remove_shards(folder: Path, all_but: str) -> None:
    """Remove what `save_shards` wrote before."""
    for old in folder.glob("shards-*"):
        if old.name != all_but:
            shutil.rmtree(old, ignore_errors=True)


class Checkpoints:
    """The checkpoints of one run, written by a separate thread while training continues.

    Args:
        write: writes a state, see `save`.
        minutes: the least time between two writes, 0 for one after each epoch; `close` writes the last state.
    """

    def __init__(self, write: Callable[[dict[str, Any]], None], minutes: float) -> None:
        self.write, self.seconds = write, 60 * minutes
        self.thread = ThreadPoolExecutor(1, "checkpoint")
        self.last_write = time.monotonic()
        self.writing: Future[None] | None = None
        self.unwritten: dict[str, Any] | None = None

    @property
    def due(self) -> bool:
        """Whether it is time for a checkpoint within an epoch."""
        return 0 < self.seconds <= time.monotonic() - self.last_write

    @property
    def is_time(self) -> bool:
        """Whether it is time for a checkpoint after an epoch."""
        return time.monotonic() - self.last_write >= self.seconds

    def offer(self, state: dict[str, Any], at_once: bool = False) -> None:
        """Copy the state, and start to write it if it is time or has to be written at once.

        Raises a SettingError if the write before has failed.
        """
        self.unwritten = None  # its memory may be needed for the copy
        self.unwritten = tree_map_only(torch.Tensor, lambda t: t.detach().clone(), state)
        for device in {t.device for t in tree_leaves(state) if isinstance(t, torch.Tensor) and t.is_cuda}:
            torch.cuda.synchronize(device)  # deliberate: the next epoch runs on another stream than the copy
        if self.writing and self.writing.done():
            self.wait()
        if at_once or self.is_time:
            self._start(self.unwritten)

    def close(self) -> None:
        """Write the last state, if it is not written yet, and wait for it.

        Raises a SettingError if a write has failed.
        """
        with self.thread:
            try:
                self.wait()
            finally:  # after a write that failed, too
                if self.unwritten is not None:
                    self.write(self.unwritten)
                    self.unwritten = None

    def _start(self, state: dict[str, Any]) -> None:
        self.wait()  # one write at a time
        self.writing, self.unwritten = self.thread.submit(self.write, state), None
        self.last_write = time.monotonic()

    def wait(self) -> None:
        """Wait for the write that has started. Raises a SettingError if it has failed."""
        writing, self.writing = self.writing, None
        if writing:
            writing.result()
