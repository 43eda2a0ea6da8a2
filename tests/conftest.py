import os
import signal
from collections.abc import Iterator

import pytest
import torch

# make test DEVICE=cuda runs on the GPU what the tests below run on the CPU
DEVICE = os.environ.get("SAM_BENCH_TEST_DEVICE", "cpu")
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # started in the background of a shell script
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts


@pytest.fixture
def device() -> torch.device:
    return torch.device(DEVICE)


@pytest.fixture(autouse=True)
def _deterministic():
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(0)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As in the other processes that the test starts, so that they compute the same bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def cifar_root() -> str:
    """The folder with the real CIFAR files; they are 340 MB and not part of the repository."""
    root = os.environ.get("SAM_BENCH_DATA", "data")
    if not os.path.isdir(os.path.join(root, "cifar-10-batches-py")):
        pytest.skip(f"needs CIFAR-10 in SAM_BENCH_DATA={root}")
    return root


from tests.command import command  # noqa: E402, F401
