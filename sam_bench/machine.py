"""The device: selection, determinism, synchronization and peak memory."""

import ctypes
import inspect
import os
import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

from sam_bench.errors import SettingError
from sam_bench.ranks import LAUNCHED

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def pick_device(name: str) -> torch.device:
    """The device of a name; `auto` is the GPU if there is one, and of several ranks on a machine each has its own.

    Raises a SettingError if it does not exist.
    """
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise SettingError(f"trainer.device={name}: torch sees no CUDA device; choose cpu or auto")
    if name.startswith("cuda:") and int(name[5:]) >= torch.cuda.device_count():
        raise SettingError(f"trainer.device={name}: there are {torch.cuda.device_count()} CUDA devices, from cuda:0")
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    if LAUNCHED and device.type == "cuda":
        here, gpus = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
        if device.index is not None or here >= gpus:
            raise SettingError(
                f"trainer.device={name}: each rank needs a GPU of its own; choose cuda, with at most {gpus} ranks"
            )
        device = torch.device("cuda", here)
        torch.cuda.set_device(device)
    return device


def set_determinism(on: bool) -> None:
    """Turn deterministic algorithms on or off. Exact resume on a GPU needs them; on a CPU it is exact either way."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    if "torch._inductor" in sys.modules:
        torch.use_deterministic_algorithms(on)
    else:
        torch._C._set_deterministic_algorithms(on, warn_only=False)  # the same without importing the compiler
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # it would write every new tensor twice
    torch.backends.cudnn.deterministic = on
    torch.backends.cudnn.benchmark = not on


def keep_freed_memory() -> None:
    """Have the C library keep what is freed on a CPU: the next step asks for the same sizes again.

    Otherwise glibc returns large blocks at once, and every step pays for hundreds of MB of fresh pages; see
    docs/performance.md. Call it before the first large tensor.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch then asks for pages of 2 MB
    with suppress(OSError, AttributeError):  # another C library than glibc
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(M_MMAP_THRESHOLD, 2**30)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def leave_compiler_unimported() -> None:
    """Keep torch.optim from importing torch's compiler, which takes longer than torch itself.

    torch.optim imports `torch._dynamo` when an optimizer is made and in each step, only to exclude its methods from
    compilation. Here they are not part of what is compiled. Call it before the first optimizer is made.
    """
    if "torch._dynamo" in sys.modules:
        return
    for name in ("add_param_group", "load_state_dict", "state_dict", "zero_grad"):
        method = getattr(getattr(torch.optim.Optimizer, name), "__wrapped__", None)
        if method is not None:
            method.__dict__["__dynamo_disable"] = method  # where `torch._disable_dynamo` keeps what it made
    for optimizer in vars(torch.optim).values():
        if isinstance(optimizer, type) and hasattr(vars(optimizer).get("step"), "__wrapped__"):
            optimizer.step = torch.no_grad()(inspect.unwrap(optimizer.step))  # type: ignore[attr-defined]


def wait_for(device: torch.device) -> None:
    """Wait until the queued work is done, so that a clock sees it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak_memory(device: torch.device) -> None:
    """Reset the peak-memory counter: a sweep trains several runs in one process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):  # Linux has it
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: on a GPU what torch reserved, on a CPU the largest resident size of the process.

    What torch reserved includes the pools of CUDA graphs, which what it allocated does not.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    status = Path("/proc/self/status")  # unlike getrusage, it can be reset
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))


def conditions(device: torch.device) -> dict[str, str | int]:
    """What a resume needs unchanged to continue to the same bits. A CPU is identified by its instruction set."""
    if device.type == "cuda":
        return {"device": torch.cuda.get_device_name(device), "torch": str(torch.__version__)}
    instructions = torch.backends.cpu.get_cpu_capability()
    return {"device": f"cpu, {instructions}", "torch": str(torch.__version__), "threads": torch.get_num_threads()}


def describe(device: torch.device, ranks: int = 1) -> str:
    """The device of each rank as named in tables."""
    threads = torch.get_num_threads()
    cpu = f"cpu, {threads} thread{'s' * (threads != 1)}"
    each = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    return f"{ranks} × {each}" if ranks > 1 else each
