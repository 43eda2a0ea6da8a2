"""SAM: sharpness-aware minimization.

Foret, Kleiner, Mobahi, Neyshabur: Sharpness-Aware Minimization for Efficiently Improving Generalization,
arXiv 2010.01412.

    g = ∇L_B(θ)
    ε = ρ g/‖g‖₂               the norm over all parameters together
    θ ← base step from θ along ∇L_B(θ + ε)

Cost: 2 propagations. Memory: one copy of the weights (θ); ε takes the place of g.
Deviations: none. A weight decay of the base optimizer stays out of ε; one in the loss enters it.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from sam_bench.optim.descent import TINY, Closure, Descent, require


class SAM(Descent):
    """SAM around `base`; a method that differs in ε alone overrides `epsilon`.

    Args:
        base: any ready first-order `torch.optim.Optimizer`.
        rho: ρ ≥ 0, the radius of the perturbation, in the units of the weights.
        model: where BatchNorm layers are to be found.

    """

    propagations_if_aware = 2.0

    def __init__(self, base: Optimizer, rho: float = 0.05, model: nn.Module | None = None) -> None:
        require("rho", rho, low=0)
        super().__init__(base, model)
        self.rho = rho

    def gradient(self, closure: Closure) -> Tensor:
        """Leave gₛ = ∇L(θ + ε) in `.grad`; return the loss at θ."""
        self.counts["sharpness_aware_steps"] += 1
        loss = self.propagate(closure)  # g, at θ
        params = self.params_with_grad()
        with self.perturbed(params, self.epsilon(params)):
            self.propagate(closure)  # gₛ, at θ + ε
        return loss

    def epsilon(self, params: list[Tensor]) -> list[Tensor]:
        """ε = ρ g/‖g‖, in the memory of g: the second pass overwrites it anyway."""
        grads = self.grads(params)
        torch._foreach_mul_(grads, self.rho / (get_total_norm(grads) + TINY))
        return grads
