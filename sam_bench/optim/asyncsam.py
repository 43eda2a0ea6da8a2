"""AsyncSAM: SAM whose perturbation comes from the gradient of the previous step, at the weights of that step.

Jo, Lim, Lee: Asynchronous Sharpness-Aware Minimization for Fast and Accurate Deep Learning, arXiv 2503.11147.

    ε_t = ρ g_{t-1}/‖g_{t-1}‖₂       g_{t-1} = ∇L_{B'}(θ_{t-1}), on the share `ascent_share` of that step's batch
    θ ← base step from θ with gradient ∇L_B(θ + ε_t)

The two gradients of a step, g_t and ∇L_B(θ + ε_t), do not depend on each other: see `side_by_side`.
Deviations: in the first step, which has no previous gradient, ε is SAM's. The delay is one step, as in their
experiments. The formula was checked against the abstract and a description by others, not against the paper or code.
"""

from torch import Tensor

from sam_bench.optim.closure import Closure
from sam_bench.optim.side_by_side import SideBySide


class AsyncSAM(SideBySide):
    """AsyncSAM around `base`. The arguments are those of `SideBySide`."""

    paper = "Jo et al., arXiv 2503.11147"
    keeps_g = True

    @property
    def variant(self) -> bool:
        """Whether it is the first step."""
        return "previous" not in self._memory

    def gradient(self, closure: Closure) -> Tensor:
        """Leave ∇L(θ + ε) in `.grad`; return the loss at θ."""
        if self.variant:
            loss = super().gradient(closure)
        else:
            chosen = self.ascent_selection(closure)
            share = self.share_of(closure, chosen)
            loss = self.both(lambda: self.propagate(closure, chosen), lambda: self.perturbed_pass(closure), share)
        self.remember_g()
        return loss

    def perturbed_pass(self, closure: Closure) -> None:
        """Leave ∇L(θ + ε), with ε from the previous gradient, in `.grad`."""
        self.take_as_gradient(self._memory["previous"])
        self.second_pass(closure)
