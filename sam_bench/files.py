"""Files that are either the old ones or the new ones, never a part of one."""

import os
from pathlib import Path


def replace(path: Path, content: bytes | str) -> None:
    """Write `content` to `path` atomically: whoever reads, or is killed, sees the old file or the new one.

    Raises:
        OSError: no space, no permission; the old file stands.

    """
    partial = path.with_name(f"{path.name}.partial")
    data = content.encode() if isinstance(content, str) else content
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
