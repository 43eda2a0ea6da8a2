"""SSAM-D: sparse SAM whose mask changes by dropping and growing weights.

Mi et al., arXiv 2210.05177 and 2306.17504.

    at first m has ones at a random share 1 - s
    every update_steps steps, in period e of E:   f = (drop_rate/2)(1 + cos(πe/E))
        drop the share f of the active weights with the smallest |g|;  grow equally many inactive ones, at random
    ε = m ⊙ ρ g/‖g‖₂;  θ ← base step from θ with gradient ∇L_B(θ + ε)

g is the gradient of the step's first pass. The draws depend only on (seed, period) and on the kind of device. Forms,
patterns: see `ssam`.
Deviations: those of `ssam`. A new mask applies from the step in which it is due; theirs changes after that step's
perturbation and applies from the next one. As many weights grow as were dropped, so the active share is constant
(theirs falls). A dropped weight grows again only if there are too few others. With `tensor` and `channel`, whole units
are dropped, up to f of the active elements, and units that fit into the share grow. With `n:m`, each group keeps its n.
"""

import math
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sam_bench.optim.checks import require_choice, require_integer, require_number
from sam_bench.optim.masks import spread, unit_scores, unit_sizes
from sam_bench.optim.seeding import derived_seed
from sam_bench.optim.ssam import SSAM

CRITERIA = ("gradient", "weight", "random")


class SSAMD(SSAM):
    """SSAM-D around `base`.

    Args:
        base, rho: see `SAM`.
        total_steps: T ≥ 1; E = T/update_steps.
        drop_rate: initial share of the active weights to drop, in [0, 1].
        drop: criterion for dropping: `gradient`, `weight` or `random`. The smallest are dropped.
        grow: criterion for growing, with the same choices. The largest grow.
        further: see `SSAM`.
    """

    def __init__(
        self,
        base: Optimizer,
        rho: float = 0.1,
        *,
        total_steps: int,
        drop_rate: float = 0.5,
        drop: str = "gradient",
        grow: str = "random",
        **further: Any,
    ) -> None:
        super().__init__(base, rho, total_steps=total_steps, **further)
        require_integer("total_steps", total_steps, low=1)
        require_number("drop_rate", drop_rate, low=0, high=1)
        require_choice("drop", drop, CRITERIA)
        require_choice("grow", grow, CRITERIA)
        self.total_steps: int = total_steps
        self.drop_rate, self.drop, self.grow = drop_rate, drop, grow

    def begin(self) -> None:
        """Before the first step, draw a random mask."""
        super().begin()
        if self.period < 0:
            self.set_mask(self.criterion("random", self.perturbable(), self.generator(0)))

    def generator(self, period: int) -> torch.Generator:
        """The random generator for the mask of a period."""
        return torch.Generator(self.params()[0].device).manual_seed(derived_seed("ssam_d", self.seed, period))

    @property
    def variant(self) -> Hashable:
        """The period if the step changes the mask; such a step is the only one of its variant."""
        return self.t // self.update_steps if self.is_due() else None

    @property
    def reduces_first_pass(self) -> bool:
        """Whether g is the mean over all ranks: also if a new mask follows from it."""
        return super().reduces_first_pass or (self.is_due() and "gradient" in (self.drop, self.grow))

    def epsilon(self, params: list[Tensor]) -> list[Tensor]:
        """ε, with a new mask if one is due."""
        if self.is_due():
            self.change_mask()
        return super().epsilon(params)

    def change_mask(self) -> None:
        """Change the mask: drop and grow."""
        params = self.perturbable()
        e = self.t // self.update_steps
        f = self.drop_rate / 2 * (1 + math.cos(math.pi * min(1.0, e * self.update_steps / self.total_steps)))
        draw = self.generator(e)
        units = "unstructured" if self.pattern == "n:m" else self.pattern
        active = torch.cat([unit_scores(m, units) for m in self.memory("mask", params)]) > 0
        to_drop, to_grow = (
            torch.cat([unit_scores(s, units).float() for s in self.criterion(name, params, draw)])
            for name in (self.drop, self.grow)
        )
        sizes = torch.cat([unit_sizes(p, units) for p in params])
        smallest = to_drop.masked_fill(~active, torch.inf).argsort(stable=True)
        dropped = smallest[sizes[smallest].cumsum(0) <= int(f * sizes[active].sum())]
        # highest score: those that stay; then the inactive ones by the criterion for growing; then the dropped ones
        order = (to_grow.argsort(stable=True).argsort() / len(active)).float()
        score = torch.where(active, torch.full_like(order, 2.0), order).index_fill_(0, dropped, -1.0)
        per_tensor = score.split([unit_scores(p, units).numel() for p in params])
        self.set_mask([spread(scores, p.detach(), units) for scores, p in zip(per_tensor, params, strict=True)])

    def criterion(self, name: str, params: list[Tensor], draw: torch.Generator) -> list[Tensor]:
        """The scores by which elements are ranked: |g|, |θ| or random numbers."""
        if name == "random":
            return [torch.rand(p.shape, generator=draw, device=p.device, dtype=torch.float32) for p in params]
        if name == "weight":
            return [p.detach().abs() for p in params]
        return [torch.zeros_like(p) if p.grad is None else p.grad.abs() for p in params]
