"""python -m sam_bench.testing my_package.MySAM: check an optimizer against the contract, one line per check."""

import argparse
import importlib
import inspect
import sys
from typing import Any

import torch
from torch import nn

from sam_bench.testing import check_optimizer
from sam_bench.testing.problem import of_training


def factory_of(target: Any) -> Any:
    """A factory for a class whose constructor takes a base optimizer; anything else is a factory already."""
    parameters: set[str] = set()
    for each in target.__mro__ if isinstance(target, type) else ():
        own = inspect.signature(each.__init__).parameters  # type: ignore[misc]
        parameters |= own.keys()
        if all(p.kind != p.VAR_KEYWORD for p in own.values()):  # otherwise the next class has the rest
            break
    if "base" not in parameters:
        return target

    def factory(model: nn.Module) -> torch.optim.Optimizer:
        base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
        return target(base, **{k: v for k, v in of_training(model).items() if k in parameters})

    return factory


def main() -> int:
    """Check; return 0 if all checks pass, 1 if one fails, 2 if there is no such optimizer."""
    parser = argparse.ArgumentParser(prog="python -m sam_bench.testing", description=__doc__)
    parser.add_argument("target", help="my_package.MySAM, whose constructor takes a base, or my_package.factory(model)")
    parser.add_argument("--device", default="cpu", help="where to train: cpu (default), cuda or another torch device")
    args = parser.parse_args()
    module, _, name = args.target.rpartition(".")
    sys.path.insert(0, "")  # as `python -m` does: the current folder
    try:
        target = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        print(f"error: {args.target}: cannot be imported ({error})", file=sys.stderr)
        return 2
    report = check_optimizer(factory_of(target), device=args.device, progress=lambda result: print(result, flush=True))
    print(str(report).splitlines()[-1])
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(main())
