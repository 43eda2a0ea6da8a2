"""SSAM-F: sparse SAM whose mask follows the Fisher information.

Mi et al., arXiv 2210.05177 and 2306.17504.

    F = Σ over n random training examples of (∂ℓᵢ/∂θ)²           at the start of every period of update_steps steps
    m = 1 for the share 1 - s of all weights with the largest F
    ε = m ⊙ ρ g/‖g‖₂;  θ ← base step from θ with gradient ∇L_B(θ + ε)

A new mask takes n gradients of single examples, counted as n/|B| propagations. Its examples depend only on
(seed, period). Forms, patterns: see `ssam`.
Deviations: those of `ssam`. The authors' code adds the first sample's gradient to the one of SAM left in `.grad` and
updates the BatchNorm statistics while it scores; this does neither.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from sam_bench.optim.checks import ArgumentError, require_integer
from sam_bench.optim.descent import without_ddp
from sam_bench.optim.fisher import fisher
from sam_bench.optim.seeding import derived_seed
from sam_bench.optim.ssam import SSAM


class SSAMF(SSAM):
    """SSAM-F around `base`.

    Args:
        base, rho: see `SAM`.
        sample: called with n and a seed, returns n training images (n, C, H, W) and classes (n,) on the model's device.
        samples: n ≥ 1 and at least the number of ranks, at most the number of training images.
        batch_size: |B|, to count the propagations of a new mask; None: they are not counted.
        further: see `SSAM`. `model` is required, for its per-sample gradients.
    """

    cost = "1 + ascent_share, and samples/batch at a new mask"

    def __init__(
        self,
        base: Optimizer,
        rho: float = 0.1,
        *,
        sample: Callable[[int, int], tuple[Tensor, Tensor]],
        samples: int = 128,
        batch_size: int | None = None,
        **further: Any,
    ) -> None:
        super().__init__(base, rho, **further)
        require_integer("samples", samples, low=self.ranks)
        if further.get("model") is None:
            raise ArgumentError("model", None, "the model, whose per-sample gradients SSAM-F takes")
        self.model, self.sample, self.n_samples = without_ddp(further["model"]), sample, samples
        self.batch_size = batch_size

    def begin(self) -> None:
        """At the start of a period, compute the scores and the mask."""
        super().begin()
        if self.is_due():
            images, labels = self.sample(self.n_samples, derived_seed("fisher", self.seed, self.t // self.update_steps))
            if len(labels) < self.n_samples:
                raise ArgumentError("samples", self.n_samples, f"at most the {len(labels)} training images")
            mine = slice(self.rank, None, self.ranks)  # the mean over ranks orders the scores as their sum does
            scores = fisher(self.model, images[mine], labels[mine])
            self.set_mask(self.mean_over_ranks([scores[p] for p in self.perturbable()]))
            self.counts["propagations"] += len(labels) / self.batch_size if self.batch_size else 0

    @property
    def mask_propagations_per_step(self) -> float:
        """n/|B| at each new mask."""
        return self.n_samples / self.batch_size / self.update_steps if self.batch_size else 0.0

    @property
    def expected_propagations_per_step(self) -> float:
        """SAM's, and those of the masks."""
        return super().expected_propagations_per_step + self.mask_propagations_per_step
