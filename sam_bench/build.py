"""From settings to objects: calls what `_target_` names, and turns what it refuses into one line about the setting."""

import importlib
import inspect
import json
import re
import typing
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import torch
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from torch import Tensor, nn

from sam_bench.data import Data
from sam_bench.data.resident import Augmentation, Resident, ResidentData, check_arrays, reside
from sam_bench.errors import SettingError, reason
from sam_bench.optim import ArgumentError, Descent
from sam_bench.settings import DatasetSettings, OptimizerSettings, Target, shown, what_is_wrong


def call(where: str, settings: Target, *args: Any, **offered: Any) -> Any:
    """Call `_target_` with the settings, and with those of `offered` that it has parameters for.

    A setting `x_epochs` for a parameter `x_steps` is converted with the `steps_per_epoch` offered. Nested settings with
    a `_target_` are built first. Raises a SettingError that names the setting, with `where` for its group, if there is
    no such target or it refuses a setting.
    """
    target = locate(where, settings.target)
    takes, takes_any = parameters_of(target)
    with suppress(ValueError):  # some built-in ones have no signature
        for given in list(inspect.signature(target).parameters)[: len(args)]:
            takes.pop(given, None)
    arguments = {key: value for key, value in offered.items() if key in takes}
    setting_of: dict[str, str] = {}
    for setting, value in settings.arguments.items():
        steps = setting.removesuffix("_epochs") + "_steps"
        in_epochs = setting not in takes and setting.endswith("_epochs") and steps in takes
        name = steps if in_epochs else setting
        if name in offered or (name not in takes and not takes_any):
            raise SettingError(f"{where}.{setting}: {no_such_setting(settings, setting, takes, offered)}")
        if isinstance(value, dict) and "_target_" in value:
            value = Target.model_validate({"name": setting, **value})
        if isinstance(value, Target):
            arguments[name] = call(value._group or f"{where}.{setting}", value, **offered)
            continue
        check_type(f"{where}.{setting}", value, takes.get(name))
        arguments[name] = value * offered["steps_per_epoch"] if in_epochs else value
        setting_of[name] = setting
    group = f"{where.replace('.', '/')}={settings.name}"
    try:
        return target(*args, **arguments)
    except SettingError:
        raise
    except ArgumentError as error:
        if error.name in setting_of:
            wrong = setting_of[error.name]
            value = settings.arguments[wrong]
            raise SettingError(f"{where}.{wrong}={shown(value)}: should be {error.allowed}") from error
        if error.name == "sync_perturbation":
            raise SettingError(f"trainer.{error.name}={shown(error.value)}: should be {error.allowed}") from error
        if isinstance(nested := getattr(settings, error.name, None), Target):
            group = f"{where}/{error.name}={nested.name}"
        raise SettingError(f"{group}: {error}") from error
    except Exception as error:  # whatever the code of others raises, the settings are the cause
        without_function = re.sub(r"^[\w.]+\(\) ", "", reason(error))  # of a missing argument
        raise SettingError(f"{group}: {without_function}") from error


def locate(where: str, target: str) -> Callable[..., Any]:
    """The class or function of a dotted name. Raises a SettingError if there is none."""
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # a module of others may raise anything when it is imported
        raise SettingError(f"{where}._target_={target}: cannot be imported ({reason(error)})") from error


def parameters_of(target: Callable[..., Any]) -> tuple[dict[str, Any], bool]:
    """The annotations of a target's parameters by name, None if unknown, and whether it takes other arguments too.

    If a constructor passes `**further` on, the parameters of the next class are included.
    """
    found: dict[str, Any] = {}
    calls = [each.__init__ for each in target.__mro__] if isinstance(target, type) else [target]  # type: ignore[misc]
    for each in calls:
        parameters = inspect.signature(each).parameters.values()
        try:
            hints = typing.get_type_hints(each)
        except Exception:  # names that exist for a type checker alone
            hints = {}
        named = [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and p.name != "self"]
        found = {name: hints.get(name) for name in named} | found
        if all(p.kind != p.VAR_KEYWORD for p in parameters):
            return found, False
    return found, True


def check_type(where: str, value: Any, hint: Any) -> None:
    """Raise a SettingError if the annotation does not allow the value, such as a string for a number."""
    if hint is None:
        return
    try:
        # from JSON, since a list is then right for a tuple, while a string is still wrong for a number
        TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True)).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        raise SettingError(f"{where}={shown(value)}: {what_is_wrong(error)}") from error
    except (PydanticUserError, TypeError):  # an annotation that pydantic cannot check
        return


def no_such_setting(settings: Target, setting: str, takes: Iterable[str], offered: dict[str, Any]) -> str:
    """The answer to an unknown setting: those that there are."""
    names = {name.removesuffix("_steps") + "_epochs" if name.endswith("_steps") else name for name in takes}
    known = names - set(offered) - {"base", "inner", "params", "total_epochs"}
    ordered = [name for name in settings.arguments if name in known] + sorted(known - set(settings.arguments))
    inner = getattr(settings, "inner", None)
    hint = ""
    if isinstance(inner, Target) and setting in inner.arguments:
        hint = f"; optimizer.inner.{setting} is that of {inner.name}"
    return f"{settings.name} has no such setting; it has {', '.join(ordered) or 'none of its own'}{hint}"


