"""vSAM: SAM steps sampled at an adaptive rate, with their second-order part reused in between.

Deng, Pang, Zhang, Wang: Effective Gradient Sample Size via Variation Estimation for Accelerating Sharpness aware
Minimization, arXiv 2403.08821.

    gₛ = g + PSF,  PSF ≈ ρHĝ                 PSF: what a SAM step adds to the gradient
    sampled steps:  base step with gradient gₛ, and PSF = gₛ - g is kept
    other steps:    g + cPSF, c = β, β², … for a number of reuses, then g

In the first epochs every step is sampled, then ⌊m⌋ steps of each window of K. m follows ‖PSF‖ and ‖PSF‖/‖g‖ over the
last N tensors: see `vsam_window`.
Deviations: the first window after the first epochs is as long as the others and has a sampled step (theirs is one step
shorter and has none). The last tensors are those of the parameter groups. There is no `ascent_share`: PSF would be the
difference between two batches.
"""

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from sam_bench.optim.checks import require_integer, require_number, require_start
from sam_bench.optim.closure import Closure
from sam_bench.optim.descent import TINY
from sam_bench.optim.sam import SAM
from sam_bench.optim.vsam_window import Window


class VSAM(SAM):
    """vSAM around `base`.

    Args:
        base, rho, model, loss_budget, only_norm, stable: see `SAM`.
        window, quota, quota_max, alpha_1, alpha_2, seed: see `Window`.
        beta: β in [0, 1].
        reuses: number of steps that reuse one PSF, ≥ 0.
        tensors: N ≥ 1, the number of last tensors whose norms the quota follows.
        sam_steps: number of initial steps, all of which are sampled.
        total_steps: T, for a `loss_budget` and the expected cost; if given, it is an error if the windows would never
            start.
    """

    paper = "Deng et al., arXiv 2403.08821"
    cost = "1 + m/K, adaptive"
    memory_copies = 3  # θ, g, PSF
    perturbed_copies = 0
    state_copies = 1
    state_contents = "the last PSF and the window"
    unschedulable = "it chooses its sharpness-aware steps itself, by the quota of its window"
    waits = "at the end of each window"
    keeps_g = needs_mean_g = True

    def __init__(
        self,
        base: Optimizer,
        rho: float = 0.05,
        *,
        window: int = 50,
        quota: float = 1.0,
        quota_max: float = 0.8,
        alpha_1: float = 0.13,
        alpha_2: float = 0.13,
        beta: float = 0.7,
        reuses: int = 6,
        tensors: int = 10,
        sam_steps: int = 0,
        total_steps: int | None = None,
        seed: int = 0,
        model: nn.Module | None = None,
        loss_budget: float | None = None,
        only_norm: bool = False,
        stable: bool = False,
    ) -> None:
        super().__init__(
            base, rho, model=model, loss_budget=loss_budget, only_norm=only_norm, stable=stable, total_steps=total_steps
        )
        require_number("beta", beta, low=0, high=1)
        require_integer("tensors", tensors, low=1)
        require_integer("reuses", reuses, low=0)
        require_integer("sam_steps", sam_steps, low=0)
        require_start("sam_steps", sam_steps, sam_steps, total_steps)
        device = base.param_groups[0]["params"][0].device
        self.window = Window(window, quota, quota_max, (alpha_1, alpha_2), seed, device)
        self.beta, self.reuses, self.N, self.sam_steps = beta, reuses, tensors, sam_steps
        self.sampled = False  # whether the current step is
        self.since = reuses  # steps since the last sampled one
        self.c = torch.zeros((), device=device, dtype=torch.float32)

    def begin(self) -> None:
        """Decide whether the step is sampled, and set c."""
        super().begin()
        chosen = self.window.begin(self.t, (self.t - self.sam_steps) % self.window.K)
        self.sampled = chosen or self.t < self.sam_steps
        self.c.fill_(self.beta ** (self.since + 1))

    @property
    def variant(self) -> Hashable:
        """Whether the step is sampled, and if not, whether it reuses PSF."""
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
            reused = self.scratch("theta", params)
            torch._foreach_copy_(reused, self.memory("PSF", params))
            torch._foreach_mul_(reused, self.c)
            torch._foreach_add_(self.grads(params), reused)
        return loss

    def end(self) -> None:
        """Finish the step; at the end of a window, start a new one."""
        self.since = 0 if self.sampled else self.since + 1
        self.window.n += self.sampled
        super().end()
        if self.t > self.sam_steps:
            self.window.done += self.sampled
            if (self.t - self.sam_steps) % self.window.K == 0:
                self.window.close()

    @property
    def expected_propagations_per_step(self) -> float:
        """All of the first steps are sampled, and of the others 45 %, or the largest quota if that is less.

        45 % is the midpoint of the shares that the authors logged, 29 to 60 %.
        """
        sampled = min(0.45, self.window.m_max / self.window.K)
        first = min(1.0, self.sam_steps / self.total_steps) if self.total_steps else 0.0
        return 1 + first + (1 - first) * sampled

    def own_state(self) -> dict[str, Any]:
        """The state of every method, and the window."""
        return {**super().own_state(), "window": self.window.state(), "since": self.since}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Load what `own_state` returned."""
        super().load_own_state(state)
        self.window.load(state["window"])
        self.since = state["since"]
