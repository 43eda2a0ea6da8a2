"""How sharp a minimum is: the measures of `sharpness=cheap|full` and of `python -m sam_bench.sharpness`.

All measures are of the mean cross-entropy L over a fixed part of the training images, the same ones for every run of a
data set, without augmentation, label smoothing or weight decay; BatchNorm and dropout in evaluation mode; float32.

    lambda_max          the largest eigenvalue of ∇²L; `eigenvalues` has the largest ones
    trace               of ∇²L, Hutchinson's estimate; `trace_error` is its standard error
    loss_rise           L(θ + ρĝ) - L(θ), ĝ = g/‖g‖, ρ = 0.05
    m_sharpness         the mean over micro-batches b of L_b(θ + ρĝ_b) - L_b(θ), m = 128 images (Foret et al.,
                        2010.01412)
    adaptive_sharpness  L(θ + ε) - L(θ), ε = ρT²g/‖Tg‖, T = |θ|, ρ = 0.5 (Kwon et al., 2102.11600)
    line, plane         L along one and over two random directions, scaled filter by filter (Li et al., 1712.09913)

The perturbations are one step along the gradient, not the maximum over the ball. The same ρ holds for all methods,
whatever they were trained with.
"""

import math
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sam_bench.optim.seeding import derived_seed

RHO, ADAPTIVE_RHO = 0.05, 0.5
MICRO_BATCH = 128
CHUNK = 256  # images in one pass

Batches = Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Effort:
    """How much work a measurement does."""

    images: int
    eigenvalues: int
    tolerance: float  # relative, of the eigenvalues
    samples: int  # of Hutchinson's estimate
    line: int = 0  # points
    plane: int = 0  # points in each direction
    surface_images: int = 512


EFFORTS = {"cheap": Effort(256, 1, 1e-2, 10), "full": Effort(2048, 5, 1e-4, 100, line=41, plane=21)}


def measure(model: nn.Module, images: Tensor, labels: Tensor, kind: str) -> dict[str, Any]:
    """All measures of a model; its weights and mode are put back.

    Args:
        model: on the device of the images.
        images: normalized (N, C, H, W), float32.
        labels: classes int64 (N,).
        kind: `cheap` or `full`, see EFFORTS.

    Raises:
        RuntimeError: a measure is not finite, or an operation of the model has no second derivative.
    """
    effort, start = EFFORTS[kind], time.perf_counter()
    params = [p for p in model.parameters() if p.requires_grad]
    batches = list(zip(images.split(CHUNK), labels.split(CHUNK), strict=True))
    micro_batches = list(zip(images.split(MICRO_BATCH), labels.split(MICRO_BATCH), strict=True))
    # the fused attentions have no second derivative; TF32 has 10 bits
    with as_in_testing(model), sdpa_kernel(SDPBackend.MATH), without_tf32():
        eigenvalues, trace, error = hessian(model, params, batches, effort)
        loss, grads = loss_and_gradient(model, params, batches)
        rise = loss_at(model, params, along(grads, RHO), batches) - loss
        of_micro_batches = [_rise(model, params, [each]) for each in micro_batches if len(each[1]) == MICRO_BATCH]
        scaled = [g * p.abs() for g, p in zip(grads, params, strict=True)]
        norm = nn.utils.get_total_norm(scaled) + 1e-12
        adaptive = [ADAPTIVE_RHO * s * p.detach().abs() / norm for s, p in zip(scaled, params, strict=True)]
        found = {
            "kind": kind,
            "images": len(labels),
            "loss": loss,
            "lambda_max": eigenvalues[0],
            "eigenvalues": eigenvalues,
            "trace": trace,
            "trace_error": error,
            "trace_samples": effort.samples,
            "rho": RHO,
            "loss_rise": rise,
            "m": MICRO_BATCH,
            "m_sharpness": sum(of_micro_batches) / len(of_micro_batches) if of_micro_batches else rise,
            "adaptive_rho": ADAPTIVE_RHO,
            "adaptive_sharpness": loss_at(model, params, adaptive, batches) - loss,
        }
        if effort.line:
            some = [(images[: effort.surface_images], labels[: effort.surface_images])]
            found |= surfaces(model, params, some, effort)
    if wrong := [key for key, value in found.items() if isinstance(value, float) and not math.isfinite(value)]:
        raise RuntimeError(f"{wrong[0]} is not finite")
    return found | {"seconds": time.perf_counter() - start}


