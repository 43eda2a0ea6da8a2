"""Closures, which `step` calls once per pass, and `BatchClosure`, which also gives per-sample losses."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

Closure = Callable[[], Tensor]  # zero_grad, forward, backward; returns the loss
Selection = slice | Tensor  # samples of the batch: the first n, or int64 indices (n,)
Term = Callable[[Tensor, slice], Tensor]  # logits (n, C) of a slice of the batch -> a term to add to their mean loss
Forward = Callable[[nn.Module, Tensor, Tensor, float, bool], tuple[Tensor, Tensor]]


@runtime_checkable
class SampleClosure(Protocol):
    """A closure that also gives per-sample losses. Methods with `samplewise` need one; `BatchClosure` implements it.

    Called without arguments, it is an ordinary closure over the whole batch.
    """

    size: int  # B, the number of samples in the batch
    examples: Tensor | None  # int64 (B,), their indices in the training set, or None if unknown
    losses: Tensor  # (n,), per-sample losses of the latest pass, without gradients
    logits: Tensor  # (n, C), its outputs, without gradients

    def __call__(self, selection: Selection | None = None, term: Term | None = None) -> Tensor:
        """zero_grad, forward and backward on the selection; returns its mean loss. The gradient includes `term`."""
        ...

    def evaluate(self, selection: Selection | None = None, model: nn.Module | None = None) -> Tensor:
        """Per-sample losses (n,) of the selection, by a forward pass at the current weights or of `model` if given."""
        ...


def forward(model: nn.Module, images: Tensor, labels: Tensor, smoothing: float, bf16: bool) -> tuple[Tensor, Tensor]:
    """Cross-entropy (n,) and logits (n, C). The model is an argument, so that one compilation serves all seeds."""
    # nullcontext, since a disabled autocast would end one that the step is within
    with torch.autocast(images.device.type, dtype=torch.bfloat16) if bf16 else nullcontext():
        logits = model(images)
        return F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none"), logits


class BatchClosure:
    """zero_grad, forward and backward over the micro-batches of the current batch. A `SampleClosure`.

    Args:
        model: maps images (B, C, H, W) to logits (B, classes). Its training or evaluation mode is not changed. With
            DistributedDataParallel, gradients are reduced once per call, with the last micro-batch.
        optimizer: its `zero_grad` is called at the start of each call.
        accumulate: number of micro-batches per batch.
        label_smoothing: label smoothing of the cross-entropy, in [0, 1).
        bf16: run under bf16 autocast.
        channels_last: use the channels-last memory format for images.
        decay: λ of a term ½λ‖θ‖² in the loss. Only its gradient is added; the returned loss does not include it.
        decayed: the parameters in that term.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        accumulate: int = 1,
        label_smoothing: float = 0.0,
        bf16: bool = False,
        channels_last: bool = False,
        decay: float = 0.0,
        decayed: Iterable[Tensor] = (),
    ) -> None:
        self.model, self.optimizer = model, optimizer
        self.ddp = model if isinstance(model, DistributedDataParallel) else None
        self.accumulate, self.label_smoothing, self.bf16 = accumulate, label_smoothing, bf16
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.decay, self.decayed = decay, list(decayed)
        self.forward: Forward = forward
        self.size = 0
        self.examples: Tensor | None = None
        self.losses = self.logits = torch.empty(0)

    def compile(self) -> None:
        """Compile forward and backward from here on."""
        if self.ddp:
            self.ddp.module.compile()  # DDP's own forward stays as it is
        else:
            self.forward = torch.compile(forward)

    def batch(self, images: Tensor, labels: Tensor, examples: Tensor | None = None) -> None:
        """Set the batch of the next step: images (B, C, H, W), classes (B,), their indices in the training set (B,)."""
        self.images, self.labels, self.examples = images.contiguous(memory_format=self.memory_format), labels, examples
        self.size = len(labels)
        self.first_pass: tuple[Tensor, Tensor] | None = None  # its logits and labels

    def __call__(self, selection: Selection | None = None, term: Term | None = None) -> Tensor:
        """zero_grad, forward, backward; returns the mean loss of the selection, without the term.

        `term` sees the logits of a slice of the batch, so it needs the whole batch.
        """
        self.optimizer.zero_grad()
        images, labels = self._select(selection)
        total = torch.zeros((), device=labels.device)
        losses, logits, start = [], [], 0
        for some_images, some_labels in zip(images.chunk(self.accumulate), labels.chunk(self.accumulate), strict=True):
            last = start + len(some_labels) == len(labels)
            with self.ddp.no_sync() if self.ddp and not last else nullcontext():
                each, outputs = self.forward(self.model, some_images, some_labels, self.label_smoothing, self.bf16)
                share, stop = len(each) / len(labels), start + len(each)
                loss = each.mean() * share
                (loss if term is None else loss + term(outputs, slice(start, stop)) * share).backward()
            total += loss.detach()
            losses.append(each.detach())
            logits.append(outputs.detach())
            start = stop
        self._keep(losses, logits, labels, of_model=True)
        if self.decay:
            # the gradient of ½λ‖θ‖², without a graph for it; the returned loss does not contain this term
            reached = [(p, p.grad) for p in self.decayed if p.grad is not None]
            with torch.no_grad():
                torch._foreach_add_([g for _, g in reached], [p for p, _ in reached], alpha=self.decay)
        return total

    @torch.no_grad()
    def evaluate(self, selection: Selection | None = None, model: nn.Module | None = None) -> Tensor:
        """Per-sample losses (n,) of the selection, by a forward pass of this closure's model or of `model` if given."""
        images, labels = self._select(selection)
        chunks = zip(images.chunk(self.accumulate), labels.chunk(self.accumulate), strict=True)
        results = [self.forward(model or self.model, *each, self.label_smoothing, self.bf16) for each in chunks]
        self._keep([losses for losses, _ in results], [logits for _, logits in results], labels, of_model=model is None)
        return self.losses

    def correct(self) -> Tensor:
        """Number of correct predictions in the first pass of the step, a 0-d tensor, scaled to the full batch."""
        assert self.first_pass is not None
        logits, labels = self.first_pass
        return (logits.argmax(1) == labels).sum() * (self.size / len(labels))

    def flops(self) -> int:
        """Run one call and count the floating-point operations of its matrix products and convolutions."""
        from torch.utils.flop_counter import FlopCounterMode  # imported here, since the import takes 0.15 s

        with FlopCounterMode(display=False) as counter:
            self()
        return counter.get_total_flops()

    def _select(self, selection: Selection | None) -> tuple[Tensor, Tensor]:
        if selection is None:
            return self.images, self.labels
        return self.images[selection].contiguous(memory_format=self.memory_format), self.labels[selection]

    def _keep(self, losses: list[Tensor], logits: list[Tensor], labels: Tensor, of_model: bool) -> None:
        self.losses, self.logits = torch.cat(losses), torch.cat(logits)
        if of_model and self.first_pass is None:
            self.first_pass = self.logits, labels
