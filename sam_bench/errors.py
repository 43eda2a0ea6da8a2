"""The one exception that a user's mistake raises, and what it quotes of others."""


class SettingError(ValueError):
    """A wrong setting, file or machine: one line that names the setting, what is wrong and what would be right."""


def reason(error: Exception) -> str:
    """The first line of what another library raised, or the name of its kind where it says nothing."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
