"""GSAM: surrogate gap guided sharpness-aware minimization.

Zhuang et al.: Surrogate Gap Minimization Improves Sharpness-Aware Training, arXiv 2203.08065.

    ε  = ρ_t g/‖g‖₂                  ρ_t = ρ_min + (ρ_max - ρ_min) lr_t/lr_max
    gₛ = ∇L_B(θ + ε)
    g  = g∥ + g⊥                     parallel and orthogonal to gₛ, over all parameters together
    θ ← base step from θ with gradient gₛ - αg⊥

Deviations: ρ_t is ρ_min at a learning rate of 0. The authors' example uses ASAM's ε; this class uses SAM's.
"""

from typing import Any, Unpack

import torch
from torch import Tensor
from torch.optim import Optimizer

from sam_bench.optim.checks import ArgumentError, require_number
from sam_bench.optim.closure import Closure
from sam_bench.optim.descent import cosine
from sam_bench.optim.sam import SAM, Shared


class GSAM(SAM):
    """GSAM around `base`. A parameter group may have a `rho_min` and a `rho_max` of its own.

    Args:
        base, model, ascent_share: see `SAM`.
        rho_min: ρ_t at a learning rate of 0, ≥ 0.
        rho_max: ρ_t at lr_max, ≥ rho_min. lr_max is the `initial_lr` of the first group, which a scheduler sets, or
            else its learning rate when GSAM is constructed.
        alpha: α ≥ 0, the factor of the subtracted g⊥, which reduces the surrogate gap L(θ + ε) - L(θ).
    """

    paper = "Zhuang et al., arXiv 2203.08065"
    memory_copies = 2  # θ, g
    perturbed_copies = 0
    keeps_g = needs_mean_g = True

    def __init__(
        self,
        base: Optimizer,
        *,
        rho_min: float = 0.05,
        rho_max: float = 0.05,
        alpha: float = 0.4,
        **shared: Unpack[Shared],
    ) -> None:
        self.rho_min = rho_min
        group = base.param_groups[0]
        self.lr_max = float(group.get("initial_lr", group["lr"]))
        super().__init__(base, rho_max, **shared)
        require_number("alpha", alpha, low=0)
        self.alpha = alpha

    def radii(self, group: dict[str, Any]) -> tuple[float, float]:
        """ρ_min and ρ_max of a parameter group: its own, or those of the constructor."""
        return self.of_group(group, "rho_min", self.rho_min), self.of_group(group, "rho_max", self.rho)

    def check_group(self, group: dict[str, Any]) -> None:
        """Raise an ArgumentError if ρ_min or ρ_max of a parameter group are out of range."""
        rho_min, rho_max = self.radii(group)
        require_number("rho_max", rho_max, low=0)
        require_number("rho_min", rho_min, low=0)
        if rho_min > rho_max:
            raise ArgumentError("rho_min", rho_min, f"at most rho_max, which is {rho_max}")
        if rho_min != rho_max:
            require_number("lr", self.lr_max, above=0)

    def is_perturbed(self, group: dict[str, Any]) -> bool:
        """Whether the parameters of a group are perturbed."""
        return self.radii(group)[1] != 0

    def radius(self, group: dict[str, Any]) -> float:
        """ρ_t, by the learning rate of the first group; a tensor if that is one."""
        rho_min, rho_max = self.radii(group)
        if rho_min == rho_max:
            return rho_max
        return rho_min + (rho_max - rho_min) * (self.param_groups[0]["lr"] / self.lr_max)

    def gradient(self, closure: Closure) -> Tensor:
        """Leave gₛ - αg⊥ in `.grad`; return the loss at θ."""
        loss = super().gradient(closure)
        params = self.params_with_grad()
        g, g_s = self.scratch("g", params), self.grads(params)
        # g⊥ = g - c gₛ, so gₛ - αg⊥ = (1 + αc)gₛ - αg, which is gₛ to the bit where α = 0
        cos, norm_g, norm_g_s = cosine(g, g_s, self.scratch("theta", params))
        c = cos * norm_g / norm_g_s
        torch._foreach_mul_(g_s, 1 + self.alpha * c)
        torch._foreach_add_(g_s, g, alpha=-self.alpha)
        return loss
