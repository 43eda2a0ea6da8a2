"""The one exception that a user's mistake raises."""


class SettingError(ValueError):
    """A wrong setting, file or machine: one line that names the setting, what is wrong and what would be right."""
