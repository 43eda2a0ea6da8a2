"""SSAM-F: sparse SAM whose mask follows the Fisher information.

Mi et al., arXiv 2210.05177 and 2306.17504.

    F = Σ over n drawn training examples of (∂ℓᵢ/∂θ)²           refreshed every update_steps steps, from the first on
    m = 1 at the share 1 - s of the parameters with the largest F, over all of them together
    ε = m ⊙ ρ g/‖g‖₂;  θ ← base step from θ along ∇L_B(θ + ε)

Cost: SAM's, and at each refresh n gradients of single examples, counted as n/|B| propagations. Memory, state, forms,
patterns: see `ssam`. The examples of a refresh follow from (seed, refresh).
Deviations: those of `ssam`. The authors' code adds the first sample's gradient to the one of SAM left in `.grad`, and
moves the BatchNorm statistics while it scores; this does neither.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from sam_bench.data.sampling import derived_seed
from sam_bench.optim.descent import require
from sam_bench.optim.fisher import fisher
from sam_bench.optim.ssam import SSAM


class SSAMF(SSAM):
    """SSAM-F around `base`.

    Args:
        base: see `SAM`.
        sample: n and a seed -> n training images (n, C, H, W) and classes (n,), on the device of the model.
        samples: n ≥ 1.
        batch_size: |B|, to count a refresh by; None: it is not counted.
        further: see `SSAM`; `model` is what is scored.

    Raises:
        ValueError: there is no model.

    """

    def __init__(
        self,
        base: Optimizer,
        sample: Callable[[int, int], tuple[Tensor, Tensor]],
        samples: int = 128,
        batch_size: int | None = None,
        **further: Any,
    ) -> None:
        require("samples", samples, low=1)
        super().__init__(base, **further)
        if further.get("model") is None:
            raise ValueError("Invalid model: None (the model, whose per-sample gradients SSAM-F takes)")
        self.model, self.sample, self.n_samples = further["model"], sample, samples
        self.batch_size = batch_size

    def begin(self) -> None:
        """At the start of a period, score and mask."""
        if self.is_due():
            images, labels = self.sample(self.n_samples, derived_seed("fisher", self.seed, self.t // self.update_steps))
            scores = fisher(self.model, images, labels)
            self.set_mask([scores[p] for p in self.perturbable()])
            self.counts["propagations"] += len(labels) / self.batch_size if self.batch_size else 0

    @property
    def expected_propagations_per_step(self) -> float:
        """SAM's, and the share of a refresh."""
        refresh = self.n_samples / self.batch_size if self.batch_size else 0
        return super().expected_propagations_per_step + refresh / self.update_steps
