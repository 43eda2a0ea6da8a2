"""RST: randomized sharpness-aware training (in its first version SS-SAM).

Zhao, Zhang, Hu: Randomized Sharpness-Aware Training for Boosting Computational Efficiency in Deep Learning,
arXiv 2203.09962.

    X_t ~ Bernoulli(p(t/T))        one draw for the whole global batch
    X_t = 1:  a step of the inner sharpness-aware method
    X_t = 0:  a step of the base optimizer along ∇L_B(θ)

Both kinds of step share the learning rate and the base optimizer's state. Expected cost: 1 + (1/T) Σ p(t/T) for an
inner method of cost 2.
Deviations: the draw at step t is a function of (seed, t) alone, so it is the same on every rank, known ahead of time
and exact after a resume. No gradient clipping of its own (the authors clip at 5): see `trainer.clip`.

Late SAM (Zhou et al., arXiv 2410.10373) is RST with p = 0, then 1: conf/optimizer/late_sam.yaml.
"""

import random
from collections.abc import Hashable
from functools import cached_property

import torch
from torch import Tensor

from sam_bench.optim.descent import Closure, Descent, require
from sam_bench.schedules import Schedule


class RST(Descent):
    """RST around `inner`, any sharpness-aware optimizer.

    Args:
        inner: the method of the steps with X = 1; its base optimizer takes the others.
        schedule: p(s), see `sam_bench.schedules`.
        total_steps: T ≥ 1; a step past T draws with p(1).
        seed: of the draws, ≥ 0.
        warmup_steps: first steps without a sharpness-aware one.

    """

    wraps_methods = True

    def __init__(
        self, inner: Descent, schedule: Schedule, total_steps: int, seed: int = 0, warmup_steps: int = 0
    ) -> None:
        if not isinstance(inner, Descent) or not inner.schedulable:
            raise ValueError(
                f"Invalid inner: {type(inner).__name__} (a method with a second pass that a coin can save, such as SAM)"
            )
        if not callable(schedule):
            raise TypeError(f"Invalid schedule: {schedule!r} (a function of t/T, such as Constant(0.5))")
        require("total_steps", total_steps, low=1)
        require("seed", seed, low=0)
        require("warmup_steps", warmup_steps, low=0)
        super().__init__(inner)
        self.inner = inner
        self.counts = inner.counts  # the inner method makes the passes and counts them
        self.capturable, self.compilable, self.samplewise = inner.capturable, inner.compilable, inner.samplewise
        self.schedule = schedule
        self.total_steps, self.seed, self.warmup_steps = total_steps, seed, warmup_steps
        self.aware = False  # X of the step that has begun

    def p(self, t: int) -> float:
        """The probability of a sharpness-aware step at step t (0-based)."""
        return self.schedule(min(t / self.total_steps, 1.0)) if t >= self.warmup_steps else 0.0

    def draw(self, t: int) -> bool:
        """X_t. Any t may be asked for at any time."""
        return random.Random((self.seed << 64) + t).random() < self.p(t)

    def begin(self) -> None:
        """Toss the coin."""
        self.inner.t = self.t  # one clock for both, whoever makes the step
        self.aware = self.draw(self.t)
        if self.aware:
            self.inner.begin()

    @property
    def kind(self) -> Hashable:
        """X_t, and where it is 1 the kind of the inner method's step."""
        return (True, self.inner.kind) if self.aware else (False, None)

    @torch.no_grad()
    def update(self, closure: Closure) -> Tensor:
        """One update: the inner method's where X_t = 1, else the base optimizer's."""
        return self.sharpness_aware_update(closure) if self.aware else self.inner.descend(closure)

    def sharpness_aware_update(self, closure: Closure) -> Tensor:
        """The update with X_t = 1."""
        return self.inner.update(closure)

    def end(self) -> None:
        """On to t + 1."""
        if self.aware:
            self.inner.end()
        super().end()

    def descend(self, closure: Closure) -> Tensor:
        """One plain step, which no coin decides and the schedule does not count."""
        return self.inner.descend(closure)

    @property
    def expected_propagations_per_step(self) -> float:
        """η = 1 + (c - 1)(1/T) Σ p(t/T), with c the cost of the inner method."""
        return 1 + (self.inner.expected_propagations_per_step - 1) * self.mean_p

    @property
    def expected_forwards_per_step(self) -> float:
        """Those of the inner method's steps."""
        return self.inner.expected_forwards_per_step * self.mean_p

    @cached_property  # T may be 10⁵
    def mean_p(self) -> float:
        """(1/T) Σ p(t/T)."""
        return sum(map(self.p, range(self.total_steps))) / self.total_steps

    @property
    def extra_bytes(self) -> int:
        """With the inner method's."""
        return super().extra_bytes + self.inner.extra_bytes
