"""Which weights sparse SAM perturbs: masks of ones and zeros from scores (arXiv 2210.05177, 2306.17504).

A unit is what is perturbed as a whole: with `unstructured` an element, with `channel` an output channel (the first
dimension), with `tensor` a tensor. Its score is the mean over its elements. `n:m` keeps the best n of every m
consecutive weights along the input dimension (the second).
"""

import torch
from torch import Tensor

PATTERNS = ("unstructured", "tensor", "channel", "n:m")


def highest(scores: list[Tensor], pattern: str, active: int) -> list[Tensor]:
    """Masks with `active` ones at the units of highest score, over all tensors together.

    If units are larger than an element, those that no longer fit are left out, and at least one is kept.
    """
    units = [unit_scores(s, pattern) for s in scores]
    sizes = torch.cat([unit_sizes(s, pattern) for s in scores])
    order = torch.cat(units).argsort(descending=True, stable=True)
    if pattern == "unstructured":
        kept = torch.arange(len(order), device=order.device) < active
    else:
        left, fits = active, []
        for size in sizes[order].tolist():
            fits.append(size <= left)
            left -= size * fits[-1]
        if not any(fits):
            fits[int(sizes[order].argmin())] = True
        kept = torch.tensor(fits, device=order.device)
    mask = torch.zeros(len(order), device=order.device, dtype=torch.float32).index_copy_(0, order, kept.float())
    per_tensor = mask.split([u.numel() for u in units])
    return [spread(values, s, pattern) for values, s in zip(per_tensor, scores, strict=True)]


def unit_scores(scores: Tensor, pattern: str) -> Tensor:
    """The scores (units,) of a tensor's units."""
    if pattern == "tensor":
        return scores.mean().reshape(1)
    if pattern == "channel" and scores.ndim:
        return scores.flatten(1).mean(1) if scores.ndim > 1 else scores
    return scores.flatten()


def unit_sizes(scores: Tensor, pattern: str) -> Tensor:
    """The number of elements (units,) of each unit."""
    units = unit_scores(scores.detach(), pattern)
    return torch.full_like(units, scores.numel() // units.numel(), dtype=torch.int64)


def spread(units: Tensor, like: Tensor, pattern: str) -> Tensor:
    """Expand one number per unit (units,) to one per element, with the shape and dtype of `like`."""
    if pattern == "channel" and like.ndim:
        units = units.reshape(-1, *[1] * (like.ndim - 1))
    elif pattern != "tensor":
        units = units.reshape(like.shape)
    return units.to(like.dtype).expand(like.shape).contiguous()


def n_of_m(scores: list[Tensor], n: int, m: int, dim: int = 1) -> list[Tensor]:
    """Masks with exactly n ones in every m consecutive weights along `dim`, at the highest scores.

    A tensor without that dimension (biases, norms), or whose size along it is not divisible by m, gets all ones.
    """
    masks = []
    for s in scores:
        if not has_groups(s, m, dim):
            masks.append(torch.ones_like(s))
            continue
        last = s.movedim(dim, -1)
        groups = last.reshape(-1, m)
        best = groups.topk(n, 1).indices
        mask = torch.zeros_like(groups).scatter_(1, best, 1.0)
        masks.append(mask.reshape(last.shape).movedim(-1, dim).contiguous())
    return masks


def has_groups(weight: Tensor, m: int, dim: int = 1) -> bool:
    """Whether a tensor divides into groups of m weights along `dim`."""
    return weight.ndim > 1 and weight.shape[dim] % m == 0
