"""VaSSO: SAM along a gradient whose variance is suppressed.

Li, Giannakis: Enhancing Sharpness-Aware Optimization Through Variance Suppression, NeurIPS 2023, arXiv 2309.15639.

    d ← (1 - θ')d + θ'g       in the first step d = g; the paper writes θ for this θ'
    ε = ρ d/‖d‖₂
    θ ← base step from θ with gradient ∇L_B(θ + ε)

Deviations: none. Under RST, d moves only in sharpness-aware steps.
"""

from typing import Unpack

import torch
from torch import Tensor
from torch.optim import Optimizer

from sam_bench.optim.asam import ASAM
from sam_bench.optim.checks import require_number
from sam_bench.optim.sam import Shared


class VaSSO(ASAM):
    """VaSSO around `base`.

    Args:
        base, rho, shared: see `SAM`.
        theta: θ' in [0, 1], the weight of the newest gradient; 1 is SAM.
        eta: η of `ASAM`, with which ε = ρ T²d/‖Td‖₂; None for the paper's ε.
    """

    paper = "Li & Giannakis, arXiv 2309.15639"
    memory_copies = 2  # θ, d
    perturbed_copies = 2
    state_copies = 1
    state_contents = "the direction d"
    needs_mean_g = True

    def __init__(
        self,
        base: Optimizer,
        rho: float = 0.2,
        *,
        theta: float = 0.9,
        eta: float | None = None,
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(base, rho, eta=eta, **shared)
        require_number("theta", theta, low=0, high=1)
        self.theta = theta

    @property
    def variant(self) -> bool:
        """Whether it is the first step."""
        return "d" not in self._memory

    def epsilon(self, params: list[Tensor]) -> list[Tensor]:
        """ε, computed in place in the gradient tensors."""
        first, g = self.variant, self.grads(params)
        d = self.memory("d", params)
        torch._foreach_lerp_(d, g, 1.0 if first else self.theta)
        torch._foreach_copy_(g, d)
        return super().epsilon(params)
