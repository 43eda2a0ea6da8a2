"""What a step dispatches outside of its passes and of the base optimizer's step."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

# operations whose result the host has to wait for
WAITING = ("_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "_unique2", "unique_dim")


class Operations(TorchDispatchMode):
    """Collects the operations of steps, without those of the closure."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.waits: list[str] = []
        self.paused = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note and run an operation."""
        if not self.paused:
            name = func._schema.name.removeprefix("aten::")
            self.names.append(str(func))
            by_mask = name.startswith("index") and any(
                isinstance(i, torch.Tensor) and i.dtype == torch.bool
                for i in (args[1] if isinstance(args[1], list) else ())
            )
            if name in WAITING or by_mask:
                self.waits.append(f"{name} by a mask" if by_mask else name)
        return func(*args, **(kwargs or {}))

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Context manager: no operation is recorded."""
        self.paused += 1
        try:
            yield
        finally:
            self.paused -= 1

    def apart_from(self, closure: Any) -> Any:
        """The closure, whose own operations are not noted."""
        if not hasattr(closure, "evaluate"):

            def quiet() -> Any:
                with self.pause():
                    return closure()

            return quiet
        operations, wrapped = self, type(closure)

        class Quiet(wrapped):  # type: ignore[misc, valid-type]
            def __call__(self, *args: Any, **kwargs: Any) -> Any:
                with operations.pause():
                    return super().__call__(*args, **kwargs)

            def evaluate(self, *args: Any, **kwargs: Any) -> Any:
                with operations.pause():
                    return super().evaluate(*args, **kwargs)

        quiet_one = copy.copy(closure)
        quiet_one.__class__ = Quiet
        return quiet_one


def operations_around(optimizer: Any, closure: Any, steps: int) -> list[str]:
    """The most operations, the base optimizer's included, around the passes of one of `steps` steps."""
    most: list[str] = []
    for _ in range(steps):
        operations = Operations()
        with operations:
            optimizer.step(operations.apart_from(closure))
        most = max(most, operations.names, key=len)
    return most


@contextmanager
def watch_steps(
    seen: Callable[[Optimizer], None], after: Callable[[Optimizer], None] = lambda _: None
) -> Iterator[None]:
    """Context manager: pass each optimizer that steps to `seen` before its step and to `after` afterwards."""
    hooks = [
        register_optimizer_step_pre_hook(lambda optimizer, *_: seen(optimizer)),
        register_optimizer_step_post_hook(lambda optimizer, *_: after(optimizer)),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
