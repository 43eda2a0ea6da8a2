"""What the tests of DistributedDataParallel do in each of several processes, and what one process computes instead."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from sam_bench.optim import AUSAM, S2SAM, SAM, Descent
from sam_bench.testing.problem import Problem, make_closure, problem
from tests.conftest import DEVICE
from tests.optim.methods import build
from tests.processes import CONTEXT

Work = Callable[[int, int], Any]  # rank, ranks -> what can be saved


def on_ranks(ranks: int, folder: Path, work: Work, *args: Any) -> list[Any]:
    """Do the work in a process per rank, with nccl if there is a GPU for each, else gloo; return what each returned."""
    folder.mkdir()
    processes = [CONTEXT.Process(target=_process, args=(rank, ranks, folder, work, args)) for rank in range(ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * ranks
    return [torch.load(folder / f"{rank}.pt", "cpu", weights_only=True) for rank in range(ranks)]


def _process(rank: int, ranks: int, folder: Path, work: Work, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    nccl = DEVICE == "cuda" and torch.cuda.device_count() >= ranks
    if nccl:
        torch.cuda.set_device(rank)
    distributed.init_process_group(
        "nccl" if nccl else "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks
    )
    torch.save(work(rank, ranks, *args), folder / f"{rank}.pt")
    distributed.destroy_process_group()


def here() -> torch.device:
    """The device of this rank."""
    return torch.device("cuda" if distributed.get_backend() == "nccl" else "cpu")


def without_batch_norm(device: torch.device | str = "cpu") -> Problem:
    """The problem with a net that treats each sample alone, so that the parts of a batch add up to the whole."""
    like = problem(dtype=torch.float64)  # drawn on the CPU: the same numbers on every device
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.LayerNorm(12), nn.ReLU(), nn.Linear(12, 5))
    like = Problem(net.double(), like.images.to(device), like.labels.to(device), like.examples.to(device))
    return like.with_model(like.model)


def part(at: Problem, step: int, rank: int, ranks: int) -> tuple[Tensor, Tensor, Tensor]:
    """A rank's part of the batch of a step."""
    at_step = step % len(at.images)
    return tuple(each[at_step].chunk(ranks)[rank] for each in (at.images, at.labels, at.examples))


def train_replica(
    name: str, at: Problem, rank: int, ranks: int, steps: int, sync_perturbation: bool = False, **settings: Any
) -> Descent:
    """Train the net of the problem as one rank of several. Returns the optimizer."""
    model = DistributedDataParallel(at.model)
    optimizer = build(name, model, **settings)
    for method in (optimizer, optimizer.base):
        if isinstance(method, SAM):
            method.sync_perturbation = sync_perturbation
    for step in range(steps):
        optimizer.step(make_closure(optimizer, model, *part(at, step, rank, ranks)))
    return optimizer


def train_in_parts(name: str, at: Problem, ranks: int, steps: int, **settings: Any) -> None:
    """The plain m-sharpness loop in one process: the method's gradient for each part of the batch, then their mean."""
    methods = [build(name, at.model, **settings) for _ in range(ranks)]
    base = methods[0].innermost
    for rank, method in enumerate(methods):
        each = method
        while isinstance(each, Descent):
            if isinstance(each, AUSAM):  # whose draws differ between ranks, and whose table is that of all
                each.__class__ = type("AUSAM", (AUSAM,), {"rank": rank})
                each.mean, each.count = methods[0].mean, methods[0].count
            each = each.base
    for step in range(steps):
        gradients = []
        for rank, method in enumerate(methods):
            closure = make_closure(method, at.model, *part(at, step, rank, ranks))
            method.begin()
            with torch.no_grad():
                method.gradient(closure)
            method.end()
            gradients.append([p.grad.clone() for p in method.params()])
        for p, *of_parts in zip(methods[0].params(), *gradients, strict=True):
            p.grad = torch.stack(of_parts).mean(0)
        for method in methods:
            if isinstance(method, S2SAM):  # whose next ε follows from the mean
                torch._foreach_copy_(method.memory("d", method.params()), method.grads(method.params()))
        base.step()


def counted_reductions(model: DistributedDataParallel) -> list[int]:
    """A list that gets the bytes of each reduction of gradients from here on."""
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    sizes: list[int] = []

    def hook(group: Any, bucket: distributed.GradBucket) -> torch.futures.Future[Tensor]:
        sizes.append(bucket.buffer().numel() * bucket.buffer().element_size())
        return allreduce_hook(group, bucket)

    model.register_comm_hook(None, hook)
    return sizes