def hessian(
    model: nn.Module, params: list[nn.Parameter], batches: Batches, effort: Effort
) -> tuple[list[float], float, float]:
    """The largest eigenvalues of the Hessian, its trace and the standard error of the trace."""
    from scipy.sparse.linalg import eigsh

    size = sum(p.numel() for p in params)
    draw = torch.Generator().manual_seed(derived_seed("sharpness", 0))
    first = torch.randn(size, generator=draw).numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch about itself
        from curvlinops import HessianLinearOperator

        count = sum(len(y) for _, y in batches)
        matrix = HessianLinearOperator(
            model, nn.CrossEntropyLoss(), params, batches, check_deterministic=False, num_data=count
        )
        k, tol = effort.eigenvalues, effort.tolerance
        # few Lanczos vectors: the largest eigenvalues of a model stand apart
        lanczos = min(size, max(8, 4 * k))
        values = eigsh(matrix.to_scipy(), k, which="LA", v0=first, ncv=lanczos, tol=tol, return_eigenvectors=False)
        samples = torch.empty(effort.samples)
        for i in range(effort.samples):
            signs = torch.randint(2, (size,), generator=draw).float().mul_(2).sub_(1).to(params[0].device)
            samples[i] = signs @ (matrix @ signs)
    error = samples.std() / effort.samples**0.5
    return sorted(map(float, values), reverse=True), samples.mean().item(), error.item()


def surfaces(model: nn.Module, params: list[nn.Parameter], batches: Batches, effort: Effort) -> dict[str, Any]:
    """The loss along a line and over a plane through the weights, from -1 to 1 along each direction."""
    one, two = (random_direction(params, seed) for seed in (0, 1))
    ends = torch.linspace(-1, 1, effort.line).tolist()
    line = [loss_at(model, params, [a * d for d in one], batches) for a in ends]
    side = torch.linspace(-1, 1, effort.plane).tolist()
    plane = [
        [loss_at(model, params, [a * d + b * e for d, e in zip(one, two, strict=True)], batches) for a in side]
        for b in side
    ]
    return {
        "line": {"distance": ends, "loss": _finite(line)},
        "plane": {"distance": side, "loss": [_finite(each) for each in plane]},
    }


def _finite(losses: list[float]) -> list[float | None]:
    """The losses, with None for those that overflow."""
    return [loss if math.isfinite(loss) else None for loss in losses]


def random_direction(params: list[nn.Parameter], seed: int) -> list[Tensor]:
    """A direction in which every filter has the norm of the weights' filter; 0 for biases and normalization layers."""
    draw = torch.Generator().manual_seed(derived_seed("direction", seed))
    directions = []
    for p in params:
        d = torch.randn(p.shape, generator=draw).to(p)
        if p.ndim < 2:
            directions.append(torch.zeros_like(p))
            continue
        norms = p.detach().flatten(1).norm(dim=1) / d.flatten(1).norm(dim=1).clamp_min(1e-12)
        directions.append(d * norms.reshape(-1, *[1] * (p.ndim - 1)))
    return directions


def _rise(model: nn.Module, params: list[nn.Parameter], batches: Batches) -> float:
    loss, grads = loss_and_gradient(model, params, batches)
    return loss_at(model, params, along(grads, RHO), batches) - loss


def along(grads: Sequence[Tensor], rho: float) -> list[Tensor]:
    """ρĝ."""
    norm = nn.utils.get_total_norm(grads) + 1e-12
    return [rho * g / norm for g in grads]


def loss_and_gradient(model: nn.Module, params: list[nn.Parameter], batches: Batches) -> tuple[float, list[Tensor]]:
    """L and g."""
    count, total = sum(len(y) for _, y in batches), 0.0
    grads = [torch.zeros_like(p) for p in params]
    for x, y in batches:
        loss = F.cross_entropy(model(x), y, reduction="sum") / count
        torch._foreach_add_(grads, torch.autograd.grad(loss, params, allow_unused=True, materialize_grads=True))
        total += loss.item()
    return total, grads


@torch.no_grad()
def loss_at(model: nn.Module, params: list[nn.Parameter], step: list[Tensor], batches: Batches) -> float:
    """L(θ + step); θ is put back."""
    weights: list[Tensor] = [p.detach() for p in params]
    before = [w.clone() for w in weights]
    torch._foreach_add_(weights, step)
    try:
        losses = [F.cross_entropy(model(x), y, reduction="sum").item() for x, y in batches]
    finally:
        torch._foreach_copy_(weights, before)
    return sum(losses) / sum(len(y) for _, y in batches)


@contextmanager
def as_in_testing(model: nn.Module) -> Iterator[None]:
    """Context manager: evaluation mode."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@contextmanager
def without_tf32() -> Iterator[None]:
    """Context manager: convolutions and matrix products in full float32 on a GPU."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def sample(data: Any, kind: str) -> tuple[Tensor, Tensor]:
    """The part of the training images, the same for every seed and method."""
    images, labels = data.sample(EFFORTS[kind].images, derived_seed("sharpness", 0))
    return images.float().contiguous(), labels
