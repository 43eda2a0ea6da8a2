"""AE-LookSAM: LookSAM whose sharpness-aware steps are chosen by AE-SAM's policy instead of a period.

Jiang, Yang, Zhang, Kwok: An Adaptive Policy to Employ Sharpness-Aware Minimization, ICLR 2023, arXiv 2304.14647.

    x_t ≥ μ + c_tσ:  a SAM step, which keeps g_v = gₛ - (⟨gₛ, g⟩/‖g‖²) g
    else:            base step with gradient g + α(‖g‖/‖g_v‖) g_v

Policy: see `aesam`. Reuse: see `looksam`. Since the mean starts at 0, the first step is a SAM step (at δ = 0.9 for any
c up to 3), so there is a g_v from then on; before that it is 0.
Deviations: those of the two.
"""

from torch import Tensor, nn
from torch.optim import Optimizer

from sam_bench.optim.aesam import Policy, PolicySAM
from sam_bench.optim.closure import Closure
from sam_bench.optim.looksam import LookSAM


class AELookSAM(PolicySAM, LookSAM):
    """AE-LookSAM around `base`.

    Args:
        base, rho, model, loss_budget, only_norm, stable: see `SAM`.
        total_steps, lambda_1, lambda_2, delta: see `AESAM`.
        alpha: see `LookSAM`.
    """

    paper = "Jiang et al., arXiv 2304.14647"
    state_contents = "g_v, mean and variance of ‖g‖²"

    def __init__(
        self,
        base: Optimizer,
        rho: float = 0.05,
        *,
        total_steps: int,
        lambda_1: float = -1.0,
        lambda_2: float = 1.0,
        delta: float = 0.9,
        alpha: float = 0.7,
        model: nn.Module | None = None,
        loss_budget: float | None = None,
        only_norm: bool = False,
        stable: bool = False,
    ) -> None:
        super().__init__(
            base,
            rho,
            alpha=alpha,
            model=model,
            loss_budget=loss_budget,
            only_norm=only_norm,
            stable=stable,
            total_steps=total_steps,
        )
        self.policy = Policy(total_steps, lambda_1, lambda_2, delta)

    def gradient(self, closure: Closure) -> Tensor:
        """Leave gₛ or g + α(‖g‖/‖g_v‖)g_v in `.grad`; return the loss at θ."""
        loss = self.first_pass(closure)
        if self.asks_for_sam():
            self.second_pass(closure)
            self.look()
        else:
            self.reuse()
        return loss
