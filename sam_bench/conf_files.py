"""The files in conf/: where they are, and what is in them. Imports no torch."""

from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

HERE = Path(__file__).resolve().parent
CONF: Path = HERE / "conf" if (HERE / "conf").is_dir() else HERE.parent / "conf"  # in a wheel, in a checkout


@cache  # the catalogue and the tests ask for every method
def optimizer_files(conf: Path) -> dict[str, dict[str, Any]]:
    """The settings in conf/optimizer/, by the names of the files."""
    paths = sorted((conf / "optimizer").glob("*.yaml"))
    return {path.stem: OmegaConf.to_container(OmegaConf.load(path)) for path in paths}  # type: ignore[misc]


def own_settings(settings: dict[str, Any], files: dict[str, dict[str, Any]] | None = None) -> dict[str, Any]:
    """What a file in conf/optimizer/ and those it inherits say about the method: not what it wraps, nor its name."""
    own: dict[str, Any] = {}
    for inherited in settings.get("defaults", []):
        if isinstance(inherited, str) and inherited != "_self_" and files:
            own |= own_settings(files.get(inherited.rpartition("/")[2], {}), files)
    return own | {key: value for key, value in settings.items() if key not in ("defaults", "name", "base")}


def group_files(group: str, folders: list[Path]) -> dict[str | None, dict[str, Any]]:
    """The settings in each file of a group, with inherited ones. `optimizer.inner` has the files of `optimizer`."""
    folder = "optimizer" if group == "optimizer.inner" else group.replace(".", "/")
    paths = {path.stem: path for conf in reversed(folders) for path in sorted((conf / folder).glob("*.yaml"))}
    files: dict[str, Any] = {name: OmegaConf.to_container(OmegaConf.load(path)) for name, path in paths.items()}
    return {name: own_settings(file, files) for name, file in files.items()}


def wraps_a_method(settings: dict[str, Any]) -> bool:
    """Whether a file in conf/optimizer/ describes a method that wraps another one."""
    return any("inner" in each for each in settings.get("defaults", []) if isinstance(each, dict))


def choices_in(group: str) -> str:
    """The files of a group, such as `optimizer/base`, as a list in an error."""
    return ", ".join(sorted(path.stem for path in (CONF / group).glob("*.yaml")))


def wrapping_methods() -> str:
    """The methods that wrap another one, as a list in an error."""
    return ", ".join(name for name, file in optimizer_files(CONF).items() if wraps_a_method(file))
