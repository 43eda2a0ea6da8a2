"""K-SAM: SAM on the k samples of the batch with the highest losses.

Ni, Chiang, Geiping, Goldblum, Wilson, Goldstein: K-SAM: Sharpness-Aware Minimization at the Speed of SGD,
arXiv 2210.12864.

    K = the k samples of B with the highest ℓᵢ(θ), by a forward pass
    ε = ρ g/‖g‖₂,   g = ∇L_K(θ)
    θ ← base step from θ along ∇L_K(θ + ε)

Cost: 2k/|B| propagations and one forward. Memory: one copy of the weights (θ).
Deviations: k is given as a share of the batch; K is chosen once, at θ. We know no code of the authors. The forward pass
over the whole batch is the step's first, so that its loss is the one returned, and it moves the BatchNorm statistics.
`ascent_share` < 1: the first pass sees that share of K, the worst first.
"""

from torch import Tensor, nn
from torch.optim import Optimizer

from sam_bench.optim.descent import Closure, number_of, require
from sam_bench.optim.sam import SAM


class KSAM(SAM):
    """K-SAM around `base`.

    Args:
        base, rho, model, ascent_share: see `SAM`.
        share: k/|B| in (0, 1]; 1 is SAM.

    """

    def __init__(
        self,
        base: Optimizer,
        rho: float = 0.05,
        share: float = 0.35,
        model: nn.Module | None = None,
        ascent_share: float = 1.0,
    ) -> None:
        require("share", share, above=0, high=1)
        super().__init__(base, rho, model, ascent_share)
        self.share = share
        self.samplewise = self.samplewise or share < 1

    def gradient(self, closure: Closure) -> Tensor:
        """Leave ∇L_K(θ + ε) in `.grad`; return the loss of the batch at θ."""
        if self.share == 1:
            return super().gradient(closure)
        losses = self.evaluate(closure)
        worst = losses.topk(number_of(self.share, len(losses))).indices
        with self.still():
            self.first_pass(closure, worst[: number_of(self.ascent_share, len(worst))])
        self.second_pass(closure, worst)
        return losses.mean()

    @property
    def expected_propagations_per_step(self) -> float:
        """The two passes."""
        return self.share * (1 + self.ascent_share)

    @property
    def expected_forwards_per_step(self) -> float:
        """The one that finds the k."""
        return float(self.share < 1)