# ------------------------------------------------------------------------------------- optimizer, model, data set


@dataclass(frozen=True)
class Training:
    """What a method can know about the training: its constructor receives each field that it has a parameter for."""

    model: nn.Module
    total_steps: int
    steps_per_epoch: int
    seed: int = 0  # of everything the method draws
    train_size: int | None = None  # number of training examples; None if a batch does not tell which of them it has
    batch_size: int | None = None
    sample: Callable[[int, int], tuple[Tensor, Tensor]] | None = (
        None  # n, seed -> training images (n, C, H, W), classes
    )
    sync_perturbation: bool = False  # of several ranks
    pair: Any = None  # process group of two ranks that share the passes of a step

    def method(self, where: str, settings: Target, around: torch.optim.Optimizer) -> Descent:
        """A method around a base optimizer or another method.

        Raises a SettingError if there is no such method, it refuses a setting, or the training cannot give what it
        needs.
        """
        takes, _ = parameters_of(locate(where, settings.target))
        if "train_size" in takes and self.train_size is None:
            raise SettingError(
                f"{where.replace('.', '/')}={settings.name}: needs the index of each training image, and this data set "
                "does not provide it; choose dataset=digits, cifar10 or cifar100"
            )
        method = call(where, settings, around, **vars(self))
        if not isinstance(method, Descent):
            raise SettingError(f"{where}._target_={settings.target}: is not a sam_bench.optim.Descent")
        return method


def create_optimizer(settings: OptimizerSettings, groups: list[dict[str, Any]], training: Training) -> Descent:
    """The optimizer over the parameter groups of the model. Raises a SettingError if a part of it refuses a setting."""
    takes, _ = parameters_of(locate("optimizer", settings.target))
    if settings.inner and "inner" not in takes:
        raise SettingError(f"optimizer.inner: {no_such_setting(settings, 'inner', takes, vars(training))}")
    if not settings.inner and "inner" in takes:
        raise SettingError(f"optimizer={settings.name}: needs an inner method; choose optimizer/inner=sam or another")
    base = call("optimizer.base", settings.base, groups)
    if not isinstance(base, torch.optim.Optimizer):
        raise SettingError(f"optimizer.base._target_={settings.base.target}: is not a torch.optim.Optimizer")
    if settings.inner:
        base = training.method("optimizer.inner", settings.inner, base)
    return training.method("optimizer", settings, base)


def create_model(settings: Target, classes: int, channels: int, image_size: int) -> nn.Module:
    """The model for images (channels, image_size, image_size), drawn from torch's global generator."""
    model = call("model", settings, num_classes=classes, in_chans=channels, img_size=image_size)
    if not isinstance(model, nn.Module):
        raise SettingError(
            f"model._target_={settings.target}: returned a {type(model).__name__}, not a torch.nn.Module"
        )
    return model


def create_dataset(
    settings: DatasetSettings, batch_size: int, device: torch.device, seed: int, rank: int = 0, ranks: int = 1
) -> Data:
    """Open the data set: `_target_` returns `Arrays` or, if it takes a `batch_size`, a `Data`.

    Raises a SettingError if it is missing, broken or too small, or refuses a setting.
    """
    takes, _ = parameters_of(locate("dataset", settings.target))
    if "batch_size" in takes:
        if ranks > 1 and "ranks" not in takes:
            raise SettingError(f"dataset._target_={settings.target}: takes no rank and ranks; train it in one process")
        of_training = {"batch_size": batch_size, "device": device, "seed": seed, "rank": rank, "ranks": ranks}
        data = call("dataset", settings, **of_training)
        needed = {*Data.__annotations__, *(name for name in vars(Data) if not name.startswith("_"))}
        if missing := sorted(name for name in needed if not hasattr(data, name)):
            raise SettingError(
                f"dataset._target_={settings.target}: returned a {type(data).__name__} without {missing[0]}"
            )
        return data
    resident, augmentation = _resident(settings, settings.model_dump_json(), device)
    return ResidentData(resident, augmentation, batch_size, seed, rank, ranks)


@lru_cache(maxsize=1)  # the runs of a sweep mostly share their data
def _resident(settings: DatasetSettings, text: str, device: torch.device) -> tuple[Resident, Augmentation]:
    """The data set, and what is to be done to it. `text` of the settings tells 1 from true, which are equal."""
    takes, _ = parameters_of(locate("dataset", settings.target))
    augmenting = {field.name for field in fields(Augmentation)} - takes.keys()
    for name in settings.arguments:
        if name not in takes and name not in augmenting:
            raise SettingError(f"dataset.{name}: {no_such_setting(settings, name, {*takes, *augmenting}, {})}")
    own = {key: value for key, value in settings.arguments.items() if key not in augmenting}
    arrays = call("dataset", Target.model_validate({"name": settings.name, "_target_": settings.target, **own}))
    check_arrays(f"dataset={settings.name}", arrays)
    further = {key: value for key, value in settings.arguments.items() if key in augmenting}
    module = f"{Augmentation.__module__}.{Augmentation.__name__}"
    augmentation = call("dataset", Target.model_validate({"name": settings.name, "_target_": module, **further}))
    return reside(arrays, augmentation, device), augmentation
