"""AUSAM: asymptotic unbiased sampling to accelerate SAM, both passes on a sampled share of the batch.

Deng, Pang, Zhang, Wang: Asymptotic Unbiased Sample Sampling to Speed Up Sharpness-Aware Minimization, arXiv 2406.08001.

    a_i = running mean of |ℓᵢ(θ + ε) - ℓᵢ(θ)| over the steps that drew example i
    s_i = f_min + (F - f_min)(a_i - min a)/(max a - min a)      over the batch;  F rises from f_min to f_max in a ramp
    S  ⊂ B: a share of it, drawn without replacement with probabilities proportional to s_i
    ε = ρ g/‖g‖₂,   g = ∇L_S(θ)
    θ ← base step from θ with gradient ∇L_S(θ + ε)

In the first epochs S = B. Until example i has been measured, a_i = 1.
Deviations: the ramp rises every step, theirs every epoch. If all a_i are equal, so are the s_i (theirs divide by 0).
As in their code, the drawn losses are not re-weighted. With `ascent_share` < 1 the first pass sees that share of S, in
the order of the draw, and only their a_i are updated. The draw of step t depends only on (seed, t).
"""

from typing import Unpack

import torch
from torch import Tensor
from torch.optim import Optimizer

from sam_bench.optim.checks import ArgumentError, require_integer, require_number, require_start
from sam_bench.optim.closure import Closure, SampleClosure
from sam_bench.optim.descent import TINY, number_of
from sam_bench.optim.sam import SAM, Shared
from sam_bench.optim.seeding import derived_seed


class AUSAM(SAM):
    """AUSAM around `base`.

    Args:
        base, rho, shared: see `SAM`.
        train_size: number of examples in the training set.
        share: |S|/|B|, in (0, 1]; 1 is SAM.
        f_min: the smallest s, > 0.
        f_max: the largest s at the end of the ramp.
        ramp_steps: number of steps in which the largest s rises from f_min to f_max.
        full_steps: number of initial steps with S = B.
        seed: seed of the random draws, ≥ 0.
    """

    paper = "Deng et al., arXiv 2406.08001"
    cost = "(1 + ascent_share) · share; on whole batches in the first full_epochs"
    state_contents = "two numbers per training example"
    state_names = ("mean", "count")
    samplewise = selects = True
    whole_first_pass = False

    def __init__(
        self,
        base: Optimizer,
        rho: float = 0.1,
        *,
        train_size: int,
        share: float = 0.5,
        f_min: float = 0.1,
        f_max: float = 0.5,
        ramp_steps: int = 0,
        full_steps: int = 0,
        seed: int = 0,
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(base, rho, **shared)
        require_integer("train_size", train_size, low=1)
        require_integer("ramp_steps", ramp_steps, low=0)
        require_integer("full_steps", full_steps, low=0)
        require_number("share", share, above=0, high=1)
        require_number("f_min", f_min, above=0)
        require_number("f_max", f_max, above=0)
        require_integer("seed", seed, low=0)
        if f_min > f_max:
            raise ArgumentError("f_min", f_min, f"at most f_max, which is {f_max}")
        require_start("full_steps", full_steps, full_steps, self.total_steps)
        self.share, self.f_min, self.f_max, self.seed = share, f_min, f_max, seed
        self.ramp_steps, self.full_steps = ramp_steps, full_steps
        of_examples = {"device": base.param_groups[0]["params"][0].device, "dtype": torch.float32}
        self.mean, self.count = torch.ones(train_size, **of_examples), torch.zeros(train_size, **of_examples)
        self.F = torch.empty((), **of_examples)
        self.noise: Tensor | None = None

    @property
    def variant(self) -> bool:
        """Whether S = B."""
        return self.share == 1 or self.t < self.full_steps

    def begin(self) -> None:
        """Write the numbers of this step into the tensors that a captured update reads."""
        super().begin()
        ramp = min(1.0, self.t / self.ramp_steps) if self.ramp_steps else 1.0
        self.F.fill_(self.f_min + (self.f_max - self.f_min) * ramp)
        if self.noise is not None:
            self.fill_noise(self.noise)

    def fill_noise(self, noise: Tensor) -> None:
        """Uniform numbers in [0, 1), drawn on the host, so that they are the same on every device."""
        draw = torch.Generator().manual_seed(derived_seed("ausam", self.seed, self.t, self.rank))
        noise.copy_(torch.rand(noise.shape, generator=draw, dtype=torch.float32), non_blocking=True)

    def gradient(self, closure: Closure) -> Tensor:
        """Leave ∇L_S(θ + ε) in `.grad`; return the loss of S at θ."""
        samples = self.samples(closure)
        examples = self.examples(closure)
        drawn = torch.arange(samples.size, device=examples.device) if self.variant else self.draw(samples)
        n = number_of(self.ascent_share, len(drawn))
        loss = self.first_pass(closure, self.ascent_selection(closure) if self.variant else drawn[:n])
        before = samples.losses
        self.second_pass(closure, None if self.variant else drawn)
        rise = self.of_all_ranks((samples.losses[:n] - before).abs().float())
        seen = self.of_all_ranks(examples[drawn[:n]])
        count, mean = self.count[seen] + 1, self.mean[seen]
        self.count.index_copy_(0, seen, count)
        self.mean.index_copy_(0, seen, mean + (rise - mean) / count)
        return loss

    def draw(self, samples: SampleClosure) -> Tensor:
        """Indices of S in the batch. The first n of them are a draw of n."""
        assert samples.examples is not None
        if self.noise is None or len(self.noise) != samples.size:
            self.noise = torch.empty(samples.size, device=self.mean.device, dtype=torch.float32)
            self.fill_noise(self.noise)
        a = self.mean[samples.examples]
        s = self.f_min + (self.F - self.f_min) * (a - a.min()) / (a.max() - a.min() + TINY)
        # the largest of log s - log(-log u) are a draw without replacement in proportion to s (Gumbel)
        keys = s.log() - (-(self.noise + TINY).log()).log()
        return keys.topk(number_of(self.share, samples.size)).indices

    @property
    def expected_propagations_per_step(self) -> float:
        """Both passes, on whole batches in the first epochs."""
        full = min(1.0, self.full_steps / self.total_steps) if self.total_steps else 0.0
        return (full + (1 - full) * self.share) * (1 + self.ascent_share)
