"""The one exception that a user's mistake raises."""


class SettingError(ValueError):
    """A wrong setting, file or machine: one line that names the setting, what is wrong and what would be right."""


def reason(error: BaseException) -> str:
    """The first line of another library's error, or its type if it has no text."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
