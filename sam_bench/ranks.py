"""The ranks of a run, which are the processes that torchrun started, and what they exchange besides gradients.

Imports no torch.

Without torchrun there is one rank, and nothing here communicates.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from inspect import signature
from typing import TYPE_CHECKING, Any

from sam_bench.errors import SettingError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

LAUNCHED = "RANK" in os.environ and "WORLD_SIZE" in os.environ  # by torchrun
RANK = int(os.environ["RANK"]) if LAUNCHED else 0
ENDED = "another process of this run has ended; the same command continues from the last checkpoint"


class Ranks:
    """The ranks that train a run together. The first one has the files.

    Args:
        device: of this rank's tensors.
        side_by_side: whether every rank has the whole of each batch, and makes some of a step's passes.

    Attributes:
        part, parts: the part of each batch that this rank has.
        pair: the process group of ranks that share the passes, or None.
    """

    def __init__(self, device: "torch.device", side_by_side: bool = False) -> None:
        self.rank, self.n = RANK, int(os.environ["WORLD_SIZE"]) if LAUNCHED else 1
        self.is_first = self.rank == 0
        self.part, self.parts = (0, 1) if side_by_side else (self.rank, self.n)
        self.pair: Any = None
        self.exchange: Any = None
        if LAUNCHED:
            from torch import distributed

            with collective():
                if not distributed.is_initialized():
                    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
                # on the host, where an exchange does not wait for the device
                self.host = _host_group()
                if side_by_side:
                    self.pair = distributed.group.WORLD

    def replica(self, model: "nn.Module") -> "nn.Module":
        """The model, with gradients that are reduced over the ranks if each has a part of the batch."""
        if not LAUNCHED or self.pair:
            return model
        from torch.nn.parallel import DistributedDataParallel

        # BatchNorm statistics stay each rank's own, and are averaged before they are used
        new = "forward_sync_buffers" in signature(DistributedDataParallel).parameters  # in newer versions of torch
        own_buffers: Any = {"forward_sync_buffers" if new else "broadcast_buffers": False}
        with collective():
            return DistributedDataParallel(model, **own_buffers, gradient_as_bucket_view=True)

    def shard(self, model: "nn.Module", device: "torch.device") -> None:
        """Shard the parameters over the ranks with FSDP2: those of each block of a sequence together, then the rest."""
        import torch
        from torch.distributed.fsdp import fully_shard

        with collective():
            mesh = torch.distributed.init_device_mesh(device.type, (self.n,))
            for module in model.modules():
                if isinstance(module, torch.nn.Sequential | torch.nn.ModuleList):
                    for block in module:
                        if any(block.children()) and any(True for _ in block.parameters()):
                            fully_shard(block, mesh=mesh)
            fully_shard(model, mesh=mesh)

    def on_first(self, function: Callable[[], Any]) -> Any:
        """Call the function on the first rank. Return what it returns, or raise its SettingError, on all ranks."""
        if self.n == 1:
            return function()
        from torch import distributed

        outcome: list[Any] = [None, None]
        if self.is_first:
            try:
                outcome[0] = function()
            except SettingError as error:
                outcome[1] = str(error)
        with collective():
            distributed.broadcast_object_list(outcome, 0, group=self.host)
        if outcome[1] is not None:
            raise SettingError(outcome[1])
        return outcome[0]

    def of_all(self, value: Any) -> list[Any]:
        """The value of each rank, in the order of the ranks; tensors in it are on the CPU."""
        if self.n == 1:
            return [value]
        from torch import Tensor, distributed
        from torch.utils._pytree import tree_map_only

        value = tree_map_only(Tensor, lambda t: t.cpu(), value)
        values: list[Any] = [None] * self.n
        with collective():
            distributed.all_gather_object(values, value, group=self.host)
        return values

    def sum(self, tensor: "Tensor") -> "Tensor":
        """Replace the tensor by its sum over all ranks."""
        if self.n > 1:
            from torch import distributed

            with collective():
                distributed.all_reduce(tensor)
        return tensor

    def mean(self, tensors: "list[Tensor]") -> None:
        """Replace each tensor by its mean over all ranks."""
        from sam_bench.optim.descent import average

        if self.n > 1:
            with collective():
                average(tensors)

    def agree(self, *flags: int) -> tuple[int, ...]:
        """The largest of each flag over all ranks, so that all stop at the same step.

        With several ranks, it returns the result of the previous call, so that no rank waits for the others.
        """
        if self.n == 1:
            return flags
        import torch
        from torch import distributed

        before = self._exchanged() or (0,) * len(flags)
        with collective():
            self.flags = torch.tensor(flags)
            self.exchange = distributed.all_reduce(self.flags, distributed.ReduceOp.MAX, group=self.host, async_op=True)
        return before

    def agree_now(self, *flags: int) -> tuple[int, ...]:
        """The largest of each flag over all ranks. Each rank waits for the others."""
        before = self.agree(*flags)
        return tuple(map(max, before, self._exchanged() or before))

    def _exchanged(self) -> tuple[int, ...]:
        """The result of the exchange that was started last; empty if there is none."""
        exchange, self.exchange = self.exchange, None
        if not exchange:
            return ()
        with collective():
            exchange.wait()
        return tuple(self.flags.tolist())


@cache
def _host_group() -> Any:
    """A process group for the host, which the runs of a sweep share."""
    from torch import distributed

    return distributed.new_group(backend="gloo")


@contextmanager
def collective() -> Iterator[None]:
    """Context manager: if the ranks cannot reach each other, a SettingError says that one has ended."""
    try:
        yield
    except RuntimeError as error:
        if LAUNCHED:
            from torch.distributed import DistError

            # gloo raises a plain RuntimeError that names its source file
            if isinstance(error, DistError) or "gloo/" in str(error) or "NCCL" in str(error):
                raise SettingError(ENDED) from error
        raise


def let_the_first_print() -> None:
    """Wait, unless this is the first rank, which prints an error of the settings: all ranks have the same.

    torchrun ends all processes as soon as one exits. A rank that still runs after the wait has an error of its own.
    """
    if RANK:
        time.sleep(30)


_reports = 0


def may_report() -> bool:
    """Whether this rank is to print an error: the first one that asks, so that it is printed once.

    Call it once per error of a run.
    """
    global _reports
    _reports += 1
    if not LAUNCHED:
        return True
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_initialized():
        let_the_first_print()
        return True
    try:
        return distributed.distributed_c10d._get_default_store().add(f"sam_bench/error/{_reports}", 1) == 1
    except RuntimeError:
        return True  # the store has ended
