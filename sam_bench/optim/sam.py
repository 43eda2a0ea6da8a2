"""SAM: sharpness-aware minimization.

Foret, Kleiner, Mobahi, Neyshabur: Sharpness-Aware Minimization for Efficiently Improving Generalization,
arXiv 2010.01412.

    g = ∇L_B(θ)
    ε = ρ g/‖g‖₂               the norm over all parameters together
    θ ← base step from θ along ∇L_B(θ + ε)

`ascent_share` < 1: g is that of the first part of the batch (Bahri, Mobahi, Tay: Sharpness-Aware Minimization Improves
Language Model Generalization, arXiv 2110.08529); an option of all methods that have the two passes from here. One that
compares g with gₛ (GSAM, LookSAM, G-RST) then compares two batches as well.

Cost: 1 + ascent_share propagations. Memory: one copy of the weights (θ); ε takes the place of g.
Deviations: none. A weight decay of the base optimizer stays out of ε; one in the loss enters it.

AdaSAM (Sun et al., arXiv 2303.00565) is SAM over AMSGrad: conf/optimizer/adasam.yaml. Deviation: torch's AMSGrad, which
corrects the bias of both means.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from sam_bench.optim.descent import TINY, Closure, Descent, Part, number_of, require


class SAM(Descent):
    """SAM around `base`; a method that differs in ε alone overrides `epsilon`.

    Args:
        base: any ready first-order `torch.optim.Optimizer`.
        rho: ρ ≥ 0, the radius of the perturbation, in the units of the weights.
        model: where BatchNorm layers are to be found.
        ascent_share: the share of the batch, in (0, 1], that the first pass sees.

    """

    schedulable = True
    keeps_g = False  # whether g is to outlive the second pass, in `scratch("g")`
    whole_gradient = True  # whether the first pass gives the gradient of every tensor

    def __init__(
        self, base: Optimizer, rho: float = 0.05, model: nn.Module | None = None, ascent_share: float = 1.0
    ) -> None:
        require("rho", rho, low=0)
        require("ascent_share", ascent_share, above=0, high=1)
        super().__init__(base, model)
        self.rho, self.ascent_share = rho, ascent_share
        self.samplewise = self.samplewise or ascent_share < 1

    def gradient(self, closure: Closure) -> Tensor:
        """Leave gₛ = ∇L(θ + ε) in `.grad`; return the loss at θ."""
        loss = self.first_pass(closure, self.ascent_part(closure))
        self.second_pass(closure)
        return loss

    def first_pass(self, closure: Closure, part: Part | None = None) -> Tensor:
        """Leave g in `.grad`; return the loss."""
        loss = self.propagate(closure, part)
        if self.keeps_g:
            params = self.params_with_grad()
            torch._foreach_copy_(self.scratch("g", params), self.grads(params))
            # a tensor that this pass left out may be in the second one
            if rest := [p for p in self.params() if p.grad is None and p.requires_grad]:
                torch._foreach_zero_(self.scratch("g", rest))
        return loss

    def second_pass(self, closure: Closure, part: Part | None = None) -> None:
        """With g in `.grad`, leave gₛ there."""
        self.counts["sharpness_aware_steps"] += 1
        params = self.params_with_grad()
        with self.perturbed(params, self.epsilon(params)):
            self.propagate(closure, part)

    def epsilon(self, params: list[Tensor]) -> list[Tensor]:
        """ε = ρ g/‖g‖, in the memory of g: the second pass overwrites it anyway."""
        grads = self.grads(params)
        torch._foreach_mul_(grads, self.rho / (get_total_norm(grads) + TINY))
        return grads

    def ascent_part(self, closure: Closure) -> Part | None:
        """The samples of the first pass; None for all of them."""
        if self.ascent_share == 1:
            return None
        return slice(number_of(self.ascent_share, self.samples(closure).size))

    @property
    def expected_propagations_per_step(self) -> float:
        """The share of the first pass and the whole second one."""
        return 1 + self.ascent_share
