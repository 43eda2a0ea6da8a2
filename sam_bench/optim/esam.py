"""ESAM: efficient sharpness-aware minimization, SAM on a part of the tensors and of the batch.

Du et al.: Efficient Sharpness-aware Minimization for Improved Training of Neural Networks, arXiv 2110.03141.

    stochastic weight perturbation: each parameter tensor is perturbed with probability β; the others get no
        gradient in the first pass;  ε = ρ g/(β‖g‖₂) on the perturbed ones
    sharpness-sensitive data selection: B⁺ = the share γ of B with the largest ℓᵢ(θ + ε) - ℓᵢ(θ)
    θ ← base step from θ with gradient ∇L_B⁺(θ + ε)

With γ < 1 one more forward pass ranks the samples. β < 1 saves a part of the first backward, which is not counted.
Deviations: the draws of step t depend only on (seed, t). At least one tensor is perturbed (theirs fails on none).
In the first step all are, as in theirs. Exactly γ|B| samples are selected, theirs one fewer. With `ascent_share` < 1,
the losses at θ of the other samples, which the ranking needs, take a forward pass of their own, and BatchNorm sees two
batches there.
With β < 1 the tensors that skip their gradient change every step, so the step is neither captured nor compiled.
"""

import random
from typing import Unpack

import torch
from torch import Tensor
from torch.optim import Optimizer

from sam_bench.optim.checks import ArgumentError, require_integer, require_number
from sam_bench.optim.closure import Closure
from sam_bench.optim.descent import number_of
from sam_bench.optim.sam import SAM, Shared
from sam_bench.optim.seeding import derived_seed


class ESAM(SAM):
    """ESAM around `base`.

    Args:
        base, rho, shared: see `SAM`.
        beta: β in (0, 1], the probability that a tensor is perturbed.
        gamma: γ in (0, 1], the share of the batch in the second pass.
        seed: seed of the random draws, ≥ 0.
    """

    paper = "Du et al., arXiv 2110.03141"
    cost = "ascent_share + γ, and 1 forward if γ < 1"
    state_names = ("reached",)
    selects = True

    def __init__(
        self,
        base: Optimizer,
        rho: float = 0.05,
        *,
        beta: float = 0.6,
        gamma: float = 0.5,
        seed: int = 0,
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(base, rho, **shared)
        if self.stable:
            raise ArgumentError("stable", True, "false, since the two passes of ESAM see different samples")
        require_number("beta", beta, above=0, high=1)
        require_number("gamma", gamma, above=0, high=1)
        require_integer("seed", seed, low=0)
        self.beta, self.gamma, self.seed = beta, gamma, seed
        self.capturable = self.compilable = self.whole_gradient = beta == 1
        self.samplewise = self.samplewise or gamma < 1
        self.reached: list[int] = []  # which parameters have a gradient, known from the first step on
        self.skipped: list[Tensor] = []

    def begin(self) -> None:
        """Draw the tensors that are perturbed."""
        super().begin()
        # a seed of its own: under RST, only steps with X_t = 1 get here, so the coins must not be those of RST
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
            first = self.ascent_selection(closure)
            loss = self.first_pass(closure, first)
        finally:
            for p in self.skipped:
                p.requires_grad_(True)
        if not self.reached:
            self.reached = [i for i, p in enumerate(self.params()) if p.grad is not None]
        before = torch.empty(0)
        if self.gamma < 1:
            before = self.samples(closure).losses
            if isinstance(first, slice):
                with self.frozen_batch_norm():
                    rest = self.evaluate(closure, slice(first.stop, self.samples(closure).size))
                    before = torch.cat([before, rest])
        with self.at_perturbed_weights():
            chosen = None
            if self.gamma < 1:
                rise = self.evaluate(closure) - before
                chosen = rise.topk(number_of(self.gamma, len(rise))).indices
            self.propagate(closure, chosen)
        return loss

    def epsilon(self, params: list[Tensor]) -> list[Tensor]:
        """SAM's ε divided by β, computed in place in the gradient tensors."""
        grads = super().epsilon(params)
        if self.beta < 1:
            torch._foreach_div_(grads, self.beta)
        return grads

    @property
    def expected_propagations_per_step(self) -> float:
        """Both passes."""
        return self.ascent_share + self.gamma

    @property
    def expected_forwards_per_step(self) -> float:
        """The forward pass that ranks and, if the first pass left samples out, the one over those."""
        return 2 - self.ascent_share if self.gamma < 1 else 0.0
