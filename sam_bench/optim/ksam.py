"""K-SAM: SAM on the k samples of the batch with the highest losses.

Ni, Chiang, Geiping, Goldblum, Wilson, Goldstein: K-SAM: Sharpness-Aware Minimization at the Speed of SGD,
arXiv 2210.12864.

    K = the k samples of B with the highest ℓᵢ(θ), by a forward pass
    ε = ρ g/‖g‖₂,   g = ∇L_K(θ)
    θ ← base step from θ with gradient ∇L_K(θ + ε)

Deviations: k is given as a share of the batch; K is chosen once, at θ. No code of the authors is known to us. The
forward pass over the whole batch is the first of the step, so its loss is returned and it updates the BatchNorm
statistics. With `ascent_share` < 1 the first pass sees that share of K, the highest losses first.
"""

from typing import Unpack

from torch import Tensor
from torch.optim import Optimizer

from sam_bench.optim.checks import require_number
from sam_bench.optim.closure import Closure
from sam_bench.optim.descent import number_of
from sam_bench.optim.sam import SAM, Shared


class KSAM(SAM):
    """K-SAM around `base`.

    Args:
        base, rho, shared: see `SAM`.
        share: k/|B| in (0, 1]; 1 is SAM.
    """

    paper = "Ni et al., arXiv 2210.12864"
    cost = "(1 + ascent_share) · share, and 1 forward"
    selects = True

    def __init__(self, base: Optimizer, rho: float = 0.05, *, share: float = 0.35, **shared: Unpack[Shared]) -> None:
        super().__init__(base, rho, **shared)
        require_number("share", share, above=0, high=1)
        self.share = share
        self.samplewise = self.samplewise or share < 1

    def gradient(self, closure: Closure) -> Tensor:
        """Leave ∇L_K(θ + ε) in `.grad`; return the loss of the batch at θ."""
        if self.share == 1:
            return super().gradient(closure)
        losses = self.evaluate(closure)
        highest = losses.topk(number_of(self.share, len(losses))).indices
        with self.frozen_batch_norm():
            self.first_pass(closure, highest[: number_of(self.ascent_share, len(highest))])
        self.second_pass(closure, highest)
        return losses.mean()

    @property
    def expected_propagations_per_step(self) -> float:
        """Both passes."""
        return self.share * (1 + self.ascent_share)

    @property
    def expected_forwards_per_step(self) -> float:
        """The forward pass that finds K."""
        return float(self.share < 1)
