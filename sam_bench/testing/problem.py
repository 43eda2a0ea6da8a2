"""A small training: a convolutional net with BatchNorm, its data, and closures that can be watched."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sam_bench.optim.closure import BatchClosure, Selection, Term

TOTAL = 20  # steps of a training
BATCHES, BATCH = 7, 16  # batches per epoch, examples per batch
SHAPE, CLASSES = (1, 8, 8), 5  # of an image; every net of the checks takes such images


class WatchedClosure(BatchClosure):
    """A `BatchClosure` that calls `before` ahead of each pass and can do without zero_grad."""

    before: Callable[[], None]
    zeroes: bool

    def __call__(self, selection: Selection | None = None, term: Term | None = None) -> Tensor:
        """zero_grad, forward, backward."""
        self.before()
        if self.zeroes:
            return super().__call__(selection, term)
        optimizer, self.optimizer = self.optimizer, torch.optim.SGD([torch.zeros(1)])  # whose zero_grad does nothing
        try:
            return super().__call__(selection, term)
        finally:
            self.optimizer = optimizer

    def evaluate(self, selection: Selection | None = None, model: nn.Module | None = None) -> Tensor:
        """A forward pass."""
        self.before()
        return super().evaluate(selection, model)


def make_closure(
    optimizer: Any,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    examples: Tensor | None = None,
    *,
    before: Callable[[], None] = lambda: None,
    bf16: bool = False,
    zeroes: bool = True,
) -> Any:
    """zero_grad, forward, backward: a plain function unless the optimizer looks at single samples.

    Args:
        optimizer: the closure calls its `zero_grad`.
        model: what to evaluate.
        images: (B, ...).
        labels: (B,).
        examples: (B,), indices in the training set.
        before: called ahead of each pass.
        bf16: evaluate under bf16 autocast.
        zeroes: call zero_grad.
    """
    if getattr(optimizer, "samplewise", False):
        watched = WatchedClosure(model, optimizer, bf16=bf16)
        watched.before, watched.zeroes = before, zeroes
        watched.batch(images, labels, torch.arange(len(labels), device=labels.device) if examples is None else examples)
        return watched

    def closure() -> Tensor:
        before()
        if zeroes:
            optimizer.zero_grad()
        if bf16:
            with torch.autocast(images.device.type, dtype=torch.bfloat16):
                loss = cross_entropy(model(images), labels)
        else:
            loss = cross_entropy(model(images), labels)
        loss.backward()
        return loss

    return closure


@dataclass
class Problem:
    """A net and `BATCHES` batches of real gradients. Equal seeds give equal problems.

    Attributes:
        model: takes images (B, *SHAPE), gives logits (B, CLASSES).
        images: (batches, B, *SHAPE).
        labels: (batches, B).
        examples: (batches, B), indices in the training set.
    """

    model: nn.Module
    images: Tensor
    labels: Tensor
    examples: Tensor

    def closure(self, optimizer: Any, step: int = 0, **options: Any) -> Any:
        """The closure of a step, see `make_closure`."""
        at = step % len(self.images)
        return make_closure(optimizer, self.model, self.images[at], self.labels[at], self.examples[at], **options)

    def run(self, optimizer: Any, steps: int, first: int = 0) -> list[float]:
        """Make steps; return their losses."""
        return [optimizer.step(self.closure(optimizer, t)).item() for t in range(first, first + steps)]

    def one_batch(self) -> "Problem":
        """The same with the first batch alone, which a working optimizer learns by heart."""
        return Problem(self.model, self.images[:1], self.labels[:1], self.examples[:1])

    def loss(self) -> float:
        """Loss of the first batch at the current weights; leaves the model unchanged."""
        with torch.no_grad():
            return cross_entropy(copy.deepcopy(self.model)(self.images[0]), self.labels[0]).item()

    def copy(self) -> "Problem":
        """A deep copy."""
        return copy.deepcopy(self)

    def with_model(self, model: nn.Module) -> "Problem":
        """The same data with another net."""
        return Problem(model.to(self.images.device), self.images, self.labels, self.examples)


def problem(device: torch.device | str = "cpu", seed: int = 0, dtype: torch.dtype = torch.float32) -> Problem:
    """A problem, drawn from a seed."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False),  # pooling has no deterministic gradient on a GPU
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(96, CLASSES),
    )
    images = torch.randn(BATCHES, BATCH, *SHAPE, device=device, dtype=dtype)
    labels = torch.randint(CLASSES, (BATCHES, BATCH), device=device)
    examples = torch.arange(BATCHES * BATCH, device=device).reshape(BATCHES, BATCH)
    return Problem(model.to(device, dtype), images, labels, examples)


@dataclass
class Sample:
    """Training images on request, as SSAM-F wants them; a class, so that it can be pickled."""

    like: Tensor
    shape: tuple[int, ...] = SHAPE

    def __call__(self, n: int, seed: int) -> tuple[Tensor, Tensor]:
        """Draw images (n, *shape) and classes (n,)."""
        draw = torch.Generator().manual_seed(seed)
        images = torch.randn(n, *self.shape, generator=draw, dtype=torch.float32)
        labels = torch.randint(CLASSES, (n,), generator=draw)
        return images.to(self.like), labels.to(self.like.device)


def of_training(model: nn.Module) -> dict[str, Any]:
    """What a method may ask to know about this training, by the names of its constructor's parameters."""
    like = next(model.parameters()).detach()[:0]
    return {
        "model": model,
        "total_steps": 3 * BATCHES,
        "steps_per_epoch": BATCHES,
        "seed": 3,
        "train_size": BATCHES * BATCH,
        "batch_size": None,
        "sample": Sample(like),
    }


def weights(problem: Problem) -> list[Tensor]:
    """Copies of parameters and BatchNorm statistics."""
    return [t.detach().clone() for t in problem.model.state_dict().values()]


def same(one: Iterable[Tensor], other: Iterable[Tensor]) -> bool:
    """Whether two lists of tensors are equal bit for bit."""
    one, other = list(one), list(other)
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
