"""SAF: sharpness-aware training for free, which keeps the outputs near those of some epochs ago.

Du, Zhou, Feng, Tan, Zhou: Sharpness-Aware Training for Free, arXiv 2205.14083.

    θ ← base step with gradient ∇[L_B(θ) + λτ² · mean over B of KL(softmax(old_i/τ) ‖ softmax(f(x_i, θ)/τ))]
    old_i: the logits of example i Ẽ epochs ago, under that epoch's augmentation; no term before epoch E_start

Deviations: the factor τ² is that of the authors' code, which their λ belongs to; `tau_squared=False` leaves it out. The
term starts with epoch E_start, counted from 0; theirs starts with the next one. An example that had no pass in that
epoch (the last, incomplete batch is dropped) has no term. The returned loss is L_B alone. The tested model is the
trained one; the authors' script logs the accuracy of an averaged model.
"""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.optim import Optimizer

from sam_bench.optim.checks import require_boolean, require_integer, require_number, require_start
from sam_bench.optim.closure import Closure, Term
from sam_bench.optim.descent import Descent


class SAF(Descent):
    """SAF around `base`.

    Args:
        base, model: see `Descent`.
        train_size: number of examples in the training set.
        steps_per_epoch: number of steps per epoch, ≥ 1.
        lam: λ ≥ 0, the weight of the term.
        tau: τ in (0, 10⁶], the temperature.
        tau_squared: include the factor τ².
        lag_epochs: Ẽ, from 1 to 1000. The outputs of the whole training set are kept Ẽ times.
        start_steps: E_start, in steps.
        total_steps: T; if given, it is an error if the term would never start.
    """

    paper = "Du et al., arXiv 2205.14083"
    state_contents = "lag_epochs × examples × classes numbers"
    state_names = ("outputs", "recorded")
    unschedulable = "it has only one pass"
    samplewise = True

    def __init__(
        self,
        base: Optimizer,
        *,
        train_size: int,
        steps_per_epoch: int,
        lam: float = 0.3,
        tau: float = 5.0,
        tau_squared: bool = True,
        lag_epochs: int = 3,
        start_steps: int = 0,
        total_steps: int | None = None,
        model: nn.Module | None = None,
    ) -> None:
        super().__init__(base, model=model)
        require_integer("lag_epochs", lag_epochs, low=1, high=1000)
        require_integer("steps_per_epoch", steps_per_epoch, low=1)
        require_integer("train_size", train_size, low=1)
        require_integer("start_steps", start_steps, low=0)
        require_start("start_steps", start_steps, start_steps, total_steps)
        require_start("lag_epochs", lag_epochs, lag_epochs * steps_per_epoch, total_steps)
        self.train_size, self.steps_per_epoch, self.lag_epochs = train_size, steps_per_epoch, lag_epochs
        self.weight, self.tau, self.start_steps = weight_of_term(lam, tau, tau_squared), tau, start_steps
        device = base.param_groups[0]["params"][0].device
        self.slot, self.epoch = torch.zeros(2, 1, dtype=torch.int64, device=device)
        self.outputs: Tensor | None = None  # (Ẽ, examples, classes), one slot per epoch in turn
        self.recorded = torch.full((lag_epochs, train_size), -1, device=device)  # the epoch of each output

    @property
    def variant(self) -> bool:
        """Whether the step has the term."""
        return self.t >= max(self.start_steps, self.lag_epochs * self.steps_per_epoch)

    def begin(self) -> None:
        """Set the slot of this epoch's outputs, which still holds those of Ẽ epochs ago."""
        epoch = self.t // self.steps_per_epoch
        self.epoch.fill_(epoch)
        self.slot.fill_(epoch % self.lag_epochs)

    def gradient(self, closure: Closure) -> Tensor:
        """Leave the gradient of loss and term in `.grad`; return the loss."""
        samples = self.samples(closure)
        where, term = (self.slot, self.examples(closure)), None
        if self.variant and self.outputs is not None:
            self.counts["sharpness_aware_steps"] += 1
            known = self.recorded[where] == self.epoch - self.lag_epochs
            term = divergence_from(self.outputs[where], self.tau, self.weight, known)
        loss = self.propagate(closure, term=term)
        if self.outputs is None:
            shape = (self.lag_epochs, self.train_size, samples.logits.shape[1])
            self.outputs = torch.zeros(shape, device=self.slot.device, dtype=torch.float32)
        where = self.slot, self.of_all_ranks(self.examples(closure))
        self.outputs[where] = self.of_all_ranks(samples.logits.float())
        self.recorded[where] = self.epoch
        return loss


def weight_of_term(lam: float, tau: float, tau_squared: bool) -> float:
    """λτ², or λ without the factor. Raises an ArgumentError if one of them is out of range."""
    require_number("lam", lam, low=0)
    require_number("tau", tau, above=0, high=1e6)
    require_boolean("tau_squared", tau_squared)
    return lam * tau**2 if tau_squared else lam


def divergence_from(old: Tensor, tau: float, weight: float, known: Tensor | None = None) -> Term:
    """The term weight · KL(softmax(old/τ) ‖ softmax(now/τ)), averaged over samples; 0 for those not `known` (B,)."""

    def term(logits: Tensor, at: slice) -> Tensor:
        now = logits.float()
        before = F.log_softmax(old[at].float() / tau, 1)
        kl = F.kl_div(F.log_softmax(now / tau, 1), before, reduction="none", log_target=True).sum(1)
        return weight * (kl if known is None else kl * known[at]).mean()

    return term
