"""A step of training as CUDA graphs: the host launches one piece in the place of hundreds of kernels."""

from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from sam_bench.errors import SettingError, reason
from sam_bench.optim import Descent

Result = tuple[Tensor, ...]
Record = Callable[[Callable[[], Result]], tuple[Result, Callable[[], None]]]
WARM_UP = 3


class CapturedStep:
    """`begin`, `work`, `end`, with the work captured once a kind of step and replayed from then on.

    The first steps of a kind run as they are written: in them state and buffers come to be, and kernels are chosen.
    What the work returns lies at the same addresses each time: it holds until the next step.

    Args:
        optimizer: whose `begin`, `kind` and `end` surround the work, and whose counts a replay adds to.
        work: from the batch to the weights, for the device alone.
        record: runs the work once and returns what it returned, and what runs it again.

    """

    def __init__(self, optimizer: Descent, work: Callable[[], Result], record: Record) -> None:
        self.optimizer, self.work, self.record = optimizer, work, record
        self.seen: Counter[Hashable] = Counter()
        optimizer._opt_called = True  # type: ignore[attr-defined]  # schedulers warn where nobody called `step`
        self.recorded: dict[Hashable, tuple[Result, Callable[[], None], dict[str, float]]] = {}
        for group in optimizer.param_groups:
            device = group["params"][0].device
            # a captured step reads numbers where they lie: schedulers fill this tensor
            group["lr"] = torch.as_tensor(float(group["lr"]), dtype=torch.float32).to(device)
            if "capturable" in group:
                group["capturable"] = device.type == "cuda"

    @torch.no_grad()  # as `step` of an optimizer has it; the closure switches gradients on
    def __call__(self) -> Result:
        """One step."""
        optimizer = self.optimizer
        optimizer.begin()
        kind = optimizer.kind
        if kind in self.recorded:
            result, replay, spent = self.recorded[kind]
            replay()
            for name, amount in spent.items():
                optimizer.counts[name] += amount
        elif self.seen[kind] < WARM_UP:
            self.seen[kind] += 1
            result = self.work()
        else:
            before = dict(optimizer.counts)
            result, replay = self.record(self.work)
            spent = {name: count - before[name] for name, count in optimizer.counts.items()}
            self.recorded[kind] = result, replay, spent
        optimizer.end()
        return result


def is_capturable(optimizer: Descent) -> bool:
    """Whether method and base keep all that changes from step to step on the device: of torch's own, those that say so.

    SGD reads a learning rate that is a tensor on the device only where it is fused.
    """
    base: Any = optimizer.innermost
    if not optimizer.capturable:
        return False
    if isinstance(base, torch.optim.SGD):
        return all(group["fused"] for group in base.param_groups)
    return type(base).__module__.startswith("torch.optim.") and "capturable" in base.defaults


def cuda_graph(stream: torch.cuda.Stream) -> Record:
    """Record on a stream, in memory that the recordings of one run share: they never run at once."""
    pool = torch.cuda.graph_pool_handle()

    def record(work: Callable[[], Result]) -> tuple[Result, Callable[[], None]]:
        graph = torch.cuda.CUDAGraph()
        try:
            # thread_local: the threads of a loader go on allocating meanwhile
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                result = work()
        except RuntimeError as error:
            raise SettingError(
                f"trainer.cuda_graphs: this step cannot be captured ({reason(error)}); choose false"
            ) from error
        graph.replay()  # capturing it ran nothing
        return result, graph.replay

    return record
