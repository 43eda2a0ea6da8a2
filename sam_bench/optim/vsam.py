"""vSAM: SAM steps sampled at an adaptive rate, their second-order part reused in between.

Deng, Pang, Zhang, Wang: Effective Gradient Sample Size via Variation Estimation for Accelerating Sharpness aware
Minimization, arXiv 2403.08821.

    gₛ = g + PSF,  PSF ≈ ρHĝ                 PSF: what a step of SAM adds to the gradient
    sampled steps:  the base steps along gₛ, and PSF = gₛ - g is kept
    other steps:    along g + cPSF, c = β, β², … for so many reuses, then along g

All steps of the first epochs are sampled, then ⌊m⌋ in each window of K steps, m following ‖PSF‖ and ‖PSF‖/‖g‖ over the
last N tensors: see `vsam_window`.

Cost: 1 + m/K propagations, 2 over the first epochs. Memory: three copies (θ, g, PSF). State: PSF, the window.
Deviations: the first window after the first epochs has a sampled step (theirs counts one as done). The last tensors are
those of the parameter groups. No `ascent_share`: PSF would be the difference between two batches. Waits for the device
at the end of each window.
"""

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from sam_bench.optim.descent import TINY, Closure, require
from sam_bench.optim.sam import SAM
from sam_bench.optim.vsam_window import Window


class VSAM(SAM):
    """vSAM around `base`.

    Args:
        base, rho, model: see `SAM`.
        window, quota, quota_max, alpha_1, alpha_2, seed: see `Window`.
        beta: β in [0, 1].
        reuses: of one PSF.
        tensors: N ≥ 1.
        sam_steps: the first steps, all sampled.

    """

    schedulable = False
    keeps_g = True

    def __init__(
        self,
        base: Optimizer,
        rho: float = 0.05,
        window: int = 50,
        quota: float = 1.0,
        quota_max: float = 0.8,
        alpha_1: float = 0.13,
        alpha_2: float = 0.13,
        beta: float = 0.7,
        reuses: int = 6,
        tensors: int = 10,
        sam_steps: int = 0,
        seed: int = 0,
        model: nn.Module | None = None,
    ) -> None:
        require("beta", beta, low=0, high=1)
        require("tensors", tensors, low=1)
        require("reuses", reuses, low=0)
        require("sam_steps", sam_steps, low=0)
        super().__init__(base, rho, model)
        device = base.param_groups[0]["params"][0].device
        self.window = Window(window, quota, quota_max, (alpha_1, alpha_2), seed, device)
        self.beta, self.reuses, self.N, self.sam_steps = beta, reuses, tensors, sam_steps
        self.sampled = False  # whether the step that has begun is
        self.since = reuses  # steps since the last that was
        self.c = torch.zeros((), device=device)

    def begin(self) -> None:
        """Choose, and set c."""
        chosen = self.window.begin(self.t, (self.t - self.sam_steps) % self.window.K)
        self.sampled = chosen or self.t < self.sam_steps
        self.c.fill_(self.beta ** (self.since + 1))

    @property
    def kind(self) -> Hashable:
        """Whether it is sampled, and if not, whether it reuses."""
        return self.sampled, self.sampled or self.since < self.reuses

    def gradient(self, closure: Closure) -> Tensor:
        """Leave gₛ, g + cPSF or g in `.grad`; return the loss at θ."""
        if self.sampled:
            loss = super().gradient(closure)
            params = self.params_with_grad()
            g, PSF = self.scratch("g", params), self.memory("PSF", params)  # noqa: N806
            torch._foreach_copy_(PSF, self.grads(params))
            torch._foreach_sub_(PSF, g)
            a = get_total_norm(PSF[-self.N :])
            self.window.note(a, a / (get_total_norm(g[-self.N :]) + TINY))
            return loss
        loss = self.propagate(closure)
        if self.since < self.reuses:
            params = self.params_with_grad()
            part = self.scratch("theta", params)
            torch._foreach_copy_(part, self.memory("PSF", params))
            torch._foreach_mul_(part, self.c)
            torch._foreach_add_(self.grads(params), part)
        return loss

    def end(self) -> None:
        """Move on; at the end of a window, to a new one."""
        self.since = 0 if self.sampled else self.since + 1
        self.window.n += self.sampled
        super().end()
        if self.t > self.sam_steps:
            self.window.done += self.sampled
            if (self.t - self.sam_steps) % self.window.K == 0:
                self.window.close()

    @property
    def expected_propagations_per_step(self) -> float:
        """By the middle of the shares that the authors' long runs logged, 29 to 60 %, where the quota may get there."""
        return 1 + min(0.45, self.window.m_max / self.window.K)

    def own_state(self) -> dict[str, Any]:
        """With the window."""
        return {**super().own_state(), "window": self.window.state(), "since": self.since}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Take back what `own_state` gave."""
        super().load_own_state(state)
        self.window.load(state["window"])
        self.since = state["since"]
