"""The diagonal of the empirical Fisher information: F = Σᵢ (∂ℓᵢ/∂θ)², true labels, per-sample gradients."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap


def fisher(model: nn.Module, images: Tensor, labels: Tensor, chunk: int = 8) -> dict[Tensor, Tensor]:
    """F of every trained parameter, over images (n, C, H, W) and classes (n,).

    Evaluated in evaluation mode: BatchNorm normalizes by its running statistics, so that every sample has a gradient of
    its own, and nothing changes. `.grad` is not touched.

    `chunk` samples are processed at once, each with a gradient of the size of the weights.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    theta = {name: p.detach() for name, p in trained.items()}

    def loss(theta: Mapping[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, dict(theta), (image[None],)), label[None])

    gradients = vmap(grad(loss), in_dims=(None, 0, 0))
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        scores = {name: torch.zeros_like(p) for name, p in theta.items()}
        with torch.autocast(images.device.type, enabled=False):
            for some_images, some_labels in zip(images.split(chunk), labels.split(chunk), strict=True):
                for name, g in gradients(theta, some_images, some_labels).items():
                    scores[name] += g.square().sum(0)
    finally:
        for module, training in modes:
            module.training = training
    return {p: scores[name] for name, p in trained.items()}
