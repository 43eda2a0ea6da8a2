"""The optimizers. Each wraps a ready base optimizer, is a `torch.optim.Optimizer`, and steps with a closure.

optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05, model=model)
loss = optimizer.step(closure)       # closure: zero_grad, forward, backward, return the loss

Each lies in a file of its own and is imported where it is asked for: `from sam_bench.optim import ASAM`.
"""

import difflib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from sam_bench.errors import SettingError, reason
from sam_bench.methods import METHODS
from sam_bench.optim.descent import Closure, Descent, SampleClosure
from sam_bench.schedules import SCHEDULES
from sam_bench.settings import BaseSettings, OptimizerSettings, ScheduleSettings

FILES = {cls: file for file, cls in (method.cls.split(".") for method in METHODS.values())}
NO_EXACT_RESUME = ("kron", "kronw")  # they draw from a generator that their state_dict leaves out

__all__ = [*FILES, "Closure", "SampleClosure", "Training", "create", "create_base"]


def __getattr__(name: str) -> type[Descent]:
    if name not in FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; the methods are {', '.join(FILES)}")
    return getattr(import_module(f"{__name__}.{FILES[name]}"), name)


@dataclass(frozen=True)
class Training:
    """What a method may ask to know of the training that it is part of: it takes arguments of these names.

    Attributes:
        model: what is trained.
        epochs: how often the training set is seen.
        steps_per_epoch: steps in each.
        seed: of all that it draws.
        train_size: examples of the training set; None: nobody says which of them a batch has.
        batch_size: images of a step.
        sample: n and a seed -> so many training images (n, C, H, W) and classes (n,), on the device.

    """

    model: nn.Module
    epochs: int
    steps_per_epoch: int
    seed: int = 0
    train_size: int | None = None
    batch_size: int | None = None
    sample: Callable[[int, int], tuple[Tensor, Tensor]] | None = None

    @property
    def total_steps(self) -> int:
        """T."""
        return self.epochs * self.steps_per_epoch

    def build(self, name: str, settings: dict[str, Any], *args: Any, group: str = "optimizer") -> Any:
        """The method that the registry has under `name`, with what it asks for; epochs become steps.

        Errors name it by its `group`.

        Raises:
            SettingError: it refuses a setting, or asks for what is not known.

        """
        cls: Any = __getattr__(METHODS[name].cls.split(".")[1])
        asked = arguments_of(cls)
        given = {key: getattr(self, key) for key in ("total_steps", *(f.name for f in fields(self))) if key in asked}
        for key, value in settings.items():
            if key not in asked and key.endswith("_epochs"):
                key, value = key.removesuffix("_epochs") + "_steps", value * self.steps_per_epoch
            given[key] = value
        if "train_size" in given and given["train_size"] is None:
            raise SettingError(
                f"{group}={name}: keeps something of each training image, and this data set does not say which ones "
                "a batch has; choose dataset=digits, cifar10 or cifar100"
            )
        try:
            return cls(*args, **given)
        except ValueError as error:
            raise SettingError(f"{group}={name}: {reason(error)}") from error


def arguments_of(cls: type) -> set[str]:
    """The names of what its constructor takes, and where that hands `**further` on, of what the next one does."""
    names: set[str] = set()
    for each in cls.__mro__:
        parameters = inspect.signature(each.__init__).parameters  # type: ignore[misc]
        names |= parameters.keys()
        if all(parameter.kind != parameter.VAR_KEYWORD for parameter in parameters.values()):
            break
    return names


def create_base(settings: BaseSettings, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The base optimizer over `groups`, from torch, or under the name `timm` from timm's factory.

    Raises:
        SettingError: timm has no such optimizer, or the optimizer refuses its arguments.

    """
    arguments = settings.arguments()
    factory: Any = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}.get(settings.name)
    if factory is None:
        from timm.optim import create_optimizer_v2, list_optimizers

        names = [name for name in list_optimizers() if name not in NO_EXACT_RESUME]
        if arguments["opt"] not in names:
            near = difflib.get_close_matches(str(arguments["opt"]), names, n=5) or ["none"]
            raise SettingError(
                f"optimizer.base.opt={arguments['opt']}: near names are {', '.join(near)}; "
                f"all but {', '.join(NO_EXACT_RESUME)} of timm.optim.list_optimizers() are choices"
            )
        factory = create_optimizer_v2
    try:
        return factory(groups, **arguments)
    except Exception as error:  # whatever an optimizer of others raises, the settings are the reason
        raise SettingError(f"optimizer.base={settings.name}: {reason(error)}") from error


def create(
    settings: OptimizerSettings, schedule: ScheduleSettings | None, groups: list[dict[str, Any]], training: Training
) -> Descent:
    """The optimizer that the settings describe, over the parameter groups of the model.

    Raises:
        SettingError: base or method refuse a setting.

    """
    base = create_base(settings.base, groups)
    if METHODS[settings.name].kind != "scheduled":
        return training.build(settings.name, settings.arguments(), base)
    assert settings.inner is not None
    assert schedule is not None
    inner = training.build(settings.inner.name, settings.inner.arguments(), base, group="optimizer/inner")
    return training.build(settings.name, settings.arguments(), inner, SCHEDULES[schedule.name](**schedule.arguments()))
