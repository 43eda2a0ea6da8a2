"""How the battery builds each registered method: as the registry and its file in conf/ say, on a short training."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from sam_bench.__main__ import CONF
from sam_bench.closure import Closure
from sam_bench.methods import METHODS
from sam_bench.optim import GRST, RST, Descent, Training
from sam_bench.schedules import Constant, Piecewise

TOTAL = 20
BATCHES, BATCH = 7, 16
NAMES = sorted(METHODS)
# the coin over every method that it can have, so that steps of both kinds come in turn
UNDER_RST = [f"rst over {name}" for name, method in METHODS.items() if method.kind == "inner"]


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
}


@dataclass
class Sample:
    """Training images for who asks; a class, so that it can be pickled."""

    shape: tuple[int, ...]
    like: Tensor

    def __call__(self, n: int, seed: int) -> tuple[Tensor, Tensor]:
        draw = torch.Generator().manual_seed(seed)
        images, labels = torch.randn(n, *self.shape, generator=draw), torch.randint(5, (n,), generator=draw)
        return images.to(self.like), labels.to(self.like.device)


def training(model: nn.Module, shape: tuple[int, ...] = (1, 8, 8), seed: int = 3) -> Training:
    like = torch.empty_like(next(model.parameters())).detach()[:0]
    return Training(model, 3, BATCHES, seed, BATCHES * BATCH, None, Sample(shape, like))


def build(
    name: str,
    model: nn.Module,
    base: torch.optim.Optimizer | None = None,
    shape: tuple[int, ...] = (1, 8, 8),
    **settings: Any,
) -> Any:
    """The method as its users get it, around any base; `settings` in the place of the defaults."""
    if " over " in name:
        outer, inner = name.split(" over ")
        return {"rst": rst, "grst": grst}[outer](build(inner, model, base, shape, **settings))
    base = base or BASE.get(name, sgd)(model)
    file: Any = OmegaConf.to_container(OmegaConf.load(CONF / "optimizer" / f"{name}.yaml"))
    own = {key: value for key, value in file.items() if key in METHODS[name].settings}
    own |= SHORT.get(name, {}) | settings
    if METHODS[name].kind == "plain":
        return Descent(base, model)
    if METHODS[name].kind != "scheduled":
        return training(model, shape).build(name, own, base)
    schedule = Piecewise(0, 0.6) if name == "late_sam" else Constant(0.5)
    return training(model, shape).build(name, own, build("sam", model, base), schedule)


def rst(inner: Any, p: float = 0.5) -> RST:
    return RST(inner, Constant(p), TOTAL, seed=3)


def grst(inner: Any, p: float = 0.5, gamma: float | None = 2.0, **kwargs) -> GRST:
    return GRST(inner, Constant(p), TOTAL, seed=3, gamma=gamma, **kwargs)


def closure_of(
    optimizer: Any,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    examples: Tensor | None = None,
    before: Callable[[], None] = lambda: None,
    bf16: bool = False,
) -> Any:
    """A plain function for who is content with one; `before` is called before each pass."""
    if not optimizer.samplewise:

        def closure() -> Tensor:
            before()
            optimizer.zero_grad()
            if bf16:
                with torch.autocast(images.device.type, dtype=torch.bfloat16):
                    loss = nn.functional.cross_entropy(model(images), labels)
            else:
                loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            return loss

        return closure

    class Watched(Closure):
        def __call__(self, *args, **kwargs):
            before()
            return super().__call__(*args, **kwargs)

        def evaluate(self, *args, **kwargs):
            before()
            return super().evaluate(*args, **kwargs)

    watched = Watched(model, optimizer, bf16=bf16)
    watched.batch(images, labels, torch.arange(len(labels), device=labels.device) if examples is None else examples)
    return watched


@dataclass
class Problem:
    """A small convolutional net with BatchNorm and real gradients, and its data; equal for equal seeds."""

    model: nn.Module
    images: Tensor
    labels: Tensor
    examples: Tensor

    def closure(self, optimizer: Any, step: int = 0, **kwargs) -> Any:
        at = step % len(self.images)
        return closure_of(optimizer, self.model, self.images[at], self.labels[at], self.examples[at], **kwargs)

    def run(self, optimizer: Descent, steps: int, first: int = 0) -> list[float]:
        return [optimizer.step(self.closure(optimizer, t)).item() for t in range(first, first + steps)]

    def one_batch(self) -> Problem:
        """The same with the first batch alone, which a working optimizer learns by heart."""
        return Problem(self.model, self.images[:1], self.labels[:1], self.examples[:1])

    def loss(self) -> float:
        """Of the first batch, at the present weights, in evaluation mode of nothing."""
        with torch.no_grad():
            return nn.functional.cross_entropy(copy.deepcopy(self.model)(self.images[0]), self.labels[0]).item()

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
    images = torch.randn(BATCHES, BATCH, 1, 8, 8, device=device, dtype=dtype)
    labels = torch.randint(5, (BATCHES, BATCH), device=device)
    examples = torch.arange(BATCHES * BATCH, device=device).reshape(BATCHES, BATCH)
    return Problem(model.to(device, dtype), images, labels, examples)


def weights(problem: Problem) -> list[Tensor]:
    """Parameters and BatchNorm statistics."""
    return [t.detach().clone() for t in problem.model.state_dict().values()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
