"""The device: choosing it, making it repeatable, and asking it for time and memory."""

import ctypes
import os
import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

from sam_bench.errors import SettingError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def pick(name: str) -> torch.device:
    """`auto` is the GPU where there is one."""
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise SettingError(f"trainer.device={name}: torch sees no CUDA device; choose cpu or auto")
    if name.startswith("cuda:") and int(name[5:]) >= torch.cuda.device_count():
        raise SettingError(f"trainer.device={name}: there are {torch.cuda.device_count()} CUDA devices, from cuda:0")
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def determinism(on: bool) -> None:
    """Make a resume exact on a GPU, at some speed; a CPU is exact either way."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    torch.use_deterministic_algorithms(on)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # it would write every new tensor twice
    torch.backends.cudnn.deterministic = on
    torch.backends.cudnn.benchmark = not on


def keep_freed_memory() -> None:
    """Have the C library keep what is freed on a CPU: the next step asks for the same sizes again.

    Otherwise glibc gives large blocks back at once, and every step pays for hundreds of MB of fresh pages. What it is
    worth stands in benchmarks/README.md. Before the first large tensor.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch then asks for pages of 2 MB
    with suppress(OSError, AttributeError):  # another C library than glibc
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(M_MMAP_THRESHOLD, 2**30)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def wait_for(device: torch.device) -> None:
    """Let the clock see the work that is queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak_memory(device: torch.device) -> None:
    """Count from here: a sweep trains one run after the other in one process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):  # Linux has it
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int:
    """Bytes: of a GPU what torch held at most, of a CPU the largest resident size of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def describe(device: torch.device) -> str:
    """What a table says that the seconds were measured on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.get_num_threads()} threads"
