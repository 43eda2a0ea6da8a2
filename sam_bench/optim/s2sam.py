"""S²-SAM: SAM in a single step, with the perturbation from the previous step's gradient.

Ji, Li, Fu, Afghah, Guo, Yuan, Ma: A Single-Step, Sharpness-Aware Minimization is All You Need to Achieve Efficient and
Accurate Sparse Training, NeurIPS 2024 (OpenReview MJgMMqMDu4).

    d = the gradient that the previous step gave to the base optimizer; 0 in the first step
    ε = ρ d/‖d‖₂               the inner method's ε, with d in place of g
    θ ← base step from θ with gradient ∇L_B(θ + ε)

Around VaSSO or F-SAM, ε comes from the average or the noise of the steps before; around ASAM, or with their `eta`, it
scales with the weights. With a schedule p(t/T), which the paper does not have, some steps are the inner method's own,
of two passes.

BatchNorm statistics, loss and logits are those of the one pass, at θ + ε.
Deviations: none from the formula in the authors' code (the paper could not be accessed). With a recent torch, in which
`zero_grad` sets gradients to None, their code skips every perturbation. Their `adaptive` option scales by d² in place
of θ².
"""

from collections.abc import Hashable

from torch import Tensor

from sam_bench.optim.checks import ArgumentError
from sam_bench.optim.closure import Closure
from sam_bench.optim.rst import RST
from sam_bench.optim.sam import SAM
from sam_bench.optim.schedules import Constant, Schedule
from sam_bench.optim.ssam import SSAM


class S2SAM(RST):
    """S²-SAM with the ε of `inner`.

    Args:
        inner: SAM, ASAM, VaSSO, F-SAM, SSAM-F or SSAM-D, or a method that overrides SAM's `epsilon`.
        schedule: p(s), the probability of a step with the inner method's two passes; see `RST`. None: 0.
        total_steps, seed, warmup_steps: see `RST`. `total_steps` is required with a schedule.

    Raises:
        ArgumentError: `inner` has other passes than SAM, or an argument is out of range.
    """

    inner: SAM
    paper = "Ji et al., NeurIPS 2024"
    cost = "1 + mean of p × (inner's - 1); p is 0 without a schedule"
    unschedulable = "it has only one pass"
    takes_shards = False
    state_copies = 1
    state_contents = "the previous gradient"

    def __init__(
        self,
        inner: SAM,
        schedule: Schedule | None = None,
        total_steps: int | None = None,
        seed: int = 0,
        *,
        warmup_steps: int = 0,
    ) -> None:
        if schedule is not None and total_steps is None:
            raise ArgumentError("total_steps", None, "the number of steps of the training, which a schedule needs")
        super().__init__(inner, schedule or Constant(0), total_steps or 1, seed, warmup_steps=warmup_steps)
        if type(inner).gradient is not SAM.gradient:
            allowed = "a method with SAM's two passes, such as SAM, ASAM, VaSSO, FSAM, SSAMF or SSAMD"
            raise ArgumentError("inner", type(inner).__name__, allowed)
        if inner.ascent_share < 1 or inner.stable or (isinstance(inner, SSAM) and inner.form != "explicit"):
            allowed = "ascent_share=1, stable=false, form=explicit, since most steps have no first pass"
            raise ArgumentError("inner", type(inner).__name__, allowed)
        self.memory_copies = inner.memory_copies + 1
        self.whole_first_pass = False

    def begin(self) -> None:
        """Draw X_t; the inner method computes ε in any case."""
        super().begin()
        if not self.aware:
            self.inner.begin()

    @property
    def variant(self) -> Hashable:
        """X_t, whether there is a previous gradient, and the variant of the inner method's step."""
        return self.aware, "d" in self._memory, self.inner.variant

    def gradient(self, closure: Closure) -> Tensor:
        """Leave ∇L(θ + ε) in `.grad`; return the loss at θ + ε, or at θ where there is no ε or X_t = 1."""
        d = self._memory.get("d", {})
        if self.aware or not any(p.requires_grad for p in d):
            loss = super().gradient(closure)
        else:
            present = [(p, p.grad) for p in self.params()]
            self.inner.take_as_gradient(d)
            with self.inner.at_perturbed_weights(frozen=False):
                for p, grad in present:  # as the closure finds it under SGD, so that a missing zero_grad is detected
                    p.grad = grad
                del present, grad
                loss = self.propagate(closure)
        params = self.params_with_grad()
        self.remember("d", params, self.grads(params))
        return loss

    def end(self) -> None:
        """Finish the step."""
        if not self.aware:
            self.inner.end()
        super().end()
