"""MESA: memory-efficient sharpness-aware training, SAF with an averaged model instead of recorded outputs.

Du, Zhou, Feng, Tan, Zhou: Sharpness-Aware Training for Free, arXiv 2205.14083.

    θ ← base step with gradient ∇[L_B(θ) + λτ² · mean over B of KL(softmax(f(x_i, θ̄)/τ) ‖ softmax(f(x_i, θ)/τ))]
    θ̄ ← δθ̄ + (1 - δ)θ        after each step, BatchNorm statistics too; no term before epoch E_start

The averaged model is evaluated in evaluation mode.
Deviations: those of `saf`. Before the term starts, the averaged model is not evaluated. δ applies to each
step whatever the length of the training: the time constant of the average is 1/(1 - δ) steps (5,000 for δ = 0.9998).
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sam_bench.optim.checks import ArgumentError, require_integer, require_number, require_start
from sam_bench.optim.closure import Closure
from sam_bench.optim.descent import Descent, without_ddp
from sam_bench.optim.saf import divergence_from, weight_of_term


class MESA(Descent):
    """MESA around `base`.

    Args:
        base: see `Descent`.
        model: required; it is trained and averaged.
        lam: λ ≥ 0, the weight of the term.
        tau: τ in (0, 10⁶], the temperature.
        tau_squared: include the factor τ².
        decay: δ in [0, 1), of the average.
        start_steps: E_start, in steps.
        total_steps: T, for the expected cost; if given, it is an error if the term would never start.
    """

    paper = "Du et al., arXiv 2205.14083"
    cost = "1, and 1 forward"
    memory_copies = 1  # θ̄
    state_copies = 1
    state_contents = "the averaged model θ̄"
    unschedulable = "it has only one pass"
    samplewise = True

    def __init__(
        self,
        base: Optimizer,
        *,
        model: nn.Module | None = None,
        lam: float = 0.8,
        tau: float = 5.0,
        tau_squared: bool = True,
        decay: float = 0.9998,
        start_steps: int = 0,
        total_steps: int | None = None,
    ) -> None:
        super().__init__(base, model=model)
        require_number("decay", decay, low=0, below=1)
        require_integer("start_steps", start_steps, low=0)
        require_start("start_steps", start_steps, start_steps, total_steps)
        if model is None:
            raise ArgumentError("model", None, "the model that is trained, since MESA averages it")
        self.weight, self.tau = weight_of_term(lam, tau, tau_squared), tau
        self.decay, self.start_steps, self.total_steps = decay, start_steps, total_steps
        self.model = without_ddp(model)
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)

    @property
    def variant(self) -> bool:
        """Whether the step has the term."""
        return self.t >= self.start_steps

    def update(self, closure: Closure) -> Tensor:
        """Do the device work of the step, the average's too; return the loss at θ."""
        loss = super().update(closure)
        with torch.no_grad():
            self.mean_over_ranks([b for b in self.model.buffers() if b.is_floating_point()])
            torch._foreach_lerp_(floating_point(self.average), floating_point(self.model), 1 - self.decay)
        return loss

    def gradient(self, closure: Closure) -> Tensor:
        """Leave the gradient of loss and term in `.grad`; return the loss."""
        if not self.variant:
            return self.propagate(closure)
        self.counts["sharpness_aware_steps"] += 1
        self.evaluate(closure, model=self.average)
        return self.propagate(closure, term=divergence_from(self.samples(closure).logits, self.tau, self.weight))

    @property
    def expected_forwards_per_step(self) -> float:
        """One in every step with the term."""
        return 1 - self.start_steps / self.total_steps if self.total_steps else 1.0

    @property
    def extra_bytes(self) -> int:
        """Bytes of the buffers and of the averaged model."""
        return super().extra_bytes + sum(t.numel() * t.element_size() for t in self.average.state_dict().values())

    def own_state(self) -> dict[str, Any]:
        """The state of every method, and the averaged model."""
        return {**super().own_state(), "average": dict(self.average.state_dict())}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Load what `own_state` returned."""
        super().load_own_state(state)
        self.average.load_state_dict(state["average"])


def floating_point(model: nn.Module) -> list[Tensor]:
    """The parameters and buffers that can be averaged."""
    return [t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]
