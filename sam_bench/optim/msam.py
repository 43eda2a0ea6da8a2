"""MSAM: momentum-SAM, which perturbs along the momentum and so needs one pass.

Becker, Altrock, Risse: Momentum-SAM: Sharpness Aware Minimization without Computational Overhead, arXiv 2401.12033.

    θ ← base step from θ with gradient ∇L_B(θ - ρ v/‖v‖₂)      v: the base optimizer's momentum

In the first step there is no v, and no perturbation.
Deviations: the authors keep the weights perturbed from step to step and undo it for tests and checkpoints; here every
step perturbs and restores, so that everyone else sees θ. The base applies its weight decay at θ, theirs at the
perturbed weights. BatchNorm statistics, loss and logits are those of the one pass, at the perturbed weights. Before
every test the statistics are re-estimated at θ in one epoch of forward passes (`trainer.batch_norm_epochs`), averaged
over its batches. The authors do so once, at the end, with moving averages, in which the old ones then weigh nothing.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from sam_bench.optim.checks import ArgumentError, require_number
from sam_bench.optim.closure import Closure
from sam_bench.optim.descent import TINY, Descent

BUFFERS = ("momentum_buffer", "exp_avg")  # of SGD; of Adam and most of its relatives


class MSAM(Descent):
    """MSAM around `base`.

    Args:
        base: SGD with momentum, Adam, or another optimizer whose state has `momentum_buffer` or `exp_avg`. Others raise
            an ArgumentError, in the constructor or at the end of the first step.
        rho: ρ ≥ 0, the radius of the perturbation, in the units of the weights; one for all groups.
        model: not needed, since the only pass updates the BatchNorm statistics. Accepted as by every method.
    """

    paper = "Becker et al., arXiv 2401.12033"
    memory_copies = 1  # θ
    batch_norm_epochs = 1
    whole_first_pass = False
    unschedulable = "it has only one pass"

    def __init__(self, base: Optimizer, rho: float = 3.0, *, model: nn.Module | None = None) -> None:
        super().__init__(base, model=model)
        require_number("rho", rho, low=0)
        self.rho = rho
        if any(group.get("momentum") == 0 for group in base.param_groups):
            raise ArgumentError("base", f"{type(base).__name__} with momentum 0", "a base with momentum")

    def gradient(self, closure: Closure) -> Tensor:
        """Leave ∇L(θ - ρv/‖v‖) in `.grad`; return the loss there."""
        params, v = self.momenta()
        if not params:
            return self.propagate(closure)
        self.counts["sharpness_aware_steps"] += 1
        with self.offset_by(params, list(torch._foreach_mul(v, -self.rho / (get_total_norm(v) + TINY)))):
            return self.propagate(closure)

    def momenta(self) -> tuple[list[Tensor], list[Tensor]]:
        """The trainable parameters that have a momentum, and their momenta."""
        held = [(p, self.state[p].get(name)) for p in self.params() if p in self.state for name in BUFFERS]
        pairs = [(p, v) for p, v in held if v is not None and p.requires_grad]
        return [p for p, _ in pairs], [v for _, v in pairs]

    def end(self) -> None:
        """After the first step, look for the momentum."""
        if self.t == 0 and self.params_with_grad() and not self.variant:
            raise ArgumentError("base", type(self.innermost).__name__, f"one that keeps {' or '.join(BUFFERS)}")
        super().end()

    @property
    def variant(self) -> bool:
        """Whether there is a momentum."""
        return bool(self.momenta()[0])
