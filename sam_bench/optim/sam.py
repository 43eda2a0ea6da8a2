"""SAM: sharpness-aware minimization.

Foret, Kleiner, Mobahi, Neyshabur: Sharpness-Aware Minimization for Efficiently Improving Generalization,
arXiv 2010.01412.

    g = ∇L_B(θ)
    ε = ρ g/‖g‖₂               the norm over all perturbed parameters together
    θ ← base step from θ with gradient ∇L_B(θ + ε)

A parameter group may have a ρ of its own, `group["rho"]`, which a scheduler may change. A group with ρ = 0 is not
perturbed and not part of the norm.

Options, which most methods based on SAM share:

`ascent_share` < 1: g is the gradient of the first part of the batch (Bahri, Mobahi, Tay: Sharpness-Aware Minimization
Improves Language Model Generalization, arXiv 2110.08529). vSAM, AE-SAM and AE-LookSAM do not have this option. GSAM,
LookSAM and G-RST combine g and gₛ, which are then gradients of different sets of samples.

`loss_budget` σ: the radius is min(σ_t/‖g‖₂, ρ), with which the loss rises by σ_t to first order (LE-SAM; Wang, Liu,
Xie, Gao: Fix the Loss, Not the Radius, arXiv 2605.10183). As in the authors' code, σ_t rises to σ in the first 1/20 of
the steps and falls to 0 by a cosine in the last fifth. Deviation: it changes in every step, theirs in every epoch.

`only_norm`: ε and its norm are those of the normalization layers alone (SAM-ON; Müller et al., arXiv 2306.04226).

`stable`: the step is along gₛ‖g‖/‖gₛ‖ (Stable SAM; Tan et al., arXiv 2401.07250). ESAM does not have this option.

Deviations: none. A weight decay of the base optimizer does not enter ε; one in the loss does.

AdaSAM (Sun et al., arXiv 2303.00565) is SAM over AMSGrad: conf/optimizer/adasam.yaml. Deviation: torch's AMSGrad
applies bias correction to both moments.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

from sam_bench.optim.checks import ArgumentError, require_boolean, require_integer, require_number
from sam_bench.optim.closure import Closure, Selection
from sam_bench.optim.descent import TINY, Descent, number_of

NORMALIZATION = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)  # the first: BatchNorm, InstanceNorm


class Shared(TypedDict, total=False):
    """Keyword arguments that most methods based on SAM share; see `SAM`."""

    model: nn.Module | None
    ascent_share: float
    loss_budget: float | None
    only_norm: bool
    stable: bool
    total_steps: int | None
    sync_perturbation: bool


class SAM(Descent):
    """SAM around `base`. A subclass that changes only ε overrides `epsilon`.

    Args:
        base: an instance of any first-order `torch.optim.Optimizer`. Its groups may have a `rho` of their own.
        rho: ρ ≥ 0, the radius of the perturbation, in the units of the weights.
        model: the module that is trained. Its BatchNorm layers then update their running statistics only in the first
            pass; without it, in both passes.
        ascent_share: the share of the batch, in (0, 1], that the first pass uses. Below 1, the closure must be a
            `SampleClosure`.
        loss_budget: σ ≥ 0, in units of the loss, with ρ the largest radius; None for the fixed radius ρ.
        only_norm: whether to perturb the parameters of normalization layers alone. Requires a `model`.
        stable: whether to give gₛ the norm of g.
        total_steps: T, the number of steps of the training. Required with a `loss_budget`, which follows t/T.
        sync_perturbation: with DistributedDataParallel, compute ε from the mean gradient of all ranks, as one process
            would on the joined batch. By default each rank computes ε from its own gradient (m-sharpness), and only the
            second pass is reduced. Some methods need the mean gradient in any case (`needs_mean_g`).

    Raises:
        TypeError: `base` is not an optimizer.
        ArgumentError: an argument, or the `rho` of a parameter group, is out of range.
    """

    paper = "Foret et al., arXiv 2010.01412"
    cost = "1 + ascent_share"
    memory_copies = 1  # θ; ε takes the place of g
    perturbed_copies = 1  # how many of those are of perturbed parameters alone
    unschedulable = ""
    takes_shards = True
    mixes_g = False  # whether G-RST reads `scratch("g")` after the gradient of every step
    keeps_g = False  # whether a copy of g is kept in `scratch("g")` during the second pass
    whole_gradient = True  # whether the first pass gives the gradient of every tensor
    needs_mean_g = False  # whether g enters the update or the state, which are the same on all ranks
    selects = False  # whether the method selects samples, which each rank does in its own part of the batch

    def __init__(
        self,
        base: Optimizer,
        rho: float = 0.05,
        *,
        model: nn.Module | None = None,
        ascent_share: float = 1.0,
        loss_budget: float | None = None,
        only_norm: bool = False,
        stable: bool = False,
        total_steps: int | None = None,
        sync_perturbation: bool = False,
    ) -> None:
        super().__init__(base, model=model)
        require_boolean("sync_perturbation", sync_perturbation)
        if sync_perturbation and self.ddp and self.selects:
            allowed = "false, since each rank selects samples from its own part of the batch"
            raise ArgumentError("sync_perturbation", sync_perturbation, allowed)
        self.sync_perturbation = sync_perturbation
        require_number("ascent_share", ascent_share, above=0, high=1)
        self.ascent_share = ascent_share
        self.samplewise = self.samplewise or ascent_share < 1
        self.whole_first_pass = self.whole_first_pass and ascent_share == 1
        require_number("rho", rho, low=0)
        self.rho = rho
        require_boolean("only_norm", only_norm)
        norms = [m for m in model.modules() if isinstance(m, NORMALIZATION)] if model is not None else []
        if only_norm and not norms:
            raise ArgumentError("only_norm", True, "false without a `model` that has normalization layers")
        self.only = {p for m in norms for p in m.parameters()} if only_norm else None
        if only_norm:  # of few parameters: θ and, in some methods, their state
            self.memory_copies -= self.perturbed_copies
            self.state_copies -= max(self.perturbed_copies - 1, 0)
        require_boolean("stable", stable)
        self.stable = stable
        self.needs_mean_g = self.needs_mean_g or stable
        self.loss_budget, self.total_steps = loss_budget, total_steps
        if loss_budget is not None:
            require_number("loss_budget", loss_budget, low=0)
            require_integer("total_steps", total_steps, low=1)
            device = base.param_groups[0]["params"][0].device
            self.sigma_t = torch.empty((), device=device, dtype=torch.float32)
        for group in self.param_groups:
            self.check_group(group)

    def check_group(self, group: dict[str, Any]) -> None:
        """Raise an ArgumentError if the ρ of a parameter group is out of range."""
        require_number("rho", self.radius(group), low=0)

    def radius(self, group: dict[str, Any]) -> float:
        """ρ of a parameter group in this step: its own, or that of the constructor."""
        return self.of_group(group, "rho", self.rho)

    def of_group(self, group: dict[str, Any], name: str, default: float) -> float:
        """A setting of a parameter group, or its default.

        If the base has a setting of that name itself (Adadelta's `rho`), the group's value belongs to the base.
        """
        return default if name in self.innermost.defaults else group.get(name, default)

    def begin(self) -> None:
        """Set σ_t, in place, where a captured update reads it."""
        if self.loss_budget is not None:
            assert self.total_steps is not None
            self.sigma_t.fill_(self.loss_budget * self.annealed(self.t / self.total_steps))

    @staticmethod
    def annealed(s: float) -> float:
        """σ_t/σ at s = t/T."""
        return min(20 * s, 1.0) * (1 + math.cos(math.pi * min(max(5 * s - 4, 0.0), 1.0))) / 2

    def gradient(self, closure: Closure) -> Tensor:
        """Leave gₛ = ∇L(θ + ε) in `.grad`; return the loss at θ."""
        loss = self.first_pass(closure, self.ascent_selection(closure))
        self.second_pass(closure)
        return loss

    @property
    def reduces_first_pass(self) -> bool:
        """Whether g is the mean over all ranks of DistributedDataParallel, or each rank's own."""
        return self.sync_perturbation or self.needs_mean_g

    def first_pass(self, closure: Closure, selection: Selection | None = None) -> Tensor:
        """Leave g in `.grad`; return the loss."""
        loss = self.propagate(closure, selection, reduced=self.reduces_first_pass)
        if self.stable:
            self.norm_g = self.norm(self.grads(self.params()))
        if self.keeps_g:
            self.keep_g()
        return loss

    def keep_g(self) -> None:
        """Copy the gradients to `scratch("g")`, and zeros for trainable parameters without one.

        A parameter without a gradient in this pass may get one in the second pass.
        """
        params = self.params_with_grad()
        torch._foreach_copy_(self.scratch("g", params), self.grads(params))
        if rest := [p for p in self.params() if p.grad is None and p.requires_grad]:
            torch._foreach_zero_(self.scratch("g", rest))

    def second_pass(self, closure: Closure, selection: Selection | None = None) -> None:
        """Replace g in `.grad` by gₛ."""
        with self.at_perturbed_weights():
            self.propagate(closure, selection)
        if self.stable:
            g_s = self.grads(self.params())
            torch._foreach_mul_(g_s, self.norm_g / (self.norm(g_s) + TINY))

    @contextmanager
    def at_perturbed_weights(self, *, frozen: bool = True) -> Iterator[None]:
        """Context manager, entered with g in `.grad`: weights θ + ε, BatchNorm statistics frozen, `.grad` is None."""
        self.counts["sharpness_aware_steps"] += 1
        groups = [group for group in self.param_groups if self.is_perturbed(group)]
        params = [p for group in groups for p in group["params"] if p.grad is not None]
        if self.only is not None:
            params = [p for p in params if p in self.only]
        at = self.perturbed if frozen else self.offset_by
        with at(params, self.epsilon(params) if params else []):
            for p in self.params():
                p.grad = None  # it holds ε now, which a closure without zero_grad would add to gₛ
            yield

    def take_as_gradient(self, kept: dict[Tensor, Tensor]) -> None:
        """Put copies of kept gradients into `.grad`, in whose memory `epsilon` computes; None where none is kept.

        Parameters that were frozen in the meantime get None too.
        """
        kept = {p: g for p, g in kept.items() if p.requires_grad}
        copies = dict(zip(kept, torch._foreach_mul(list(kept.values()), 1), strict=True))
        for p in self.params():
            p.grad = copies.pop(p, None)

    def is_perturbed(self, group: dict[str, Any]) -> bool:
        """Whether the parameters of a group are perturbed."""
        return self.radius(group) != 0

    def epsilon(self, params: list[Tensor]) -> list[Tensor]:
        """ε = ρ g/‖g‖, computed in place in the gradient tensors."""
        grads = self.grads(params)
        self.scale(params, grads, self.norm(grads))
        return grads

    def scale(self, params: list[Tensor], direction: list[Tensor], norm: Tensor | float) -> None:
        """Multiply the direction by radius/norm in place, with the radius of each parameter's group."""
        norm = norm + TINY
        radii = [self.radius(group) for group in self.param_groups if self.is_perturbed(group)]
        # tensors by identity, since comparing values would wait for the device
        if len({id(rho) if isinstance(rho, Tensor) else rho for rho in radii}) == 1:
            torch._foreach_mul_(direction, self.within_budget(radii[0], norm) / norm)
            return
        part_of = dict(zip(params, direction, strict=True))
        for group in self.param_groups:
            if mine := [part_of[p] for p in group["params"] if p in part_of]:
                torch._foreach_mul_(mine, self.within_budget(self.radius(group), norm) / norm)

    def within_budget(self, rho: float | Tensor, norm: Tensor | float) -> float | Tensor:
        """ρ or, with a loss budget, min(σ_t/norm, ρ)."""
        return rho if self.loss_budget is None else (self.sigma_t / norm).clamp(max=rho)

    def ascent_selection(self, closure: Closure) -> Selection | None:
        """The samples of the first pass; None for all of them."""
        if self.ascent_share == 1:
            return None
        return slice(number_of(self.ascent_share, self.samples(closure).size))

    @property
    def expected_propagations_per_step(self) -> float:
        """The share of the batch in the first pass, and the whole of it in the second."""
        return 1 + self.ascent_share
