"""ASAM: adaptive sharpness-aware minimization, whose neighborhood scales with the weights.

Kwon, Kim, Park, Choi: ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of Deep Neural Networks,
arXiv 2102.11600.

    T = |θ| + η on weights, 1 on all other parameters
    ε = ρ T²g/‖Tg‖₂
    θ ← base step from θ with gradient ∇L_B(θ + ε)

As in the authors' code, a weight is a parameter whose name contains "weight": those of convolutions, linear layers and
normalization layers, but not biases, position embeddings and class tokens.
Deviations: none. η = 0.01 is the default of the authors' class; their example script has 0.
"""

from typing import Unpack

import torch
from torch import Tensor
from torch.optim import Optimizer

from sam_bench.optim.checks import ArgumentError, require_number
from sam_bench.optim.descent import local
from sam_bench.optim.sam import SAM, Shared


class ASAM(SAM):
    """ASAM around `base`.

    Args:
        base, shared: see `SAM`.
        rho: ρ ≥ 0. Its size differs from SAM's: it is relative to the weights.
        eta: η ≥ 0, so that a weight of 0 is perturbed too; None for T = 1 everywhere, which is SAM.
        model: required unless `eta` is None; its parameter names tell which parameters are weights.
    """

    paper = "Kwon et al., arXiv 2102.11600"
    takes_shards = True

    def __init__(
        self, base: Optimizer, rho: float = 0.5, *, eta: float | None = 0.01, **shared: Unpack[Shared]
    ) -> None:
        super().__init__(base, rho, **shared)
        self.eta = eta
        self.weights: set[Tensor] = set()  # those with a T other than 1
        if eta is not None:
            require_number("eta", eta, low=0)
            if (model := shared.get("model")) is None:
                raise ArgumentError("model", None, "the model, whose parameter names tell which are weights")
            self.weights = {p for name, p in model.named_parameters() if "weight" in name}

    def epsilon(self, params: list[Tensor]) -> list[Tensor]:
        """ε, computed in place in the gradient tensors; T is in the buffer that will hold θ."""
        grads = self.grads(params)
        weights = [p for p in params if p in self.weights]
        if weights:
            assert self.eta is not None
            T, g = self.scratch("theta", weights), self.grads(weights)  # noqa: N806
            torch._foreach_copy_(T, local(weights))
            torch._foreach_abs_(T)
            torch._foreach_add_(T, self.eta)
            torch._foreach_mul_(g, T)
        norm = self.norm(grads)  # ‖Tg‖
        if weights:
            torch._foreach_mul_(g, T)
        self.scale(params, grads, norm)
        return grads
