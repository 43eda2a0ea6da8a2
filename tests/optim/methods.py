"""How the battery builds each registered method; METHODS decides which there are."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sam_bench.methods import METHODS
from sam_bench.optim import GRST, RST, SAM, Descent
from sam_bench.schedules import Constant

TOTAL = 20


def sgd(model: nn.Module, **kwargs) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), **{"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, **kwargs})


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def lamb(model: nn.Module) -> torch.optim.Optimizer:
    from timm.optim import create_optimizer_v2

    return create_optimizer_v2(list(model.parameters()), opt="lamb", lr=0.01)


def rst(inner: Descent, p: float = 0.5) -> RST:
    return RST(inner, Constant(p), TOTAL, seed=3)


def grst(inner: Descent, p: float = 0.5, gamma: float = 2.0, **kwargs) -> GRST:
    return GRST(inner, Constant(p), TOTAL, seed=3, gamma=gamma, **kwargs)


# a registered name -> the method as its users get it, around any base
BUILD: dict[str, Callable[[nn.Module, torch.optim.Optimizer], Descent]] = {
    "sgd": lambda model, base: Descent(base, model),
    "adamw": lambda model, base: Descent(base, model),
    "timm": lambda model, base: Descent(base, model),
    "sam": lambda model, base: SAM(base, rho=0.05, model=model),
    "rst": lambda model, base: rst(SAM(base, rho=0.05, model=model)),
    "grst": lambda model, base: grst(SAM(base, rho=0.05, model=model)),
}
BASE: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {"adamw": adamw, "timm": lamb}
NAMES = sorted(METHODS)


def build(name: str, model: nn.Module) -> Descent:
    return BUILD[name](model, BASE.get(name, sgd)(model))


@dataclass
class Problem:
    """A small convolutional net with BatchNorm and real gradients, and its data; equal for equal seeds."""

    model: nn.Module
    images: Tensor
    labels: Tensor

    def closure(self, optimizer: torch.optim.Optimizer, step: int = 0) -> Callable[[], Tensor]:
        images, labels = self.images[step % len(self.images)], self.labels[step % len(self.labels)]

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(self.model(images), labels)
            loss.backward()
            return loss

        return closure

    def run(self, optimizer: Descent, steps: int, first: int = 0) -> list[float]:
        return [optimizer.step(self.closure(optimizer, t)).item() for t in range(first, first + steps)]

    def one_batch(self) -> Problem:
        """The same with the first batch alone, which a working optimizer learns by heart."""
        return Problem(self.model, self.images[:1], self.labels[:1])

    def copy(self) -> Problem:
        return copy.deepcopy(self)


def problem(device: torch.device, seed: int = 0, dtype: torch.dtype = torch.float32) -> Problem:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False),  # pooling has no deterministic gradient on a GPU
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(96, 5),
    )
    images = torch.randn(7, 16, 1, 8, 8, device=device, dtype=dtype)
    return Problem(model.to(device, dtype), images, torch.randint(5, (7, 16), device=device))


def weights(problem: Problem) -> list[Tensor]:
    """Parameters and BatchNorm statistics."""
    return [t.detach().clone() for t in problem.model.state_dict().values()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
