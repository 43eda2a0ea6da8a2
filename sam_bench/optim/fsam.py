"""F-SAM: friendly SAM, which perturbs along the noise of the batch gradient alone.

Li, Zhou, He, Cheng, Huang: Friendly Sharpness-Aware Minimization, arXiv 2403.12350.

    d = g - σm                m as it was before this step; in the first step m = g and d = g
    m ← λm + (1 - λ)g
    ε = ρ d/‖d‖₂
    θ ← base step from θ with gradient ∇L_B(θ + ε)

Deviations: d uses m from before the step, as in the authors' code. The paper's text uses the new m, which for σ = 1
gives the same direction. Under RST, m moves only in sharpness-aware steps.
"""

from typing import Unpack

import torch
from torch import Tensor
from torch.optim import Optimizer

from sam_bench.optim.asam import ASAM
from sam_bench.optim.checks import require_number
from sam_bench.optim.sam import Shared


class FSAM(ASAM):
    """F-SAM around `base`.

    Args:
        base, rho, shared: see `SAM`.
        sigma: σ ≥ 0, how much of the mean gradient to remove; 0 is SAM.
        lam: λ in [0, 1], the decay of the mean gradient.
        eta: η of `ASAM`, with which ε = ρ T²d/‖Td‖₂; None for the paper's ε.
    """

    paper = "Li et al., arXiv 2403.12350"
    memory_copies = 2  # θ, m
    perturbed_copies = 2
    state_copies = 1
    state_contents = "the mean gradient m"
    needs_mean_g = True

    def __init__(
        self,
        base: Optimizer,
        rho: float = 0.2,
        *,
        sigma: float = 1.0,
        lam: float = 0.6,
        eta: float | None = None,
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(base, rho, eta=eta, **shared)
        require_number("sigma", sigma, low=0)
        require_number("lam", lam, low=0, high=1)
        self.sigma, self.lam = sigma, lam

    @property
    def variant(self) -> bool:
        """Whether it is the first step."""
        return "m" not in self._memory

    def epsilon(self, params: list[Tensor]) -> list[Tensor]:
        """ε, computed in place in the gradient tensors."""
        first, g = self.variant, self.grads(params)
        m = self.memory("m", params)
        if first:
            torch._foreach_copy_(m, g)
        else:
            torch._foreach_add_(g, m, alpha=-self.sigma)  # d
            # λm + (1 - λ)g with g = d + σm, which needs no copy of g
            torch._foreach_mul_(m, self.lam + (1 - self.lam) * self.sigma)
            torch._foreach_add_(m, g, alpha=1 - self.lam)
        return super().epsilon(params)
