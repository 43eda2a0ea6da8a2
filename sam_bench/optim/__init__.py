"""The optimizers. Each wraps a ready base optimizer, is a `torch.optim.Optimizer`, and steps with a closure.

optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05, model=model)
loss = optimizer.step(closure)       # closure: zero_grad, forward, backward, return the loss
"""

from typing import Any

import torch
from torch import nn

from sam_bench import optim
from sam_bench.errors import SettingError
from sam_bench.methods import METHODS
from sam_bench.optim.descent import Closure, Descent
from sam_bench.optim.grst import GRST
from sam_bench.optim.rst import RST
from sam_bench.optim.sam import SAM
from sam_bench.schedules import SCHEDULES
from sam_bench.settings import BaseSettings, OptimizerSettings, ScheduleSettings

__all__ = ["GRST", "RST", "SAM", "Closure", "Descent", "create", "create_base"]


def create_base(settings: BaseSettings, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The base optimizer over `groups`, from torch, or under the name `timm` from timm's factory."""
    try:
        if settings.name == "sgd":
            return torch.optim.SGD(groups, **settings.arguments())
        if settings.name == "adamw":
            return torch.optim.AdamW(groups, **settings.arguments())
        from timm.optim import create_optimizer_v2, list_optimizers

        arguments = settings.arguments()
        if arguments["opt"] not in list_optimizers():
            raise SettingError(f"optimizer.base.opt={arguments['opt']}: timm has {', '.join(list_optimizers())}")
        return create_optimizer_v2(groups, **arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, SettingError):
            raise
        raise SettingError(f"optimizer.base={settings.name}: {error}") from error


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
    cls = getattr(optim, method.cls)
    if method.kind == "plain":
        return cls(base, model=model)
    if method.kind == "inner":
        return cls(base, model=model, **settings.arguments())
    assert settings.inner is not None
    assert schedule is not None
    inner = getattr(optim, METHODS[settings.inner.name].cls)(base, model=model, **settings.inner.arguments())
    arguments = settings.arguments()
    warmup_steps = arguments.pop("warmup_epochs") * steps_per_epoch
    p = SCHEDULES[schedule.name](**schedule.arguments())
    return cls(inner, p, epochs * steps_per_epoch, seed, warmup_steps, **arguments)
