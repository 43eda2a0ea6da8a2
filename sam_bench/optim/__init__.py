"""The optimizers. Each wraps a ready base optimizer, is a `torch.optim.Optimizer`, and steps with a closure.

optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05, model=model)
loss = optimizer.step(closure)       # closure: zero_grad, forward, backward, return the loss
"""

import difflib
from typing import Any

import torch
from torch import nn

from sam_bench.errors import SettingError, reason
from sam_bench.methods import METHODS
from sam_bench.optim.descent import Closure, Descent
from sam_bench.optim.grst import GRST
from sam_bench.optim.rst import RST
from sam_bench.optim.sam import SAM
from sam_bench.schedules import SCHEDULES
from sam_bench.settings import BaseSettings, OptimizerSettings, ScheduleSettings

CLASSES: dict[str, type[Descent]] = {cls.__name__: cls for cls in (Descent, SAM, RST, GRST)}
NO_EXACT_RESUME = ("kron", "kronw")  # they draw from a generator that their state_dict leaves out

__all__ = ["GRST", "RST", "SAM", "Closure", "Descent", "create", "create_base"]


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
    settings: OptimizerSettings,
    schedule: ScheduleSettings | None,
    model: nn.Module,
    groups: list[dict[str, Any]],
    epochs: int,
    steps_per_epoch: int,
    seed: int,
) -> Descent:
    """The optimizer that the settings describe, over the parameter groups of `model`."""
    base = create_base(settings.base, groups)
    method = METHODS[settings.name]
    cls: Any = CLASSES[method.cls]
    if method.kind == "plain":
        return cls(base, model=model)
    if method.kind == "inner":
        return cls(base, model=model, **settings.arguments())
    assert settings.inner is not None
    assert schedule is not None
    inner_cls: Any = CLASSES[METHODS[settings.inner.name].cls]
    inner = inner_cls(base, model=model, **settings.inner.arguments())
    arguments = settings.arguments()
    warmup_steps = arguments.pop("warmup_epochs") * steps_per_epoch
    p = SCHEDULES[schedule.name](**schedule.arguments())
    return cls(inner, p, epochs * steps_per_epoch, seed, warmup_steps, **arguments)
