"""AsyncSAM: SAM whose perturbation comes from the gradient of the previous step, at the weights of that step.

Jo, Lim, Lee: Asynchronous Sharpness-Aware Minimization for Fast and Accurate Deep Learning, arXiv 2503.11147.

    ε_t = ρ g_{t-1}/‖g_{t-1}‖₂       g_{t-1} = ∇L_{B'}(θ_{t-1}), on the share `ascent_share` of that step's batch
    θ ← base step from θ with gradient ∇L_B(θ + ε_t)

The two gradients of a step, g_t and ∇L_B(θ + ε_t), do not depend on each other. With two devices the authors compute
them at the same time, so that a step lasts as long as one of SGD's. Here one follows the other, which costs what SAM
does.
Deviations: in the first step, which has no previous gradient, ε is SAM's. The delay is one step, as in their
experiments. The formula was checked against the abstract and a description by others, not against the paper or code.
"""

import torch
from torch import Tensor

from sam_bench.optim.closure import Closure, Selection
from sam_bench.optim.sam import SAM


class AsyncSAM(SAM):
    """AsyncSAM around `base`. The arguments are those of `SAM`."""

    paper = "Jo et al., arXiv 2503.11147"
    memory_copies = 2  # θ, the previous g
    state_copies = 1
    state_contents = "the previous gradient"
    unschedulable = "its perturbation comes from the step before"
    takes_shards = False
    needs_mean_g = True

    @property
    def variant(self) -> bool:
        """Whether it is the first step."""
        return "previous" not in self._memory

    def first_pass(self, closure: Closure, selection: Selection | None = None) -> Tensor:
        """Keep g for the next step, and leave the previous one in `.grad`; return the loss."""
        first = self.variant
        loss = super().first_pass(closure, selection)
        params = self.params_with_grad()
        g, previous = self.grads(params), self.memory("previous", params)
        newest = torch._foreach_mul(g, 1)
        if not first:
            torch._foreach_copy_(g, previous)
        torch._foreach_copy_(previous, newest)
        return loss
