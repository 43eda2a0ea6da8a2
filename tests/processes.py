"""Training in real processes that can really be killed, forked from one that has imported torch already."""

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from sam_bench.errors import SettingError
from tests.command import settings

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        *("sam_bench.train", "sam_bench.command", "torch._dynamo", "torch.distributed.fsdp"),
        *("torch.distributed.checkpoint", "timm.models", "tests.optim.ddp"),
    ]
)


def train(arguments: list[str]) -> None:
    import torch

    from sam_bench.train import train as train_

    torch.set_num_threads(1)  # threads of several processes that wait for each other on two cores take minutes
    try:
        train_(settings(*arguments).each_seed())
    except SettingError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def in_a_process(
    target: Callable[[list[str]], None], arguments: list[str]
) -> multiprocessing.context.ForkServerProcess:
    process = CONTEXT.Process(target=target, args=(arguments,))
    process.start()
    return process


def wait_for(condition: Callable[[], object], is_alive: Callable[[], bool], seconds: float = 120) -> None:
    """Wait until the condition holds; fail if the process ends before."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert is_alive(), "the process has ended"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def on_ranks(n: int, folder: Path, *arguments: str) -> tuple[int, str, str]:
    """The command on n ranks, as torchrun starts them, but forked: torchrun imports torch in each process.

    Returns the largest exit status, the standard output of the first rank, and what all have written to stderr. If a
    rank fails, the others are ended, as by torchrun.
    """
    from torch.distributed import TCPStore

    folder.mkdir(parents=True, exist_ok=True)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # outlives the ranks, as torchrun's
    given = n, store.port, folder, list(arguments)
    ranks = [CONTEXT.Process(target=_rank, args=(rank, *given)) for rank in range(n)]
    for each in ranks:
        each.start()
    deadline = time.monotonic() + 240
    while any(each.is_alive() for each in ranks) and not any(each.exitcode for each in ranks):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    status = max(each.exitcode or 0 for each in ranks)
    for each in ranks:
        each.terminate()
        each.join()
    out, *errors = [(folder / name).read_text() for name in ("out-0", *(f"err-{rank}" for rank in range(n)))]
    return status, out, "".join(errors)


def _rank(rank: int, n: int, port: int, folder: Path, arguments: list[str]) -> None:
    import torch

    from sam_bench import command, ranks

    torch.set_num_threads(1)
    of_torchrun = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": n, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in of_torchrun.items()})
    os.environ.update(TORCHELASTIC_USE_AGENT_STORE="True", TORCHELASTIC_RESTART_COUNT="0")
    ranks.LAUNCHED, ranks.RANK = True, rank
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"{name}-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = ["sam_bench", *arguments]
    command.console()
