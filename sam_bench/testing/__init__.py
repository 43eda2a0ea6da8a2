"""The contract of this package's optimizers as a check that anyone can run on an optimizer. Needs only torch.

    report = check_optimizer(lambda model: SAM(SGD(model.parameters(), lr=0.1), rho=0.05, model=model))
    print(report)          # one line per check
    assert report.passed

With pytest, one test per check:

    @pytest.mark.parametrize("check", CHECKS, ids=str)
    def test_contract(check):
        check(factory)
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sam_bench.testing.checks import FUNCTIONS, Factory, NotApplicable, Step, Subject

__all__ = ["CHECKS", "Check", "Report", "Result", "check_optimizer"]


def _step(optimizer: Any, closure: Any) -> Tensor:
    return optimizer.step(closure)


@dataclass(frozen=True)
class Check:
    """One check. Calling it raises an AssertionError if the optimizer is at fault, or `unittest.SkipTest`."""

    function: Callable[[Subject], None]

    def __call__(self, factory: Factory, *, step: Step = _step, device: str | torch.device = "cpu") -> None:
        """Run it; see `check_optimizer`."""
        torch.manual_seed(0)
        with warnings.catch_warnings():
            # about the order of scheduler and optimizer, which a copied scheduler cannot see
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            self.function(Subject(factory, step, torch.device(device)))

    @property
    def name(self) -> str:
        """What it is called."""
        return self.function.__name__

    @property
    def description(self) -> str:
        """What it checks, in one sentence."""
        return (self.function.__doc__ or "").strip()

    def __str__(self) -> str:
        return self.name


CHECKS = tuple(Check(function) for function in FUNCTIONS)


@dataclass(frozen=True)
class Result:
    """The outcome of one check: `passed`, `FAILED` or `skipped`, and why."""

    check: Check
    outcome: str
    why: str = ""

    def __str__(self) -> str:
        return f"{self.outcome:<7}  {self.check.name:<37}  {self.why or self.check.description}"


@dataclass(frozen=True)
class Report:
    """The results of all checks."""

    results: tuple[Result, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not self.failed

    @property
    def failed(self) -> list[str]:
        """The names of the checks that failed."""
        return [result.check.name for result in self.results if result.outcome == "FAILED"]

    def __str__(self) -> str:
        counts = [sum(r.outcome == outcome for r in self.results) for outcome in ("passed", "FAILED", "skipped")]
        last = f"{counts[0]} passed, {counts[1]} failed, {counts[2]} skipped"
        return "\n".join([*map(str, self.results), last])


def check_optimizer(
    factory: Factory,
    *,
    step: Step = _step,
    device: str | torch.device = "cpu",
    progress: Callable[[Result], None] = lambda _: None,
) -> Report:
    """Check whether an optimizer keeps the contract of docs/contract.md. Takes a few seconds.

    Args:
        factory: called with a model, returns an optimizer for its parameters. The models are small, take images
            (B, 1, 8, 8) and are trained for 20 steps; call it with the same model twice and it gives equal optimizers.
        step: makes one step; the default is `optimizer.step(closure)`. The closure does zero_grad, forward and backward
            and returns the loss.
        device: where to train.
        progress: called with each result as it comes.

    Returns:
        A report with `passed` and one line per check.
    """
    results = []
    for check in CHECKS:
        try:
            check(factory, step=step, device=device)
            result = Result(check, "passed")
        except NotApplicable as reason:
            result = Result(check, "skipped", str(reason))
        except Exception as error:
            why = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
            result = Result(check, "FAILED", " ".join(why.split())[:300])
        progress(result)
        results.append(result)
    return Report(tuple(results))
