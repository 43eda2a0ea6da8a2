"""MESA: memory-efficient sharpness-aware training, SAF with an averaged model in the place of recorded outputs.

Du, Zhou, Feng, Tan, Zhou: Sharpness-Aware Training for Free, arXiv 2205.14083.

    θ ← base step along ∇[L_B(θ) + λτ² · mean over B of KL(softmax(f(x_i, θ̄)/τ) ‖ softmax(f(x_i, θ)/τ))]
    θ̄ ← δθ̄ + (1 - δ)θ        after each step, BatchNorm statistics too; no term before E_start

Cost: 1 propagation and one forward, of the averaged model in evaluation mode. Memory and state: one model (θ̄).
Deviations: the factor τ² is that of the authors' code, which their λ belongs to; `tau_squared=False` leaves it out. The
term starts with epoch E_start, counted from 0, theirs with the one after, and before it there is no forward of the
averaged model. The loss returned is L_B alone. Tested is the trained model, where the authors' script logs the averaged
one's accuracy. δ is a number of steps (0.9998: 5,000), whatever the length of the training.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sam_bench.optim.descent import Closure, Descent, require
from sam_bench.optim.saf import toward


class MESA(Descent):
    """MESA around `base`.

    Args:
        base: see `Descent`.
        model: what is trained, and averaged.
        lam: λ ≥ 0.
        tau: τ > 0, the temperature.
        tau_squared: whether the factor τ² is there.
        decay: δ in [0, 1], of the average.
        start_steps: E_start, in steps.

    Raises:
        ValueError: there is no model.

    """

    samplewise = True

    def __init__(
        self,
        base: Optimizer,
        model: nn.Module | None = None,
        lam: float = 0.8,
        tau: float = 5.0,
        tau_squared: bool = True,
        decay: float = 0.9998,
        start_steps: int = 0,
    ) -> None:
        require("lam", lam, low=0)
        require("tau", tau, above=0)
        require("decay", decay, low=0, high=1)
        require("start_steps", start_steps, low=0)
        if model is None:
            raise ValueError("Invalid model: None (the model that is trained, since MESA averages it)")
        super().__init__(base, model)
        self.weight, self.tau = lam * (tau**2 if tau_squared else 1), tau
        self.decay, self.start_steps = decay, start_steps
        self.model, self.average = model, copy.deepcopy(model).eval().requires_grad_(False)

    @property
    def kind(self) -> bool:
        """Whether there is a term."""
        return self.t >= self.start_steps

    def update(self, closure: Closure) -> Tensor:
        """One update, of θ̄ too; returns the loss at θ."""
        loss = super().update(closure)
        torch._foreach_lerp_(numbers(self.average), numbers(self.model), 1 - self.decay)
        return loss

    def gradient(self, closure: Closure) -> Tensor:
        """Leave the gradient of loss and term in `.grad`; return the loss."""
        if not self.kind:
            return self.propagate(closure)
        self.counts["sharpness_aware_steps"] += 1
        self.evaluate(closure, model=self.average)
        return self.propagate(closure, term=toward(self.samples(closure).logits, self.tau, self.weight))

    @property
    def expected_forwards_per_step(self) -> float:
        """Of a step with the term."""
        return 1.0

    @property
    def extra_bytes(self) -> int:
        """With the averaged model."""
        return super().extra_bytes + sum(t.numel() * t.element_size() for t in self.average.state_dict().values())

    def own_state(self) -> dict[str, Any]:
        """With the averaged model."""
        return {**super().own_state(), "average": dict(self.average.state_dict())}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Take back what `own_state` gave."""
        super().load_own_state(state)
        self.average.load_state_dict(state["average"])


def numbers(model: nn.Module) -> list[Tensor]:
    """Parameters, and buffers that can be averaged."""
    return [t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]
