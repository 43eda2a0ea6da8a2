"""The perturbation of a method at the current weights: its angle to the gradient, and the rise of the loss."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from sam_bench.optim import RST, S2SAM, BatchClosure, Descent

COLUMNS = ("epsilon_cosine", "epsilon_norm", "loss_at_theta", "epsilon_loss_rise")


@torch.no_grad()
def measure(optimizer: Descent, closure: BatchClosure) -> dict[str, float | None]:
    """Measure ε of the next step on the closure's batch.

    Args:
        optimizer: a copy, since its weights' gradients and its state change. For RST and G-RST, the next step is one of
            the inner method; for S²-SAM, one of a single pass.
        closure: of that copy.

    Returns:
        epsilon_cosine: between ε and g = ∇L_B(θ), in [-1, 1].
        epsilon_norm: ‖ε‖, in the units of the weights.
        loss_at_theta: L_B(θ).
        epsilon_loss_rise: L_B(θ + ε) - L_B(θ).

        All but the loss at θ are None if every pass of the step is at θ. A value that is not finite is None.
    """
    if isinstance(optimizer, RST) and not isinstance(optimizer, S2SAM):
        optimizer = optimizer.inner
    params = optimizer.params()
    theta = [p.detach().clone() for p in params]
    with torch.enable_grad():
        loss = closure()
    g = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in params]
    epsilon: list[Tensor] = []

    def look(*_: Any) -> None:
        moved = [p.detach() - t for p, t in zip(params, theta, strict=True)]
        if any(bool(each.any()) for each in moved):
            epsilon[:] = moved  # of the last such pass: SAMPa's first one is at y, without the perturbation

    hook = closure.model.register_forward_pre_hook(look)
    optimizer.begin()
    if isinstance(optimizer, S2SAM):
        optimizer.aware = False
    optimizer.gradient(closure)
    hook.remove()
    if not epsilon:
        return dict.fromkeys(COLUMNS) | {"loss_at_theta": loss.item()}
    with optimizer.offset_by(params, epsilon):
        at_epsilon = closure.evaluate().mean()
    product = sum((e * x).sum() for e, x in zip(epsilon, g, strict=True))
    norm = get_total_norm(epsilon)
    values = (product / (norm * get_total_norm(g)), norm, loss, at_epsilon - loss)
    return {name: float(v) if v.isfinite() else None for name, v in zip(COLUMNS, values, strict=True)}
