"""The step that all methods share, and by itself the plain one: g = ∇L(θ), then the base step along g.

A method is a subclass that overrides `gradient`: it may evaluate the closure as often as it needs, at other weights
(`perturbed`) and on a part of the batch, and leaves in `.grad` the direction the base optimizer is to step along, and θ
itself in the weights.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

Closure = Callable[[], Tensor]
Part = slice | Tensor  # samples of the batch: the first n, or int64 indices (n,)
Term = Callable[[Tensor, slice], Tensor]  # logits (n, C) of a slice of the batch -> what their mean loss gains
TINY = 1e-12  # keeps ρ/‖g‖ finite at a stationary point; far below the rounding of any norm that matters


@runtime_checkable
class SampleClosure(Protocol):
    """What a method that looks at single samples asks of its closure; `sam_bench.closure.Closure` is one.

    Called with nothing it is a closure like any other.

    Attributes:
        size: B, the samples of the batch.
        examples: int64 (B,), which of the training set they are; None where nobody knows.
        losses: (n,), of the samples of the latest pass, without gradients.
        logits: (n, C), of the same.

    """

    size: int
    examples: Tensor | None
    losses: Tensor
    logits: Tensor

    def __call__(self, part: Part | None = None, term: Term | None = None) -> Tensor:
        """zero_grad, forward, backward: the mean loss of the part, with the gradients of it plus the term."""
        ...

    def evaluate(self, part: Part | None = None, model: nn.Module | None = None) -> Tensor:
        """The losses (n,) of the part at the present weights, or those of another model, by a forward pass alone."""
        ...


class Descent(Optimizer):
    """A base optimizer under this package's contract: `step(closure)`, counted cost, one `state_dict`.

    It shares `param_groups` and `state` with `base`, so schedulers, clipping and hooks see one optimizer.

    Args:
        base: any ready `torch.optim.Optimizer` that does not evaluate the closure itself.
        model: where BatchNorm layers are to be found; their statistics then move once a step.

    Raises:
        TypeError: `base` is no optimizer.
        ValueError: `base` needs the closure for itself (LBFGS, a method of this package).

    """

    schedulable = False  # whether RST can choose between its step and a plain one
    capturable = True  # whether steps of one kind run the same device operations, with no look at their results
    compilable = True  # whether one compilation of the closure serves all its passes
    samplewise = False  # whether it needs a SampleClosure
    wraps_methods = False  # whether its base is another method

    def __init__(self, base: Optimizer, model: nn.Module | None = None) -> None:
        if isinstance(base, Descent) and not self.wraps_methods:
            raise ValueError(
                f"Invalid base: {type(base).__name__} is a method itself (give it an optimizer of torch or timm)"
            )
        if not isinstance(base, Optimizer):
            raise TypeError(f"Invalid base: {type(base).__name__} (a ready optimizer, such as SGD(parameters, lr=0.1))")
        if isinstance(base, torch.optim.LBFGS):
            raise ValueError("Invalid base: LBFGS evaluates the closure itself (any first-order optimizer)")
        self.base = base
        super().__init__(base.param_groups, base.defaults)
        self.batch_norms = [m for m in model.modules() if isinstance(m, _BatchNorm)] if model is not None else []
        self.counts: dict[str, float] = {"propagations": 0.0, "forwards": 0.0, "sharpness_aware_steps": 0}
        self.t = 0  # steps made
        self._scratch: dict[str, dict[Tensor, Tensor]] = {}
        self._memory: dict[str, dict[Tensor, Tensor]] = {}

    # ------------------------------------------------------------------------------------------------ the step

    @torch.no_grad()
    def step(self, closure: Closure) -> Tensor:  # type: ignore[override]
        """One update. `closure` does zero_grad, forward and backward and returns the loss.

        Returns the loss of the first forward pass, at θ, still on its device.
        """
        self.begin()
        loss = self.update(closure)
        self.end()
        return loss

    # Only `update` has work for the device. So it can be captured once a kind and replayed, with the other two as they
    # are, see `sam_bench.capture`; numbers that change from step to step must then come to it in tensors.

    def begin(self) -> None:
        """What the host does before the step: choose its kind, put its numbers into tensors."""

    @property
    def kind(self) -> Hashable:
        """Which of its steps the one begun is: steps of one kind have the same work for the device."""
        return None

    @torch.no_grad()
    def update(self, closure: Closure) -> Tensor:
        """The work of the step that has begun; returns the loss at θ."""
        loss = self.gradient(closure)
        self.base.step()
        return loss

    def end(self) -> None:
        """What the host does when the step went well: move on."""
        self.t += 1

    @torch.no_grad()
    def descend(self, closure: Closure) -> Tensor:
        """One plain step of the base optimizer, whatever the method; RST takes it where its coin says so."""
        loss = self.propagate(closure)
        self.base.step()
        return loss

    def gradient(self, closure: Closure) -> Tensor:
        """Leave in `.grad` what the base steps along, here g = ∇L(θ); return the loss at θ."""
        return self.propagate(closure)

    def propagate(self, closure: Closure, part: Part | None = None, term: Term | None = None) -> Tensor:
        """Evaluate the closure at the present weights, on a part of the batch if one is given, and count it."""
        self.counts["propagations"] += self.share_of(closure, part)
        with torch.enable_grad():
            return closure() if part is None and term is None else self.samples(closure)(part, term)

    def evaluate(self, closure: Closure, part: Part | None = None, model: nn.Module | None = None) -> Tensor:
        """Per-sample losses by a forward pass alone, counted."""
        self.counts["forwards"] += self.share_of(closure, part)
        return self.samples(closure).evaluate(part, model)

    def share_of(self, closure: Closure, part: Part | None) -> float:
        """What share of the batch a part of it is."""
        if part is None:
            return 1.0
        size = self.samples(closure).size
        return (len(range(size)[part]) if isinstance(part, slice) else len(part)) / size

    def samples(self, closure: Closure) -> SampleClosure:
        """The closure, if it can tell samples apart.

        Raises:
            TypeError: it cannot.

        """
        if not isinstance(closure, SampleClosure):
            raise TypeError(
                f"Invalid closure: {type(self).__name__} looks at single samples, and a plain closure has none "
                "(sam_bench.closure.Closure, or another with `part`, `evaluate`, `losses`)"
            )
        return closure

    def examples(self, closure: Closure) -> Tensor:
        """Which examples of the training set the batch has, int64 (B,).

        Raises:
            TypeError: the closure does not know.

        """
        examples = self.samples(closure).examples
        if examples is None:
            name = type(self).__name__
            raise TypeError(f"Invalid closure: {name} asks which examples of the training set a batch has (`examples`)")
        return examples

    @contextmanager
    def still(self) -> Iterator[None]:
        """Within: BatchNorm statistics stand still.

        BatchNorm normalises by the batch either way; `track_running_stats`, unlike momentum=0, also keeps
        `num_batches_tracked` still.
        """
        tracking = [m for m in self.batch_norms if m.track_running_stats]
        for module in tracking:
            module.track_running_stats = False
        try:
            yield
        finally:
            for module in tracking:
                module.track_running_stats = True

    @contextmanager
    def moved(self, params: list[Tensor], epsilon: list[Tensor]) -> Iterator[None]:
        """Within: weights θ + ε. After, an error too: θ, bit for bit.

        θ comes back as a copy, since (θ + ε) - ε is not θ in floating point.
        """
        theta = self.scratch("theta", params)
        torch._foreach_copy_(theta, params)
        try:
            torch._foreach_add_(params, epsilon)
            del epsilon  # may be the last reference to a copy of the weights
            torch.clear_autocast_cache()  # where `step` is called within autocast, it holds θ in bf16
            yield
        finally:
            torch._foreach_copy_(params, theta)
            torch.clear_autocast_cache()

    @contextmanager
    def perturbed(self, params: list[Tensor], epsilon: list[Tensor]) -> Iterator[None]:
        """Within: weights θ + ε, and BatchNorm statistics stand still. After, an error too: θ, bit for bit."""
        moved = self.moved(params, epsilon)
        del epsilon
        with moved, self.still():
            yield

    def params(self) -> list[Tensor]:
        """All parameters, in the order of the groups."""
        return [p for group in self.param_groups for p in group["params"]]

    def params_with_grad(self) -> list[Tensor]:
        """The parameters that the last backward reached, in the order of the groups."""
        return [p for p in self.params() if p.grad is not None]

    @staticmethod
    def grads(params: list[Tensor]) -> list[Tensor]:
        """Their gradients."""
        return [p.grad for p in params if p.grad is not None]

    def scratch(self, name: str, params: list[Tensor]) -> list[Tensor]:
        """One buffer a parameter, allocated once, like it in shape, strides and type; never part of the state."""
        buffers = self._scratch.setdefault(name, {})
        for p in params:
            if p not in buffers or (buffers[p].dtype, buffers[p].device) != (p.dtype, p.device):
                buffers[p] = torch.empty_like(p)
        return [buffers[p] for p in params]

    def memory(self, name: str, params: list[Tensor]) -> list[Tensor]:
        """The same, zero at first, as a part of the state."""
        buffers = self._memory.setdefault(name, {})
        for p in params:
            if p not in buffers:
                buffers[p] = torch.zeros_like(p)
        return [buffers[p] for p in params]

    # ------------------------------------------------------------------------------------------- what it spent

    @property
    def propagations(self) -> float:
        """Forward-backward pairs so far; a pass over a share of the batch counts as that share."""
        return self.counts["propagations"]

    @property
    def forwards(self) -> float:
        """Forward passes without a backward so far."""
        return self.counts["forwards"]

    @property
    def sharpness_aware_steps(self) -> int:
        """Steps so far with a second pass, or in methods of one pass with their perturbation or term: was it on."""
        return int(self.counts["sharpness_aware_steps"])

    @property
    def expected_propagations_per_step(self) -> float:
        """The mean count that a whole training is expected to spend a step."""
        return 1.0

    @property
    def expected_forwards_per_step(self) -> float:
        """The same of `forwards`."""
        return 0.0

    @property
    def extra_bytes(self) -> int:
        """What it keeps beside weights, gradients and the state of the base: buffers and its own state."""
        kept = [t for each in (self._scratch, self._memory) for buffers in each.values() for t in buffers.values()]
        kept += [t for t in vars(self).values() if isinstance(t, Tensor)]
        return sum(t.numel() * t.element_size() for t in kept)

    # --------------------------------------------------------------------------------- being a torch optimizer

    @property
    def innermost(self) -> Optimizer:
        """The base optimizer under all the methods that wrap each other."""
        return self.base.innermost if isinstance(self.base, Descent) else self.base

    # properties, since torch's load_state_dict and unpickling bind new objects in the base
    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of the base optimizer."""
        return self.base.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        pass  # torch's constructor starts a list of its own

    @property
    def state(self) -> defaultdict[Tensor, Any]:
        """The state of the base optimizer."""
        return self.base.state

    @state.setter
    def state(self, state: defaultdict[Tensor, Any]) -> None:
        pass

    def own_state(self) -> dict[str, Any]:
        """What this class itself must keep for an exact resume, beside the state of `base`: plain numbers, tensors."""
        order = {p: i for i, p in enumerate(self.params())}
        memory = {name: {order[p]: t for p, t in buffers.items()} for name, buffers in self._memory.items()}
        return {"t": self.t, "counts": dict(self.counts), "memory": memory}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Take back what `own_state` gave."""
        params = self.params()
        self.t = state["t"]
        self.counts.update(state["counts"])
        self._memory = {
            name: {params[i]: t.to(params[i].device, copy=True) for i, t in buffers.items()}
            for name, buffers in state["memory"].items()
        }

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's `state_dict` with one more entry, under this class's name."""
        return {**self.base.state_dict(), type(self).__name__: self.own_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` gave.

        Raises:
            ValueError: it comes from another method.

        """
        own = type(self).__name__
        if own not in state_dict:
            raise ValueError(f"Invalid state_dict: not one of {own} (its keys: {', '.join(map(str, state_dict))})")
        self.base.load_state_dict({key: value for key, value in state_dict.items() if key != own})
        self.load_own_state(state_dict[own])

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base optimizer, and so to this one."""
        if not any(group is param_group for group in self.param_groups):  # torch's constructor adds those it is given
            self.base.add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and deepcopy: no buffers, and none of what torch and its schedulers hang on an instance."""
        left = {"_scratch", "step"}
        return {k: v for k, v in self.__dict__.items() if k not in left and not k.startswith("_optimizer_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._scratch = {}


def number_of(share: float, size: int) -> int:
    """How many samples a share of so many is: one at least."""
    return max(1, round(share * size))


def require(
    name: str, value: float, low: float = -math.inf, high: float = math.inf, above: float | None = None
) -> None:
    """Refuse a setting outside [low, high], or (above, high], NaN included, the way torch.optim words it."""
    if not (low if above is None else above) <= value <= high or value == above or math.isinf(value):
        bounds = f"[{low}, " if above is None else f"({above}, "
        bounds += f"{high}]" if high < math.inf else "∞)"
        raise ValueError(f"Invalid {name}: {value} (a number in {bounds})")


def cosine(a: list[Tensor], b: list[Tensor], buffer: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """The cosine between two lists of tensors, all together, and their norms; `buffer` is overwritten.

    cos = 1 - ½‖a/‖a‖ - b/‖b‖‖²: no foreach operation sums, and where the two are nearly parallel, as g and gₛ are,
    this is exact where a sum of products would cancel.
    """
    norm_a, norm_b = get_total_norm(a) + TINY, get_total_norm(b) + TINY
    torch._foreach_copy_(buffer, a)
    torch._foreach_mul_(buffer, norm_b / norm_a)
    torch._foreach_sub_(buffer, b)
    return 1 - (get_total_norm(buffer) / norm_b).square() / 2, norm_a, norm_b
