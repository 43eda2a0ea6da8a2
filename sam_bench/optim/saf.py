"""SAF: sharpness-aware training for free, which holds the outputs near those of some epochs ago.

Du, Zhou, Feng, Tan, Zhou: Sharpness-Aware Training for Free, arXiv 2205.14083.

    θ ← base step along ∇[L_B(θ) + λτ² · mean over B of KL(softmax(old_i/τ) ‖ softmax(f(x_i, θ)/τ))]
    old_i: the logits of example i in the pass of Ẽ epochs ago, under that epoch's augmentation; no term before E_start

Cost: 1 propagation. Memory: Ẽ logits a class and an example of the training set, all of it state; no copy of weights.
Deviations: the factor τ² is that of the authors' code, which their λ belongs to; `tau_squared=False` leaves it out. The
term starts with epoch E_start, counted from 0, theirs with the one after. An example that had no pass in that epoch
(the last, incomplete batch is left out) has no term. The loss returned is L_B alone. Tested is the trained model, where
the authors' script logs the accuracy of an averaged one.
"""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.optim import Optimizer

from sam_bench.optim.descent import Closure, Descent, Term, require


class SAF(Descent):
    """SAF around `base`.

    Args:
        base, model: see `Descent`.
        train_size: examples of the training set.
        steps_per_epoch: ≥ 1.
        lam: λ ≥ 0.
        tau: τ > 0, the temperature.
        tau_squared: whether the factor τ² is there.
        lag_epochs: Ẽ ≥ 1.
        start_steps: E_start, in steps.

    """

    samplewise = True

    def __init__(
        self,
        base: Optimizer,
        train_size: int,
        steps_per_epoch: int,
        lam: float = 0.3,
        tau: float = 5.0,
        tau_squared: bool = True,
        lag_epochs: int = 3,
        start_steps: int = 0,
        model: nn.Module | None = None,
    ) -> None:
        require("lam", lam, low=0)
        require("tau", tau, above=0)
        require("lag_epochs", lag_epochs, low=1)
        require("steps_per_epoch", steps_per_epoch, low=1)
        require("train_size", train_size, low=1)
        require("start_steps", start_steps, low=0)
        super().__init__(base, model)
        self.train_size, self.steps_per_epoch, self.lag_epochs = train_size, steps_per_epoch, lag_epochs
        self.weight, self.tau, self.start_steps = lam * (tau**2 if tau_squared else 1), tau, start_steps
        device = base.param_groups[0]["params"][0].device
        self.slot, self.epoch = torch.zeros(2, 1, dtype=torch.int64, device=device)
        self.outputs: Tensor | None = None  # (Ẽ, examples, classes), a slot an epoch in turn
        self.recorded = torch.full((lag_epochs, train_size), -1, device=device)  # in which epoch each was

    @property
    def kind(self) -> bool:
        """Whether there is a term."""
        return self.t >= max(self.start_steps, self.lag_epochs * self.steps_per_epoch)

    def begin(self) -> None:
        """Where this epoch's outputs go, and those of Ẽ epochs ago are."""
        epoch = self.t // self.steps_per_epoch
        self.epoch.fill_(epoch)
        self.slot.fill_(epoch % self.lag_epochs)

    def gradient(self, closure: Closure) -> Tensor:
        """Leave the gradient of loss and term in `.grad`; return the loss."""
        samples = self.samples(closure)
        where, term = (self.slot, self.examples(closure)), None
        if self.kind and self.outputs is not None:
            self.counts["sharpness_aware_steps"] += 1
            known = self.recorded[where] == self.epoch - self.lag_epochs
            term = toward(self.outputs[where], self.tau, self.weight, known)
        loss = self.propagate(closure, term=term)
        if self.outputs is None:
            shape = (self.lag_epochs, self.train_size, samples.logits.shape[1])
            self.outputs = torch.zeros(shape, device=self.slot.device)
        self.outputs[where] = samples.logits.float()
        self.recorded[where] = self.epoch
        return loss

    def own_state(self) -> dict[str, Any]:
        """With the outputs."""
        return {**super().own_state(), "outputs": self.outputs, "recorded": self.recorded}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Take back what `own_state` gave."""
        super().load_own_state(state)
        outputs = state["outputs"]
        self.outputs = None if outputs is None else outputs.to(self.slot.device, copy=True)
        self.recorded.copy_(state["recorded"])


def toward(old: Tensor, tau: float, weight: float, known: Tensor | None = None) -> Term:
    """The term weight · KL(softmax(old/τ) ‖ softmax(now/τ)), mean over samples; old (B, C), 0 where not known (B,)."""

    def term(logits: Tensor, at: slice) -> Tensor:
        now = logits.float()
        before = F.log_softmax(old[at].float() / tau, 1)
        kl = F.kl_div(F.log_softmax(now / tau, 1), before, reduction="none", log_target=True).sum(1)
        return weight * (kl if known is None else kl * known[at]).mean()

    return term
