"""A step of training as CUDA graphs: the host launches one graph instead of hundreds of kernels."""

import gc
import warnings
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
    """`begin`, `work`, `end`, with the work captured once per variant of the step and replayed from then on.

    The first steps of a variant run eagerly: they allocate state and buffers and let libraries choose kernels. The
    results lie at the same addresses each time, so they hold until the next step.

    Args:
        optimizer: whose `begin`, `variant` and `end` surround the work, and whose counts a replay adds to.
        work: from the batch to the weights, for the device alone.
        record: runs the work once; returns what it returned, and a function that runs it again.
        required: raise if a capture fails; otherwise warn once and run every step eagerly from then on.
    """

    def __init__(
        self, optimizer: Descent, work: Callable[[], Result], record: Record, *, required: bool = False
    ) -> None:
        self.optimizer, self.work, self.record, self.required = optimizer, work, record, required
        self.seen: Counter[Hashable] = Counter()
        self.recorded: dict[Hashable, tuple[Result, Callable[[], None], dict[str, float]]] = {}
        self.failed = False
        optimizer._opt_called = True  # type: ignore[attr-defined]  # schedulers warn if nobody called `step`
        base: Any = optimizer.innermost
        base._warned_capturable_if_run_uncaptured = True  # torch warns during the eager first steps
        for group in optimizer.param_groups:
            device = group["params"][0].device
            # a captured step always reads this tensor, so schedulers write into it
            group["lr"] = torch.as_tensor(float(group["lr"]), dtype=torch.float32).to(device)
            if "capturable" in group:
                group["capturable"] = device.type == "cuda"

    @torch.no_grad()  # as in `step` of an optimizer; the closure enables gradients
    def __call__(self) -> Result:
        """Make one step. Raises a SettingError if the step cannot be captured, and that was required."""
        optimizer = self.optimizer
        optimizer.begin()
        # with the numbers of the groups, which a capture freezes
        values = (value for group in optimizer.param_groups for value in group.values())
        variant = optimizer.variant, tuple(value for value in values if isinstance(value, int | float | tuple))
        if variant in self.recorded:
            result, replay, spent = self.recorded[variant]
            replay()
            for name, amount in spent.items():
                optimizer.counts[name] += amount
        elif self.failed or self.seen[variant] < WARM_UP:
            self.seen[variant] += 1
            result = self.work()
        else:
            result = self.capture(variant)
        optimizer.end()
        return result

    def capture(self, variant: Hashable) -> Result:
        """Capture the work, which also runs it; run it eagerly if that fails.

        Raises a SettingError if it fails, and was required.
        """
        counts, device, random = dict(self.optimizer.counts), self.optimizer.params()[0].device, torch.get_rng_state()
        if device.type == "cuda":  # a copy, since a failed capture leaves the generator's state as if it still went on
            generator = torch.cuda.default_generators[device.index or 0]
            before = generator.graphsafe_get_state().clone_state()
        try:
            result, replay = self.record(self.work)
        except Exception as last:  # whatever a model or an optimizer of others raises
            error = last.__context__ or last  # the first one: the end of a failed capture raises, too
            if self.required:
                raise SettingError(
                    f"trainer.cuda_graphs=true: this step cannot be captured ({reason(error)}); choose auto or false"
                ) from last
            warnings.warn(f"steps run eagerly, since they cannot be captured: {reason(error)}", stacklevel=2)
            self.failed = True
            self.optimizer.counts.update(counts)
            torch.set_rng_state(random)
            if device.type == "cuda":
                generator.graphsafe_set_state(before)
            return self.work()
        spent = {name: count - counts[name] for name, count in self.optimizer.counts.items()}
        self.recorded[variant] = result, replay, spent
        return result


def is_capturable(optimizer: Descent) -> bool:
    """Whether method and base keep all that changes from step to step on the device.

    Of torch's optimizers those that say so do. SGD reads a learning rate from a tensor on the device only if it is
    fused.
    """
    base: Any = optimizer.innermost
    if not optimizer.capturable:
        return False
    if isinstance(base, torch.optim.SGD):
        return all(group["fused"] for group in base.param_groups)
    return type(base).__module__.startswith("torch.optim.") and "capturable" in base.defaults


def cuda_graph(stream: torch.cuda.Stream) -> Record:
    """Record on a stream, in memory that the recordings of one run share, since they never run at once."""
    pool = torch.cuda.graph_pool_handle()

    def record(work: Callable[[], Result]) -> tuple[Result, Callable[[], None]]:
        graph = torch.cuda.CUDAGraph()
        was_enabled = gc.isenabled()
        gc.disable()  # what it frees may call CUDA, which ends a capture
        try:
            # thread_local: loader and checkpoint threads continue during a capture
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                result = work()
        finally:
            if was_enabled:
                gc.enable()
        graph.replay()  # capturing it ran nothing
        return result, graph.replay

    return record
