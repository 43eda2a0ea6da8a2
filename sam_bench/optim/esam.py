"""ESAM: efficient sharpness-aware minimization, SAM on a part of the tensors and of the batch.

Du et al.: Efficient Sharpness-aware Minimization for Improved Training of Neural Networks, arXiv 2110.03141.

    stochastic weight perturbation: each parameter tensor is kept with probability β, the others skip their gradient in
        the first pass;  ε = ρ g/(β‖g‖₂) on the kept ones
    sharpness-sensitive data selection: B⁺ = the share γ of B with the largest ℓᵢ(θ + ε) - ℓᵢ(θ)
    θ ← base step from θ along ∇L_B⁺(θ + ε)

Cost: 1 + γ propagations, and one forward, which ranks the samples, where γ < 1; β < 1 saves a part of the first
backward, which is not counted. Memory: one copy of the weights (θ).
Deviations: the coins of step t follow from (seed, t); one tensor at least is kept (theirs fails without one; as in
theirs all are in the first step); exactly γ|B| samples are taken, theirs one fewer. `ascent_share` < 1: the losses at θ
of the other samples, which the ranking needs, take a forward of their own, and BatchNorm knows two batches there.
Which tensors skip their gradient changes every step, so with β < 1 it is neither captured nor compiled.
"""

import random
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sam_bench.data.sampling import derived_seed
from sam_bench.optim.descent import Closure, number_of, require
from sam_bench.optim.sam import SAM


class ESAM(SAM):
    """ESAM around `base`.

    Args:
        base, rho, model, ascent_share: see `SAM`.
        beta: β in (0, 1], how many of the tensors are perturbed.
        gamma: γ in (0, 1], the share of the batch in the second pass.
        seed: of the coins.

    """

    def __init__(
        self,
        base: Optimizer,
        rho: float = 0.05,
        beta: float = 0.6,
        gamma: float = 0.5,
        seed: int = 0,
        model: nn.Module | None = None,
        ascent_share: float = 1.0,
    ) -> None:
        require("beta", beta, above=0, high=1)
        require("gamma", gamma, above=0, high=1)
        require("seed", seed, low=0)
        super().__init__(base, rho, model, ascent_share)
        self.beta, self.gamma, self.seed = beta, gamma, seed
        self.capturable = self.compilable = self.whole_gradient = beta == 1
        self.samplewise = self.samplewise or gamma < 1
        self.reached: list[int] = []  # which parameters have a gradient, from the first step on
        self.skipped: list[Tensor] = []

    def begin(self) -> None:
        """Toss a coin for each tensor."""
        # unlike RST's coin, which has fallen the same way in each step that gets here
        coins, params = random.Random(derived_seed("esam", self.seed, self.t)), self.params()
        self.skipped = [params[i] for i in self.reached if coins.random() >= self.beta]
        if self.skipped and len(self.skipped) == len(self.reached):
            del self.skipped[coins.randrange(len(self.reached))]

    def gradient(self, closure: Closure) -> Tensor:
        """Leave ∇L_B⁺(θ + ε) in `.grad`; return the loss at θ."""
        for p in self.skipped:
            p.requires_grad_(False)
            p.grad = None
        try:
            part = self.ascent_part(closure)
            loss = self.first_pass(closure, part)
        finally:
            for p in self.skipped:
                p.requires_grad_(True)
        if not self.reached:
            self.reached = [i for i, p in enumerate(self.params()) if p.grad is not None]
        self.counts["sharpness_aware_steps"] += 1
        if self.gamma < 1:
            before = self.samples(closure).losses
            size = self.samples(closure).size
            if isinstance(part, slice) and part.stop < size:
                with self.still():
                    rest = slice(part.stop, size)
                    before = torch.cat([before, self.evaluate(closure, rest)])
        params = self.params_with_grad()
        with self.perturbed(params, self.epsilon(params)):
            chosen = None
            if self.gamma < 1:
                rise = self.evaluate(closure) - before
                chosen = rise.topk(number_of(self.gamma, len(rise))).indices
            self.propagate(closure, chosen)
        return loss

    def epsilon(self, params: list[Tensor]) -> list[Tensor]:
        """ε, in the memory of g; SAM's over β."""
        grads = super().epsilon(params)
        if self.beta < 1:
            torch._foreach_div_(grads, self.beta)
        return grads

    @property
    def expected_propagations_per_step(self) -> float:
        """The two passes."""
        return self.ascent_share + self.gamma

    @property
    def expected_forwards_per_step(self) -> float:
        """The one that ranks, and where the first pass left samples out, that of those."""
        return 2 - self.ascent_share if self.gamma < 1 else 0.0

    def own_state(self) -> dict[str, Any]:
        """With what has a gradient."""
        return {**super().own_state(), "reached": self.reached}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Take back what `own_state` gave."""
        super().load_own_state(state)
        self.reached = list(state["reached"])
