"""What AsyncSAM and SAMPa share: two passes per step that do not depend on each other.

One process makes them one after the other, at the cost of SAM. In a `pair` of ranks, each rank makes one pass, and the
ranks exchange the gradients. Both ranks hold the whole model and get the same batches.
"""

from collections.abc import Callable
from functools import partial
from typing import Unpack

from torch import Tensor, distributed
from torch.optim import Optimizer

from sam_bench.optim.checks import ArgumentError
from sam_bench.optim.descent import as_one
from sam_bench.optim.sam import SAM, Shared


class SideBySide(SAM):
    """SAM with independent passes.

    Args:
        base, rho, shared: see `SAM`.
        pair: a `torch.distributed` process group of two ranks that share the passes. `model` is then required, without
            DistributedDataParallel.
    """

    memory_copies = 3  # θ, g, the previous gradient
    state_copies = 1
    state_contents = "the previous gradient"
    unschedulable = "its perturbation comes from the step before"
    takes_shards = False
    needs_mean_g = True

    def __init__(
        self,
        base: Optimizer,
        rho: float = 0.05,
        *,
        pair: "distributed.ProcessGroup | None" = None,
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(base, rho, **shared)
        if self.stable:
            raise ArgumentError("stable", True, "false, since g is not that of the perturbation")
        if pair is not None and pair.size() != 2:
            raise ArgumentError("pair", f"a group of {pair.size()}", "a process group of two ranks")
        if pair is not None and (self.ddp or shared.get("model") is None):
            allowed = "given together with a model that is not in DistributedDataParallel"
            raise ArgumentError("pair", "a process group", allowed)
        self.pair = pair

    def both(self, plain: Callable[[], Tensor], perturbed: Callable[[], object], share: float = 1.0) -> Tensor:
        """Make both passes: leave the plain one's gradient in `scratch("g")`, the perturbed one's in `.grad`.

        Args:
            plain: returns its loss.
            perturbed: over the whole batch.
            share: the share of the batch that the plain pass is over.

        Returns the loss of the plain pass.
        """
        if self.pair is None:
            loss = plain()
            self.keep_g()
            perturbed()
            return loss
        mine = self.pair.rank()
        if mine == 0:
            loss = plain()
            self.counts["propagations"] += 1
            self.counts["sharpness_aware_steps"] += "previous" in self._memory
        else:
            perturbed()
            for m in self.batch_norms:
                if m.num_batches_tracked is not None:
                    m.num_batches_tracked += 1
            loss = self.params()[0].new_zeros(())
            self.counts["propagations"] += share
        self.keep_g()
        statistics = [t for m in self.batch_norms for t in (m.running_mean, m.running_var)]
        of_plain = [*self.scratch("g", self.trainable()), loss, *(t for t in statistics if t is not None)]
        of_perturbed = self.grads(self.params())
        for source, tensors in enumerate((of_plain, of_perturbed)):
            rank = distributed.get_global_rank(self.pair, source)
            as_one(tensors, partial(distributed.broadcast, src=rank, group=self.pair))
        return loss

    def remember_g(self) -> None:
        """Keep the gradient in `scratch("g")` as the previous gradient."""
        params = self.trainable()
        self.remember("previous", params, self.scratch("g", params))

    def trainable(self) -> list[Tensor]:
        """The parameters that have a gradient in `scratch("g")`."""
        return [p for p in self.params() if p.requires_grad]
