"""The closure that every method calls: zero_grad, forward, backward."""

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from sam_bench.optim import Descent
from sam_bench.settings import TrainerSettings

Forward = Callable[[nn.Module, Tensor, Tensor, float, bool], tuple[Tensor, Tensor]]


def forward(model: nn.Module, images: Tensor, labels: Tensor, smoothing: float, bf16: bool) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy and logits. A function of its model, so that one compilation serves all seeds."""
    # bf16 needs no gradient scaler
    with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=bf16):
        logits = model(images)
        return F.cross_entropy(logits, labels, label_smoothing=smoothing), logits


class Closure:
    """zero_grad, forward and backward over the micro-batches of the current batch, as often as a method asks.

    Args:
        model: in the mode that it is to be evaluated in.
        optimizer: whose `zero_grad` is called.
        trainer: `accumulate`, `label_smoothing`, `precision` and `channels_last` of it.
        decay: λ of a term ½λ‖θ‖² of the loss.

    """

    def __init__(self, model: nn.Module, optimizer: Descent, trainer: TrainerSettings, decay: float = 0.0) -> None:
        self.model, self.optimizer, self.trainer, self.decay = model, optimizer, trainer, decay
        self.decayed: list[Tensor] = [p for p in model.parameters() if p.requires_grad and is_decayed(p, trainer)]
        self.forward: Forward = forward

    def compile(self) -> None:
        """Run compiled from here on, forward and backward."""
        self.forward = torch.compile(forward)

    def batch(self, images: Tensor, labels: Tensor) -> None:
        """Set the batch of the next step."""
        self.images, self.labels = images.contiguous(memory_format=memory_format(self.trainer)), labels
        self.logits: list[Tensor] = []

    def __call__(self) -> Tensor:
        """The mean loss of the batch at the present weights, with its gradients in `.grad`."""
        self.optimizer.zero_grad()
        trainer, parts = self.trainer, self.trainer.accumulate
        total = torch.zeros((), device=self.images.device)
        for images, labels in zip(self.images.chunk(parts), self.labels.chunk(parts), strict=True):
            loss, logits = self.forward(
                self.model, images, labels, trainer.label_smoothing, trainer.precision == "bf16"
            )
            loss = loss / parts
            loss.backward()
            total += loss.detach()
            self.logits.append(logits.detach())
        if self.decay:
            # the gradient of ½λ‖θ‖², without a graph for it; the loss that is reported leaves it out
            reached = [p for p in self.decayed if p.grad is not None]
            with torch.no_grad():
                torch._foreach_add_(Descent.grads(reached), reached, alpha=self.decay)
        return total

    def correct(self) -> Tensor:
        """How many of the batch the first pass of the step, the one at θ, had right."""
        return (torch.cat(self.logits[: self.trainer.accumulate]).argmax(1) == self.labels).sum()

    def flops(self) -> int:
        """Floating-point operations of the matrix products and convolutions of one call, which this makes."""
        from torch.utils.flop_counter import FlopCounterMode  # a seventh of a second, and few ask

        with FlopCounterMode(display=False) as counter:
            self()
        return counter.get_total_flops()


def is_decayed(p: Tensor, trainer: TrainerSettings) -> bool:
    """Whether weight decay reaches a parameter: BatchNorm's and biases are the ones of one dimension."""
    return trainer.decay_norm_and_bias or p.ndim > 1


def memory_format(trainer: TrainerSettings) -> torch.memory_format:
    """How images and convolutions lie in memory."""
    return torch.channels_last if trainer.channels_last else torch.contiguous_format
