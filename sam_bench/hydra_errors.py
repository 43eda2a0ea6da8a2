"""What Hydra and OmegaConf refuse, in one line with near names. Imports no torch."""

import re
from typing import Any

from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sam_bench.conf_files import CONF, group_files, wrapping_methods
from sam_bench.errors import did_you_mean, reason
from sam_bench.settings import for_dataset, leaves

NAME = re.compile(r"(?!null$|true$|false$|nan$|inf$)[A-Za-z_]\w*", re.IGNORECASE)  # of a file, not a value of YAML


def one_line(error: BaseException, arguments: list[str]) -> str:
    """The error that a command line with these arguments caused."""
    cause = error.__cause__
    text = " ".join(str(error).split())
    if text.startswith("Config group override"):
        given = [each.lstrip("+~").partition("=") for each in arguments if not each.startswith("-")]
        groups = [each for each in given if (CONF / each[0]).is_dir() or each[0] == "optimizer/inner"]
        if wrong := [(name, value) for name, _, value in groups if name and not NAME.fullmatch(value)]:
            name, value = wrong[0]
            return f"{name}={value}: should be a file of conf/{name}/ (--help lists them)"
    if text.startswith("Cannot find primary config"):
        return text.partition(" Check that")[0]
    if found := re.match(r"Ambiguous value for argument '(.+?)'", text):
        return f"{found[1]}: several values need -m, which trains each of them"
    if found := re.match(r"Multiple values for (\S+)\.|(\S+) appears more than once", text):
        return f"{found[1] or found[2]}: is already chosen; give one choice, without a +"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, name = error.missing_cfg_file.rpartition("/")
        return f"{group}={name}: no such choice{did_you_mean(name, error.options)}; choose {', '.join(error.options)}"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: is not NAME=VALUE ({reason(error)})"
    if found := re.match(r"Could not override '(.+?)'\. No match in the defaults list", text):
        if found[1] == "optimizer/inner":
            return f"optimizer/inner: this optimizer wraps no other method; {wrapping_methods()} do"
        return f"{found[1]}: is not a group of this configuration; --help lists the groups"
    if (found := re.match(r"Error merging override (\S+?)=", text)) and cause:
        return f"{found[1]}: {reason(cause)}"
    if (found := re.match(r"Could not override '(.+?)'", text)) and isinstance(cause, OmegaConfBaseException):
        return _no_such_setting(found[1], cause)
    if found := re.match(r"Could not append to config. An item is already at '(.+?)'", text):
        return f"{found[1]}: is already a setting; drop the +"
    if isinstance(cause, OmegaConfBaseException):
        text = f"{text}: {reason(cause)}"
    return text or type(error).__name__


def _no_such_setting(name: str, error: OmegaConfBaseException) -> str:
    node, group, setting = error.parent_node, *name.rpartition(".")[::2]
    if not isinstance(node, DictConfig):
        return f"{name}: no such setting"
    root: Any = OmegaConf.to_container(node._get_root(), resolve=False)
    root.pop("hydra", None)
    for method in (root.get("optimizer"), (root.get("optimizer") or {}).get("inner")):
        if isinstance(method, dict):
            method |= for_dataset(method, "cifar10")
    every = [each for each, _ in leaves(root) if not each.endswith("_target_")]
    known = [each.removeprefix(f"{group}.") for each in every if each.startswith(f"{group}.")]
    elsewhere = [each for each in every if each.endswith(f".{setting}")]
    hint = f", did you mean {elsewhere[0]}?" if elsewhere else did_you_mean(setting, known or root)
    listed = f"; {group} has {', '.join(known)}" if known else ""
    if any(setting in file for file in group_files(group, [CONF]).values()):
        listed += f"; in a sweep, ++{name}=VALUES applies to the methods that have it"
    return f"{name}: no such setting{hint}{listed}"
