"""SAMPa: SAM with two gradients that can be computed in parallel.

Xie, Pethick, Cevher: SAMPa: Sharpness-aware Minimization Parallelized, NeurIPS 2024, arXiv 2410.10683.

    θ̃ = θ + ρ d/‖d‖₂                    d = ∇L_{B⁻}(y⁻), of the previous step and its batch B⁻; 0 in the first step
    y = θ - the base's step with gradient d
    d ← ∇L_B(y)
    θ ← base step from θ with gradient (1 - λ)∇L_{B⁻}(θ̃) + λd

The two gradients of a step do not depend on each other: see `side_by_side`. For SGD, the step to y is that with weight
decay and momentum, as in the authors' code, without Nesterov or dampening. For other bases it is ηd. In the first step
both batches are B. BatchNorm statistics, loss and logits are those of the pass at y.
Deviation: the authors' code needs two devices. Here one device can make both passes.
"""

from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from sam_bench.optim.checks import ArgumentError, require_number
from sam_bench.optim.closure import BatchClosure, Closure
from sam_bench.optim.side_by_side import SideBySide


class SAMPa(SideBySide):
    """SAMPa-λ around `base`.

    Args:
        base, rho, further: see `SideBySide`. There is no `ascent_share`.
        lam: λ in [0, 1], the weight of the gradient at y.

    Raises:
        TypeError: in `step`, if the closure is not a `BatchClosure`, which can go back to the previous batch.
    """

    paper = "Xie et al., arXiv 2410.10683"
    state_contents = "the previous gradient and batch"
    state_names = ("images", "labels")
    samplewise = True
    perturbed_copies = 0  # y differs from θ everywhere
    cost = "2"
    whole_first_pass = False

    def __init__(self, base: Optimizer, rho: float = 0.1, *, lam: float = 0.2, **further: Any) -> None:
        super().__init__(base, rho, **further)
        require_number("lam", lam, low=0, high=1)
        if self.ranks > 1:
            allowed = "the unwrapped model; for two processes use `pair` (trainer.side_by_side=true)"
            raise ArgumentError("model", "DistributedDataParallel", allowed)
        if self.ascent_share != 1:
            raise ArgumentError("ascent_share", self.ascent_share, "1, since both passes are over whole batches")
        self.lam = lam
        self.images: Tensor | None = None  # of the previous batch
        self.labels: Tensor | None = None

    @property
    def variant(self) -> bool:
        """Whether it is the first step."""
        return self.images is None

    def gradient(self, closure: Closure) -> Tensor:
        """Leave (1 - λ)∇L(θ̃) + λ∇L(y) in `.grad`; return the loss at y."""
        if not isinstance(closure, BatchClosure):
            raise TypeError("Invalid closure: SAMPa needs the previous batch (use sam_bench.optim.BatchClosure)")
        if self.images is None:
            self.images, self.labels = closure.images.clone(), closure.labels.clone()
        loss = self.both(lambda: self.pass_at_y(closure), lambda: self.perturbed_pass(closure))
        params = self.params_with_grad()
        torch._foreach_lerp_(self.grads(params), self.scratch("g", params), self.lam)
        self.remember_g()
        for kept, now in ((self.images, closure.images), (self.labels, closure.labels)):
            assert kept is not None
            kept.resize_(now.shape).copy_(now)
        return loss

    def pass_at_y(self, closure: Closure) -> Tensor:
        """Leave ∇L_B(y) in `.grad`; return the loss at y."""
        d = self._memory.get("previous", {})
        params: list[Tensor] = []
        steps: list[Tensor] = []
        for group in self.param_groups:
            mine = [p for p in group["params"] if p in d and p.requires_grad]
            if not mine:
                continue
            step = list(torch._foreach_mul([d[p] for p in mine], 1))
            if isinstance(self.innermost, SGD):
                torch._foreach_add_(step, mine, alpha=group["weight_decay"])
                held = [(s, self.state.get(p, {}).get("momentum_buffer")) for s, p in zip(step, mine, strict=True)]
                if moving := [(s, v) for s, v in held if v is not None]:
                    torch._foreach_add_([s for s, _ in moving], [v for _, v in moving], alpha=group["momentum"])
            torch._foreach_mul_(step, -group["lr"])
            params, steps = params + mine, steps + step
        with self.offset_by(params, steps):
            return self.propagate(closure)

    def perturbed_pass(self, closure: BatchClosure) -> None:
        """Leave ∇L_{B⁻}(θ̃) in `.grad`."""
        assert self.images is not None
        assert self.labels is not None
        now, first_pass = (closure.images, closure.labels, closure.examples), closure.first_pass
        closure.batch(self.images, self.labels)
        d = self._memory.get("previous", {})
        if d:
            self.take_as_gradient(d)
            self.second_pass(closure)
        else:
            for p in self.params():
                p.grad = None  # a closure without zero_grad would add to that of the pass at y
            with self.frozen_batch_norm():
                self.propagate(closure)
        first_pass = first_pass or closure.first_pass
        closure.batch(*now)
        closure.first_pass = first_pass
