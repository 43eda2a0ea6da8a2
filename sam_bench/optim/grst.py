"""G-RST: RST with a freely chosen regularization strength.

Zhao, Zhang, Hu: Randomized Sharpness-Aware Training for Boosting Computational Efficiency in Deep Learning,
arXiv 2203.09962.

    X_t ~ Bernoulli(p(t/T))
    X_t = 1:  base step with gradient (1 - γ)g + γgₛ      gₛ: the inner method's gradient
    X_t = 0:  base step with gradient g

γ = 1 is RST, γ > 1 extrapolates; γ = λ/ρ penalizes the gradient norm with λ‖∇L‖. The expected gradient is
g + p(t)γ(gₛ - g), so a target regularization weight w asks for γ(t) = w/p(t); w = 1 is SAM's own.
Deviations: the authors' code mixes ĝ = g/‖g‖ instead of g by default, which differs from the formula unless γ = 1; here
`unit_norm=True` asks for that. γ(t) is capped, since w/p(t) has no bound where p(t) goes to 0. g is that of the inner
method's first pass, which may see a part of the batch.
"""

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from sam_bench.optim.checks import ArgumentError, require_boolean, require_number
from sam_bench.optim.closure import Closure
from sam_bench.optim.descent import TINY
from sam_bench.optim.rst import RST
from sam_bench.optim.sam import SAM
from sam_bench.optim.schedules import Schedule


class GRST(RST):
    """G-RST around `inner`. Give a fixed `gamma` or a target `weight`, not both.

    Args:
        inner, schedule, total_steps, seed, warmup_steps: see `RST`. `inner` needs the two passes of SAM.
        gamma: γ ≥ 0.
        weight: w ≥ 0, the target of p(t)γ(t).
        gamma_max: the cap of w/p(t), 4 if not given; needs a `weight`.
        unit_norm: mix ĝ = g/‖g‖ instead of g, as the authors' code does.
    """

    def __init__(
        self,
        inner: SAM,
        schedule: Schedule,
        total_steps: int,
        seed: int = 0,
        *,
        warmup_steps: int = 0,
        gamma: float | None = None,
        weight: float | None = None,
        gamma_max: float | None = None,
        unit_norm: bool = False,
    ) -> None:
        super().__init__(inner, schedule, total_steps, seed, warmup_steps=warmup_steps)
        if (gamma is None) == (weight is None):
            raise ArgumentError("gamma and weight", f"{gamma} and {weight}", "a number for one, null for the other")
        if gamma is not None:
            require_number("gamma", gamma, low=0)
            if gamma_max is not None:
                raise ArgumentError("gamma_max", gamma_max, "null with a fixed gamma, which it does not apply to")
        if weight is not None:
            require_number("weight", weight, low=0)
            gamma_max = 4.0 if gamma_max is None else gamma_max
            require_number("gamma_max", gamma_max, low=0)
        require_boolean("unit_norm", unit_norm)
        if not isinstance(inner, SAM) or not inner.whole_gradient:
            allowed = "a method with SAM's two passes, the first over all tensors: not ESAM unless beta=1"
            raise ArgumentError("inner", type(inner).__name__, allowed)
        self.memory_copies = inner.memory_copies + (not inner.keeps_g)
        inner.keeps_g = inner.mixes_g = inner.needs_mean_g = True
        self.gamma, self.weight, self.gamma_max, self.unit_norm = gamma, weight, gamma_max, unit_norm
        self.gamma_t: Tensor | None = None  # γ(t) on the device, if it follows from w

    def gamma_at(self, t: int) -> float:
        """γ at a step t with X_t = 1, and so p(t) > 0."""
        if self.gamma is not None:
            return self.gamma
        assert self.weight is not None
        assert self.gamma_max is not None
        return min(self.weight / self.p(t), self.gamma_max)

    def begin(self) -> None:
        """Draw X_t, and set γ."""
        super().begin()
        if self.aware and self.weight is not None:
            if self.gamma_t is None:
                device = self.param_groups[0]["params"][0].device
                self.gamma_t = torch.empty((), device=device, dtype=torch.float32)
            self.gamma_t.fill_(self.gamma_at(self.t))  # in place, where a captured update reads it

    def gradient(self, closure: Closure) -> Tensor:
        """Leave (1 - γ)g + γgₛ in `.grad` if X_t = 1, else g; return the loss at θ."""
        loss = super().gradient(closure)
        if not self.aware:
            return loss
        params = self.params_with_grad()
        g = self.inner.scratch("g", params)
        if self.unit_norm:
            torch._foreach_div_(g, get_total_norm(g) + TINY)
        # from gₛ towards g by 1 - γ, so that γ = 1 is RST and ρ = 0 the base, bit for bit
        g_s = self.grads(params)
        if self.gamma is not None:
            torch._foreach_lerp_(g_s, g, 1 - self.gamma)  # exact at γ = 0 too
        else:
            assert self.gamma_t is not None
            # lerp takes no tensor for a list
            torch._foreach_sub_(g, g_s)
            torch._foreach_mul_(g, 1 - self.gamma_t)
            torch._foreach_add_(g_s, g)
        return loss
