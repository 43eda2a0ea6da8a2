"""AE-SAM: SAM where the gradient is large, by an adaptive policy.

Jiang, Yang, Zhang, Kwok: An Adaptive Policy to Employ Sharpness-Aware Minimization, ICLR 2023, arXiv 2304.14647.

    x_t = ‖∇L_B(θ)‖²
    μ ← δμ + (1 - δ)x_t        σ² ← δσ² + (1 - δ)(x_t - μ)²        μ = σ² = 0 at first
    c_t = (t/T)λ₁ + (1 - t/T)λ₂
    x_t ≥ μ + c_tσ:  a SAM step, whose first pass is the one above;  else base step with gradient g

The expected cost is 1.5 if x_t is normally distributed and λ₁ = -λ₂.
Deviations: none known. No code of the authors is known to us; the order of the updates follows three third-party
implementations that agree. There is no `ascent_share`, since the first pass is the whole gradient of the base steps.
"""

from statistics import NormalDist, fmean
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from sam_bench.optim.checks import require_integer, require_number
from sam_bench.optim.closure import Closure
from sam_bench.optim.sam import SAM


class Policy:
    """Decides which ‖g‖² are large, in double precision on the host."""

    def __init__(self, total_steps: int, lambda_1: float, lambda_2: float, delta: float) -> None:
        require_integer("total_steps", total_steps, low=1)
        require_number("lambda_1", lambda_1)
        require_number("lambda_2", lambda_2)
        require_number("delta", delta, low=0, below=1)
        self.total_steps, self.lambda_1, self.lambda_2, self.delta = total_steps, lambda_1, lambda_2, delta
        self.mu, self.variance = 0.0, 0.0

    def asks_for_sam(self, x: float, t: int) -> bool:
        """Whether x = ‖g‖² is large at step t. Updates mean and variance."""
        delta, s = self.delta, min(t / self.total_steps, 1.0)
        self.mu = delta * self.mu + (1 - delta) * x
        self.variance = delta * self.variance + (1 - delta) * (x - self.mu) ** 2
        c = s * self.lambda_1 + (1 - s) * self.lambda_2
        return x >= self.mu + c * self.variance**0.5

    @property
    def expected_share(self) -> float:
        """The share of SAM steps if x_t is normally distributed."""
        grid = [(i + 0.5) / 100 for i in range(100)]
        return fmean(1 - NormalDist().cdf(s * self.lambda_1 + (1 - s) * self.lambda_2) for s in grid)


class PolicySAM(SAM):
    """The base class of AE-SAM and AE-LookSAM, whose constructors set `policy`."""

    cost = "1 to 2, about 1.5"
    unschedulable = "it chooses its sharpness-aware steps itself, by ‖g‖"
    waits = "in every step, since the norm of the gradient decides whether there is a second pass"
    capturable = False
    needs_mean_g = True
    policy: Policy

    def asks_for_sam(self) -> bool:
        """Whether the gradient in `.grad` is large."""
        x = get_total_norm(self.grads(self.params_with_grad())).item() ** 2  # deliberate wait: the host has to choose
        return self.policy.asks_for_sam(x, self.t)

    @property
    def expected_propagations_per_step(self) -> float:
        """Those of the policy, if ‖g‖² is normally distributed."""
        return 1 + self.policy.expected_share

    def own_state(self) -> dict[str, Any]:
        """The state of every method, and the mean and variance of ‖g‖²."""
        return {**super().own_state(), "mu": self.policy.mu, "variance": self.policy.variance}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Load what `own_state` returned."""
        super().load_own_state(state)
        self.policy.mu, self.policy.variance = state["mu"], state["variance"]


class AESAM(PolicySAM):
    """AE-SAM around `base`.

    Args:
        base, rho, model, loss_budget, only_norm, stable: see `SAM`.
        total_steps: T ≥ 1.
        lambda_1: λ₁, the threshold of the last step in units of σ: with -1, steps with ‖g‖² ≥ μ - σ are
            sharpness-aware.
        lambda_2: λ₂, the threshold of the first step.
        delta: δ in [0, 1), the decay of mean and variance.
    """

    paper = "Jiang et al., arXiv 2304.14647"
    state_contents = "mean and variance of ‖g‖²"

    def __init__(
        self,
        base: Optimizer,
        rho: float = 0.05,
        *,
        total_steps: int,
        lambda_1: float = -1.0,
        lambda_2: float = 1.0,
        delta: float = 0.9,
        model: nn.Module | None = None,
        loss_budget: float | None = None,
        only_norm: bool = False,
        stable: bool = False,
    ) -> None:
        super().__init__(
            base, rho, model=model, loss_budget=loss_budget, only_norm=only_norm, stable=stable, total_steps=total_steps
        )
        self.policy = Policy(total_steps, lambda_1, lambda_2, delta)

    def gradient(self, closure: Closure) -> Tensor:
        """Leave gₛ or g in `.grad`; return the loss at θ."""
        loss = self.first_pass(closure)
        if self.asks_for_sam():
            self.second_pass(closure)
        return loss
