"""The implicit form of sparse SAM: a backward that leaves out the products with masked weights.

Mi et al., arXiv 2306.17504. Within `SparseBackward`, linear layers and 2-d convolutions give their
inputs the gradient

    ∂L/∂x = ∂L/∂y · (m ⊙ W)        instead of ∂L/∂y · W

and their weights the usual gradient. So the gradients of all but the last layers are approximations.

On an NVIDIA GPU of compute capability 8.0 or newer, in bf16, the product of a linear layer is a 2:4 sparse one if its
sides are multiples of 64. There is no sparse convolution, so convolutions use dense products. `emulated` uses dense
products throughout and so costs a little more than SAM. Other convolutions, and those with padding="same" or
"valid", are left unmasked.
"""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sam_bench.optim.checks import ArgumentError


def check_hardware(params: list[Tensor], pattern: str) -> None:
    """Raise an ArgumentError if the device, the pattern or the layers have no 2:4 products."""
    device = params[0].device
    capable = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    if not capable or pattern != "2:4":
        raise ArgumentError(
            "form",
            "implicit",
            "emulated, which computes the same with dense products; implicit needs pattern n:m with 2:4 and an NVIDIA "
            f"GPU of compute capability 8.0 or newer, and this is {device.type} with {pattern}",
        )
    if not any(p.ndim == 2 and not any(side % 64 for side in p.shape) for p in params):
        raise ArgumentError("form", "implicit", "emulated; no linear layer has sides that are multiples of 64")


# the arguments of the functions that it replaces, in order
ARGUMENTS: dict[Any, tuple[str, ...]] = {
    F.linear: ("input", "weight", "bias"),
    F.conv2d: ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
}


class SparseBackward(TorchFunctionMode):
    """Context manager: linear layers and 2-d convolutions with a mask use the masked weight in their backward."""

    def __init__(self, masks: dict[Tensor, Tensor], form: str) -> None:
        super().__init__()
        self.masks, self.form = masks, form

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace `F.linear` and `F.conv2d`."""
        kwargs = kwargs or {}
        given = dict(zip(ARGUMENTS.get(func, ()), args, strict=False)) | kwargs
        if func not in ARGUMENTS or given["weight"] not in self.masks or isinstance(given.get("padding"), str):
            return func(*args, **kwargs)
        x, weight, bias = given["input"], given["weight"], given.get("bias")
        mask = self.masks[weight]
        if torch.is_autocast_enabled(
            x.device.type
        ):  # autocast casts torch's operations, not autograd functions of our own
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weight, bias = (None if t is None else t.to(dtype) for t in (x, weight, bias))
        if self.form == "implicit" and x.dtype != torch.bfloat16:
            raise ArgumentError(
                "form", "implicit", "emulated; implicit needs bf16 autocast, as its sparse product does"
            )
        if func is F.linear:
            return _Linear.apply(x, weight, bias, mask, self.form == "implicit")
        geometry = [
            _pair(given.get(name, default)) for name, default in (("stride", 1), ("padding", 0), ("dilation", 1))
        ]
        return _Conv2d.apply(x, weight, bias, mask, *geometry, given.get("groups", 1))


def _pair(value: Any) -> list[int]:
    return list(value) if isinstance(value, (tuple, list)) else [value, value]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor, sparse: bool) -> Tensor:
        ctx.save_for_backward(x, weight, mask)
        ctx.sparse, ctx.has_bias = sparse, bias is not None
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight, mask = ctx.saved_tensors
        masked, rows = weight * mask.to(weight.dtype), grad.reshape(-1, grad.shape[-1])
        if ctx.sparse and rows.dtype == torch.bfloat16 and not any(side % 64 for side in (*weight.shape, len(rows))):
            # (m ⊙ W)ᵀ has its groups of four along the dimension that the product sums over
            grad_x = (torch.sparse.to_sparse_semi_structured(masked.t().contiguous()) @ rows.t()).t()
        else:
            grad_x = rows @ masked
        grad_bias = rows.sum(0) if ctx.has_bias else None
        return grad_x.reshape(x.shape), rows.t() @ x.reshape(-1, x.shape[-1]), grad_bias, None, None


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor, *geometry: Any) -> Tensor:
        ctx.save_for_backward(x, weight, mask)
        ctx.bias_size, ctx.geometry = None if bias is None else [len(bias)], geometry
        with torch.autocast(x.device.type, enabled=False):
            return F.conv2d(x, weight, bias, *geometry)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight, mask = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        backward, geometry = torch.ops.aten.convolution_backward, (stride, padding, dilation, False, [0, 0], groups)
        masked = weight * mask.to(weight.dtype)
        grad_x = backward(grad, x, masked, ctx.bias_size, *geometry, [True, False, False])[0]
        _, grad_weight, grad_bias = backward(
            grad, x, weight, ctx.bias_size, *geometry, [False, True, ctx.bias_size is not None]
        )
        return grad_x, grad_weight, grad_bias, None, None, None, None, None
