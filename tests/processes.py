"""Training in real processes that can really be killed, forked from one that has imported torch already."""

import multiprocessing
import sys
from collections.abc import Callable

from sam_bench.errors import SettingError
from tests.command import settings

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["sam_bench.train", "torch._dynamo", "tests.optim.ddp"])


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
