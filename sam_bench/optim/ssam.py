"""What SSAM-F and SSAM-D share: SAM with a perturbation of a part of the weights.

Mi et al.: Make Sharpness-Aware Minimization Stronger: A Sparsified Perturbation Approach, arXiv 2210.05177;
Mi et al.: Systematic Investigation of Sparse Perturbed Sharpness-Aware Minimization Optimizer, arXiv 2306.17504.

    ε = m ⊙ ρ g/‖g‖₂        m in {0, 1}; the norm is that of the whole g, so ‖ε‖ < ρ
    θ ← base step from θ along ∇L_B(θ + ε)

Form `explicit`: g is dense, then masked: SAM's cost. `implicit`: the first backward is itself sparse, see
`sparse_backward`; `emulated`: the same with dense products, for a look at its accuracy.
Patterns: see `masks`. Cost: SAM's. Memory: two copies (θ, m). State: m.
Deviations: the mask is there from the first step on (theirs is 0 over the first interval, which is then plain descent).
In the implicit form groups run along the output dimension, over which the products of the backward sum.
"""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sam_bench.optim import masks
from sam_bench.optim.descent import Closure, Part, require
from sam_bench.optim.sam import SAM
from sam_bench.optim.sparse_backward import SparseBackward, check_hardware


class SSAM(SAM):
    """SAM around `base`, its perturbation masked.

    Args:
        base, rho, model, ascent_share: see `SAM`.
        update_steps: from one mask to the next; usually the steps of an epoch.
        sparsity: s in [0, 1), the share of the parameters that are not perturbed; `n:m` has its own.
        pattern: one of `masks.PATTERNS`.
        n, m: of `n:m`: so many of every m are perturbed.
        form: `explicit`, `implicit` or `emulated`.
        seed: of what is drawn.

    """

    def __init__(
        self,
        base: Optimizer,
        update_steps: int,
        rho: float = 0.1,
        sparsity: float = 0.5,
        pattern: str = "unstructured",
        n: int = 2,
        m: int = 4,
        form: str = "explicit",
        seed: int = 0,
        model: nn.Module | None = None,
        ascent_share: float = 1.0,
    ) -> None:
        require("sparsity", sparsity, low=0)
        if sparsity >= 1:
            raise ValueError(f"Invalid sparsity: {sparsity} (a number in [0, 1))")
        if pattern not in masks.PATTERNS:
            raise ValueError(f"Invalid pattern: {pattern} ({', '.join(masks.PATTERNS)})")
        require("m", m, low=1)
        require("n", n, low=1, high=m)
        require("update_steps", update_steps, low=1)
        super().__init__(base, rho, model, ascent_share)
        if form not in ("explicit", "implicit", "emulated"):
            raise ValueError(f"Invalid form: {form} (explicit, implicit, emulated)")
        self.dim = 1 if form == "explicit" else 0  # of the groups
        if pattern == "n:m" and not any(masks.in_groups(p, m, self.dim) for p in self.perturbable()):
            raise ValueError(f"Invalid m: {m} (a number that divides the channels of a layer)")
        if form == "implicit":
            check_hardware(self.perturbable(), f"{n}:{m}" if pattern == "n:m" else pattern)
        self.sparsity, self.pattern, self.n, self.m = sparsity, pattern, n, m
        self.form, self.update_steps, self.seed = form, update_steps, seed
        self.compilable, self.capturable = form == "explicit", form != "implicit"
        self.period = -1  # of the mask that there is

    def perturbable(self) -> list[Tensor]:
        """The parameters that a mask is over."""
        return [p for p in self.params() if p.requires_grad]

    def is_due(self) -> bool:
        """Whether the mask belongs to an earlier period."""
        return self.t // self.update_steps != self.period

    def set_mask(self, scores: list[Tensor]) -> None:
        """Ones where the scores, one an element, are highest; in place, where a captured step looks."""
        params = self.perturbable()
        if self.pattern == "n:m":
            new = masks.n_of_m(scores, self.n, self.m, self.dim)
        else:
            size = sum(p.numel() for p in params)
            new = masks.highest(scores, self.pattern, max(1, size - round(self.sparsity * size)))
        torch._foreach_copy_(self.memory("mask", params), new)
        self.period = self.t // self.update_steps

    def first_pass(self, closure: Closure, part: Part | None = None) -> Tensor:
        """Leave g in `.grad`, through a sparse backward if asked; return the loss."""
        sparse = SparseBackward(self._memory["mask"], self.form) if self.form != "explicit" else nullcontext()
        with sparse:
            return super().first_pass(closure, part)

    def epsilon(self, params: list[Tensor]) -> list[Tensor]:
        """ε, in the memory of g."""
        grads = super().epsilon(params)
        torch._foreach_mul_(grads, self.memory("mask", params))
        return grads

    def own_state(self) -> dict[str, Any]:
        """With the period of the mask."""
        return {**super().own_state(), "period": self.period}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Take back what `own_state` gave."""
        super().load_own_state(state)
        self.period = state["period"]
