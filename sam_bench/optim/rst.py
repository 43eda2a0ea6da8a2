"""RST: randomized sharpness-aware training (called SS-SAM in the first version of the paper).

Zhao, Zhang, Hu: Randomized Sharpness-Aware Training for Boosting Computational Efficiency in Deep Learning,
arXiv 2203.09962.

    X_t ~ Bernoulli(p(t/T))        one draw for the whole global batch
    X_t = 1:  a step of the inner sharpness-aware method
    X_t = 0:  base step with gradient ∇L_B(θ)

Both share the learning rate and the base optimizer's state. Expected cost: 1 + (1/T) Σ p(t/T) for an inner method of
cost 2.
Deviations: the draw at step t follows from (seed, t) alone, so it is the same on every rank, known ahead of time and
exact after a resume. There is no gradient clipping of its own (the authors clip at 5): see `trainer.clip`.

Late SAM (Zhou et al., arXiv 2410.10373) is RST with p = 0, then 1: conf/optimizer/late_sam.yaml.
"""

import random
from collections.abc import Hashable

from torch import Tensor

from sam_bench.optim.checks import ArgumentError, require_integer, require_start
from sam_bench.optim.closure import Closure, SampleClosure
from sam_bench.optim.descent import Descent
from sam_bench.optim.schedules import Schedule


def probability(schedule: Schedule, t: int, total_steps: int, warmup_steps: int = 0) -> float:
    """The probability of a sharpness-aware step at step t (0-based)."""
    return schedule(min(t / total_steps, 1.0)) if t >= warmup_steps else 0.0


def draw(seed: int, t: int, p: float) -> bool:
    """Draw X_t ~ Bernoulli(p) from the seed and the step alone."""
    return random.Random((seed << 64) + t).random() < p


class RST(Descent):
    """RST around `inner`, a method of this package whose second pass can be skipped, such as SAM.

    Args:
        inner: the method of the steps with X_t = 1. In the other steps, its base optimizer is used alone.
        schedule: p(s), a function of s = t/T in [0, 1] with values in [0, 1], such as `Linear(0, 1)`.
        total_steps: T ≥ 1, the number of steps of the training. Later steps draw with p(1).
        seed: seed of the random draws, ≥ 0.
        warmup_steps: number of first steps with X_t = 0, less than T.

    Raises:
        ArgumentError: RST cannot wrap `inner` (`inner.unschedulable` says why), or an argument is out of range.
    """

    paper = "Zhao et al., arXiv 2203.09962"
    cost = "1 + mean of p × (inner's - 1)"
    unschedulable = "it draws its sharpness-aware steps itself"
    wraps_methods = takes_shards = True

    def __init__(
        self, inner: Descent, schedule: Schedule, total_steps: int, seed: int = 0, *, warmup_steps: int = 0
    ) -> None:
        if why := inner.unschedulable if isinstance(inner, Descent) else "it is not a method of this package":
            allowed = f"a method whose second pass can be skipped, such as SAM; rejected: {why}"
            raise ArgumentError("inner", type(inner).__name__, allowed)
        if not callable(schedule):
            raise ArgumentError("schedule", schedule, "a function of t/T, such as Constant(0.5)")
        require_integer("total_steps", total_steps, low=1)
        require_integer("seed", seed, low=0)
        require_integer("warmup_steps", warmup_steps, low=0)
        require_start("warmup_steps", warmup_steps, warmup_steps, total_steps)
        super().__init__(inner)
        self.inner = inner
        self.counts = inner.counts
        self.capturable, self.compilable, self.samplewise = inner.capturable, inner.compilable, inner.samplewise
        self.memory_copies, self.waits = inner.memory_copies, inner.waits
        self.whole_first_pass = inner.whole_first_pass
        self.schedule = schedule
        self.total_steps, self.seed, self.warmup_steps = total_steps, seed, warmup_steps
        # a very long training is checked and averaged over evenly spaced steps
        steps = range(0, total_steps, max(1, total_steps // 100_000))
        probabilities = [self.p(t) for t in steps]
        for p in probabilities:
            if not isinstance(p, (int, float)) or not 0 <= p <= 1:
                raise ArgumentError("schedule", p, "a function of t/T with values in [0, 1]")
        self.mean_p = sum(probabilities) / len(steps)  # (1/T) Σ p(t/T)
        self.aware = False  # X_t of the current step

    def p(self, t: int) -> float:
        """The probability of a sharpness-aware step at step t (0-based)."""
        return probability(self.schedule, t, self.total_steps, self.warmup_steps)

    def draw(self, t: int) -> bool:
        """X_t, for any step t, past or future."""
        return draw(self.seed, t, self.p(t))

    def samples(self, closure: Closure) -> SampleClosure:
        """Return the closure if it is a `SampleClosure`; otherwise the inner method raises a TypeError."""
        return self.inner.samples(closure)

    def begin(self) -> None:
        """Draw X_t."""
        self.inner.t = self.t  # one clock for both, whichever makes the step
        self.aware = self.draw(self.t)
        if self.aware:
            self.inner.begin()

    @property
    def variant(self) -> Hashable:
        """X_t and, if it is 1, the variant of the inner method's step."""
        return (True, self.inner.variant) if self.aware else (False, None)

    def gradient(self, closure: Closure) -> Tensor:
        """Leave the inner method's gradient in `.grad` if X_t = 1, else g; return the loss at θ."""
        return self.inner.gradient(closure) if self.aware else self.propagate(closure)

    def end(self) -> None:
        """Finish the step."""
        if self.aware:
            self.inner.end()
        super().end()

    @property
    def expected_propagations_per_step(self) -> float:
        """η = 1 + (c - 1)(1/T) Σ p(t/T), where c is the cost of the inner method, plus that of its masks."""
        of_masks = self.inner.mask_propagations_per_step
        return 1 + (self.inner.expected_propagations_per_step - of_masks - 1) * self.mean_p + of_masks

    @property
    def expected_forwards_per_step(self) -> float:
        """Those of the inner method's steps."""
        return self.inner.expected_forwards_per_step * self.mean_p

    @property
    def extra_bytes(self) -> int:
        """Bytes of its own buffers and of the inner method's."""
        return super().extra_bytes + self.inner.extra_bytes
