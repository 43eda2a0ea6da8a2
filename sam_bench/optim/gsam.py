"""GSAM: surrogate gap guided sharpness-aware minimization.

Zhuang et al.: Surrogate Gap Minimization Improves Sharpness-Aware Training, arXiv 2203.08065.

    ε  = ρ_t g/‖g‖₂                  ρ_t = ρ_min + (ρ_max - ρ_min) lr_t/lr_max
    gₛ = ∇L_B(θ + ε)
    g  = g∥ + g⊥                     along gₛ and across it, over all parameters together
    θ ← base step from θ along gₛ - αg⊥

Cost: SAM's. Memory: two copies (θ, g).
Deviations: the lowest learning rate, which ρ_min belongs to, is 0. The authors' example has ASAM's ε, here it is SAM's.
"""

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sam_bench.optim.descent import Closure, cosine, require
from sam_bench.optim.sam import SAM


class GSAM(SAM):
    """GSAM around `base`.

    Args:
        base, model, ascent_share: see `SAM`. lr_max is the learning rate that the first group has at this moment or,
            under a scheduler, started with.
        rho_min: ρ where the learning rate is 0, ≥ 0.
        rho_max: ρ where it is at its largest.
        alpha: α ≥ 0, how far to step against g⊥, which raises L where L(θ + ε) does not change.

    """

    keeps_g = True

    def __init__(
        self,
        base: Optimizer,
        rho_min: float = 0.05,
        rho_max: float = 0.05,
        alpha: float = 0.4,
        model: nn.Module | None = None,
        ascent_share: float = 1.0,
    ) -> None:
        require("rho_max", rho_max, low=0)
        require("rho_min", rho_min, low=0, high=rho_max)
        require("alpha", alpha, low=0)
        super().__init__(base, rho_max, model, ascent_share)
        self.rho_min, self.rho_max, self.alpha = rho_min, rho_max, alpha
        group = base.param_groups[0]
        self.lr_max = float(group.get("initial_lr", group["lr"]))
        if rho_min != rho_max:
            require("lr", self.lr_max, above=0)

    def gradient(self, closure: Closure) -> Tensor:
        """Leave gₛ - αg⊥ in `.grad`; return the loss at θ."""
        if self.rho_min != self.rho_max:
            # a learning rate that is a tensor makes a ρ that is one
            share = self.param_groups[0]["lr"] / self.lr_max
            self.rho = self.rho_min + (self.rho_max - self.rho_min) * share
        loss = super().gradient(closure)
        params = self.params_with_grad()
        g, g_s = self.scratch("g", params), self.grads(params)
        # g⊥ = g - c gₛ, so gₛ - αg⊥ = (1 + αc)gₛ - αg, which is gₛ to the bit where α = 0
        cos, norm_g, norm_g_s = cosine(g, g_s, self.scratch("theta", params))
        c = cos * norm_g / norm_g_s
        torch._foreach_mul_(g_s, 1 + self.alpha * c)
        torch._foreach_add_(g_s, g, alpha=-self.alpha)
        return loss
