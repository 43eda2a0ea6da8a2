"""What SSAM-F and SSAM-D share: SAM with a perturbation of a part of the weights.

Mi et al.: Make Sharpness-Aware Minimization Stronger: A Sparsified Perturbation Approach, arXiv 2210.05177;
Mi et al.: Systematic Investigation of Sparse Perturbed Sharpness-Aware Minimization Optimizer, arXiv 2306.17504.

    ε = m ⊙ ρ g/‖g‖₂        m in {0, 1}; the norm is that of the whole g, so ‖ε‖ ≤ ρ
    θ ← base step from θ with gradient ∇L_B(θ + ε)

Forms: `explicit`: g is dense, then masked. `implicit`: the first backward is itself sparse, see `sparse_backward`.
`emulated`: the same with dense products, to study its accuracy. Patterns: see `masks`.
Deviations: there is a mask from the first step on (theirs is 0 over the first interval, which is then plain descent).
With `tensor`, a tensor that no longer fits into the share 1 - s is left out; theirs is kept, so that up to one tensor
more is perturbed (21 % of the weights of ResNet-18). Groups of `n:m` run along the input dimension, of convolutions
too, as the papers have it; their code ranks along the output channels of convolutions and applies the mask
untransposed. In the implicit form, groups run along the output dimension, over which the products of the backward sum.
"""

from contextlib import nullcontext
from typing import Unpack

import torch
from torch import Tensor
from torch.optim import Optimizer

from sam_bench.optim import masks
from sam_bench.optim.checks import ArgumentError, require_choice, require_integer, require_number
from sam_bench.optim.closure import Closure, Selection
from sam_bench.optim.sam import SAM, Shared
from sam_bench.optim.sparse_backward import SparseBackward, check_hardware

FORMS = ("explicit", "implicit", "emulated")


class SSAM(SAM):
    """SAM around `base` with a masked perturbation.

    Args:
        base, rho, shared: see `SAM`.
        update_steps: number of steps between two masks, usually one epoch.
        sparsity: s in [0, 1), the share of the weights that is not perturbed. Default: 0.5. Not allowed with `n:m`.
        pattern: one of `masks.PATTERNS`.
        n, m: n of every m consecutive weights are perturbed. Default: 2 of 4. Only with the pattern `n:m`.
        form: one of `FORMS`.
        seed: seed of the random draws, ≥ 0.
    """

    paper = "Mi et al., arXiv 2210.05177, 2306.17504"
    memory_copies = 2  # θ, m
    perturbed_copies = 2
    state_copies = 1
    state_contents = "the mask"
    state_names = ("period",)
    waits = "when a new mask is computed"

    def __init__(
        self,
        base: Optimizer,
        rho: float = 0.1,
        *,
        update_steps: int,
        sparsity: float | None = None,
        pattern: str = "unstructured",
        n: int | None = None,
        m: int | None = None,
        form: str = "explicit",
        seed: int = 0,
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(base, rho, **shared)
        require_choice("pattern", pattern, masks.PATTERNS)
        without_effect = {"sparsity": sparsity} if pattern == "n:m" else {"n": n, "m": m}
        for name, value in without_effect.items():
            if value is not None:
                raise ArgumentError(name, value, f"null with pattern {pattern}, on which it has no effect")
        sparsity, n, m = (0.5 if sparsity is None else sparsity), (2 if n is None else n), (4 if m is None else m)
        require_number("sparsity", sparsity, low=0, below=1)
        require_choice("form", form, FORMS)
        require_integer("m", m, low=1)
        require_integer("n", n, low=1)
        require_integer("update_steps", update_steps, low=1)
        require_integer("seed", seed, low=0)
        if n > m:
            raise ArgumentError("n", n, f"at most m, which is {m}")
        self.dim = 1 if form == "explicit" else 0  # of the groups
        if pattern == "n:m" and not any(masks.has_groups(p, m, self.dim) for p in self.perturbable()):
            raise ArgumentError("m", m, "a number that divides the channels of a layer")
        if form == "implicit":
            check_hardware(self.perturbable(), f"{n}:{m}" if pattern == "n:m" else pattern)
        self.sparsity, self.pattern, self.n, self.m = sparsity, pattern, n, m
        self.form, self.update_steps, self.seed = form, update_steps, seed
        self.compilable, self.capturable = form == "explicit", form != "implicit"
        self.period = -1  # of the current mask

    def perturbable(self) -> list[Tensor]:
        """The parameters that the mask covers."""
        return [p for p in self.params() if p.requires_grad and (self.only is None or p in self.only)]

    def is_due(self) -> bool:
        """Whether the mask is from an earlier period, so that this step needs a new one."""
        return self.t // self.update_steps != self.period

    def set_mask(self, scores: list[Tensor]) -> None:
        """Put ones where the scores, one per element, are highest; in place, where a captured step reads the mask."""
        params = self.perturbable()
        if self.pattern == "n:m":
            new = masks.n_of_m(scores, self.n, self.m, self.dim)
        else:
            size = sum(p.numel() for p in params)
            new = masks.highest(scores, self.pattern, max(1, size - round(self.sparsity * size)))
        torch._foreach_copy_(self.memory("mask", params), new)
        self.period = self.t // self.update_steps

    def first_pass(self, closure: Closure, selection: Selection | None = None) -> Tensor:
        """Leave g in `.grad`, by a sparse backward unless the form is explicit; return the loss."""
        sparse = SparseBackward(self._memory["mask"], self.form) if self.form != "explicit" else nullcontext()
        with sparse:
            return super().first_pass(closure, selection)

    def epsilon(self, params: list[Tensor]) -> list[Tensor]:
        """ε, computed in place in the gradient tensors."""
        grads = super().epsilon(params)
        torch._foreach_mul_(grads, self.memory("mask", params))
        return grads
