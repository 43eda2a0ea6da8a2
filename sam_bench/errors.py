"""The one exception that a user's mistake raises."""

from collections.abc import Iterable
from difflib import get_close_matches


class SettingError(ValueError):
    """A wrong setting, file or machine: one line that names the setting, what is wrong and what would be right."""

    def __init__(self, line: str) -> None:
        super().__init__(line.replace("\n", " ").replace("\r", " "))  # names of files may have line breaks


class FailedRuns(Exception):  # noqa: N818
    """Runs of a sweep failed, and the others are done. The text has a line for each, or nothing if it was printed."""


def reason(error: BaseException) -> str:
    """The first line of another library's error, or its type if it has no text."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`, did you mean X?` for the nearest of the known names, or nothing."""
    near = get_close_matches(name, list(known), 1)
    return f", did you mean {near[0]}?" if near else ""
