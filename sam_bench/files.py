"""Atomic file writes."""

import os
from contextlib import suppress
from pathlib import Path

from sam_bench.errors import SettingError


def replace(path: Path, *content: bytes | memoryview | str) -> None:
    """Write `content` to `path` atomically: readers, also after a kill, see the old file or the new one, never a part.

    Raises a SettingError if there is no space or no permission.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            for part in content:
                file.write(part.encode() if isinstance(part, str) else part)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.replace(partial, path)
        except FileNotFoundError:
            # a network file system repeats a rename whose reply was lost, and then does not find what it has renamed
            if partial.exists() or not path.exists():
                raise
    except OSError as error:
        with suppress(OSError):  # of a file system that is read-only now
            partial.unlink(missing_ok=True)
        raise SettingError(f"{path}: cannot be written ({error.strerror}); its previous content is kept") from error
