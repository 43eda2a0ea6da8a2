"""LookSAM: SAM at every k-th step, with its second-order part reused in between.

Liu, Mai, Chen, Hsieh, You: Towards Efficient and Scalable Sharpness-Aware Minimization, arXiv 2203.02714.

    every k-th step, from the first:   gₛ = ∇L_B(θ + ε) as in SAM;  g_v = gₛ - (⟨gₛ, g⟩/‖g‖²) g
                                       base step with gradient gₛ
    all others:                        base step with gradient g + α(‖g‖/‖g_v‖) g_v

Norms are over all parameters together. α = 0 is periodic SAM, which keeps no g_v.
Deviations: none known. The authors published no code, and third-party ports differ in whose norms are meant. Under RST
the period counts LookSAM's own steps.
"""

from typing import Unpack

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from sam_bench.optim.checks import require_integer, require_number
from sam_bench.optim.closure import Closure
from sam_bench.optim.descent import TINY, cosine
from sam_bench.optim.sam import SAM, Shared


class LookSAM(SAM):
    """LookSAM around `base`.

    Args:
        base, rho, shared: see `SAM`.
        k: the period of the sharpness-aware steps, ≥ 1.
        alpha: α ≥ 0, the size of the reused part relative to g.
    """

    paper = "Liu et al., arXiv 2203.02714"
    cost = "1 + ascent_share/k"
    memory_copies = 3  # θ, g, g_v
    perturbed_copies = 0
    state_copies = 1
    state_contents = "g_v"
    state_names = ("calls",)

    def __init__(
        self, base: Optimizer, rho: float = 0.05, *, k: int = 5, alpha: float = 0.7, **shared: Unpack[Shared]
    ) -> None:
        super().__init__(base, rho, **shared)
        require_integer("k", k, low=1)
        require_number("alpha", alpha, low=0)
        self.k, self.alpha = k, alpha
        self.keeps_g = alpha > 0
        self.needs_mean_g = self.needs_mean_g or alpha > 0
        if not alpha:
            self.memory_copies, self.state_copies, self.state_contents = int(self.only is None), 0, ""
        self.calls = 0  # LookSAM's own steps

    @property
    def variant(self) -> bool:
        """Whether it is a sharpness-aware step."""
        return self.calls % self.k == 0

    def gradient(self, closure: Closure) -> Tensor:
        """Leave gₛ or g + α(‖g‖/‖g_v‖)g_v in `.grad`; return the loss at θ."""
        if self.variant:
            loss = super().gradient(closure)
            self.look()
        else:
            loss = self.propagate(closure)
            if self.mixes_g:
                self.keep_g()
            self.reuse()
        return loss

    def look(self) -> None:
        """With g kept and gₛ in `.grad`, keep g_v."""
        if self.alpha:
            params = self.params_with_grad()
            g, g_s, g_v = self.scratch("g", params), self.grads(params), self.memory("g_v", params)
            cos, norm_g_s, norm_g = cosine(g_s, g, g_v)
            torch._foreach_copy_(g_v, g)
            torch._foreach_mul_(g_v, -cos * norm_g_s / norm_g)
            torch._foreach_add_(g_v, g_s)

    def reuse(self) -> None:
        """With g in `.grad`, add α(‖g‖/‖g_v‖)g_v."""
        if self.alpha:
            params = self.params_with_grad()
            grads, g_v, reused = self.grads(params), self.memory("g_v", params), self.scratch("theta", params)
            torch._foreach_copy_(reused, g_v)
            torch._foreach_mul_(reused, self.alpha * get_total_norm(grads) / (get_total_norm(g_v) + TINY))
            torch._foreach_add_(grads, reused)

    def end(self) -> None:
        """Count LookSAM's own step."""
        self.calls += 1
        super().end()

    @property
    def expected_propagations_per_step(self) -> float:
        """One, and the first pass of every k-th step."""
        return 1 + self.ascent_share / self.k
