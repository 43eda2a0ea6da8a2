"""Every method as its users get it, from its file in conf/optimizer/, for the short training of the contract checks."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from sam_bench import catalogue
from sam_bench.build import Training
from sam_bench.conf_files import CONF, optimizer_files
from sam_bench.optim import GRST, RST, Constant
from sam_bench.testing.problem import TOTAL, Sample, of_training

FILES = optimizer_files(CONF)
NAMES = sorted(FILES)


def sgd(model: nn.Module, **kwargs) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), **{"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, **kwargs})


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def lamb(model: nn.Module) -> torch.optim.Optimizer:
    from timm.optim import create_optimizer_v2

    return create_optimizer_v2(list(model.parameters()), opt="lamb", lr=0.01)


BASE: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {"adamw": adamw, "adasam": adamw, "timm": lamb}

# where the defaults are for more than 20 steps, or for more than 700 weights
SHORT: dict[str, dict[str, Any]] = {
    "asam": {"rho": 0.1},
    "fsam": {"rho": 0.05},
    "vasso": {"rho": 0.05},
    "msam": {"rho": 0.1},
    "saf": {"lag_epochs": 1, "start_epochs": 1},
    "mesa": {"start_epochs": 1, "decay": 0.9},
    "ausam": {"ramp_epochs": 2},
    "vsam": {"window": 6, "sam_epochs": 1},
    "late_sam": {"schedule": {"_target_": "sam_bench.schedules.Piecewise", "a": 0, "b": 0.6}},
}


def build(
    name: str,
    model: nn.Module,
    base: torch.optim.Optimizer | None = None,
    shape: tuple[int, ...] = (1, 8, 8),
    **settings: Any,
) -> Any:
    """The method around any base; `settings` override the defaults. `rst over NAME` puts it under the coin."""
    if " over " in name:
        outer, inner = name.split(" over ")
        return {"rst": rst, "grst": grst}[outer](build(inner, model, base, shape, **settings))
    training = of_training(model)
    training["sample"] = Sample(training["sample"].like, shape)
    base = base or BASE.get(name, sgd)(model)
    return catalogue.build(name, base, Training(**training), **(SHORT.get(name, {}) | settings))


def rst(inner: Any, p: float = 0.5) -> RST:
    return RST(inner, Constant(p), TOTAL, seed=3)


def grst(inner: Any, p: float = 0.5, gamma: float | None = 2.0, **kwargs) -> GRST:
    return GRST(inner, Constant(p), TOTAL, seed=3, gamma=gamma, **kwargs)
