"""The contract check finds faults that were planted, passes the sound, and runs in three ways."""

import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch.optim import SGD

from sam_bench.optim import SAM
from sam_bench.testing import CHECKS, Check, check_optimizer
from sam_bench.testing.checks import NotApplicable, is_a_torch_optimizer

REPOSITORY = Path(__file__).parent.parent


def base(model):
    return SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)


class LosesMomentum(SAM):
    def state_dict(self):
        return super().state_dict() | {"state": {}}


class MovesBatchNormTwice(SAM):
    @contextmanager
    def frozen_batch_norm(self):
        yield


class StaysPerturbedAfterAnError(SAM):
    @contextmanager
    def offset_by(self, params, epsilon):
        theta = [p.detach().clone() for p in params]
        torch._foreach_add_(params, epsilon)
        yield
        torch._foreach_copy_(params, theta)


class DoesNotCount(SAM):
    def second_pass(self, closure, selection=None):
        before = dict(self.counts)
        super().second_pass(closure, selection)
        self.counts.update(before)


class SubtractsEpsilon(SAM):
    @contextmanager
    def offset_by(self, params, epsilon):
        epsilon = [e.clone() for e in epsilon]
        torch._foreach_add_(params, epsilon)
        try:
            yield
        finally:
            torch._foreach_sub_(params, epsilon)


class KeepsItsGraph(SAM):
    def update(self, closure):
        return super().update(closure) * torch.ones((), requires_grad=True)

    update = torch.enable_grad()(update)


class ReturnsTheSecondLoss(SAM):
    def gradient(self, closure):
        self.first_pass(closure)
        with self.at_perturbed_weights():
            return self.propagate(closure)


class Waits(SAM):
    def epsilon(self, params):
        grads = self.grads(params)
        norm = sum(g.square().sum() for g in grads).sqrt().item()
        torch._foreach_mul_(grads, self.rho / norm)
        return grads


class CopiesTheWeights(SAM):
    def own_state(self):
        return super().own_state() | {"backup": [p.detach().clone() for p in self.params()]}


class IgnoresLossOfPrecision(SAM):
    @contextmanager
    def offset_by(self, params, epsilon):
        theta = [p.detach().clone() for p in params]
        torch._foreach_add_(params, epsilon)
        try:
            yield  # autocast still has θ
        finally:
            torch._foreach_copy_(params, theta)


PLANTED = {
    LosesMomentum: "resumes_exactly",
    MovesBatchNormTwice: "updates_batch_norm_once",
    StaysPerturbedAfterAnError: "restores_theta_after_an_error",
    DoesNotCount: "counts_its_passes",
    SubtractsEpsilon: "restores_theta_before_the_base_steps",
    KeepsItsGraph: "returns_the_loss_of_the_first_pass",
    ReturnsTheSecondLoss: "returns_the_loss_of_the_first_pass",
    Waits: "waits_for_nothing",
    CopiesTheWeights: "keeps_its_state_round_trip",
    IgnoresLossOfPrecision: "works_under_autocast",
}


@pytest.mark.parametrize("fault", PLANTED, ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_found(fault):
    report = check_optimizer(lambda model: fault(base(model), model=model))
    assert not report.passed
    assert PLANTED[fault] in report.failed
    assert len(report.failed) <= 8, "most checks do not depend on it"


def test_a_sound_one_passes():
    seen = []
    report = check_optimizer(lambda model: SAM(base(model), model=model), progress=seen.append)
    assert report.passed
    assert report.failed == []
    assert tuple(seen) == report.results
    lines = str(report).splitlines()
    assert len(lines) == len(CHECKS) + 1
    assert lines[-1] == f"{len(CHECKS)} passed, 0 failed, 0 skipped"


def test_another_packages_sam():
    """What docs/contract.md shows of it."""
    import pytorch_optimizer

    def step(optimizer, closure):  # as its documentation has it: the first pass is the caller's
        loss = closure()
        optimizer.step(closure)
        return loss.detach()

    settings = {"rho": 0.05, "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
    report = check_optimizer(lambda model: pytorch_optimizer.SAM(model.parameters(), SGD, **settings), step=step)
    assert {"counts_its_passes", "updates_batch_norm_once", "restores_theta_after_an_error"} <= set(report.failed)
    assert "learns" not in report.failed
    page = (REPOSITORY / "docs" / "contract.md").read_text()
    for result in report.results:
        assert f"{result.outcome:<7}  {result.check.name} " in page.split("## Result for pytorch_optimizer")[1], result
    assert (
        str(check_optimizer(lambda model: SAM(base(model), model=model)))
        in page.split("## Result for pytorch_optimizer")[0]
    )


def test_what_is_no_optimizer_fails_every_check_in_one_line_each():
    report = check_optimizer(lambda model: None)
    assert not any(result.outcome == "passed" for result in report.results)
    assert all("\n" not in str(result) for result in report.results)


def test_a_check_by_itself():
    check = Check(is_a_torch_optimizer)
    check(lambda model: SAM(base(model)))
    with pytest.raises(AssertionError, match="not the model's parameters"):
        check(lambda model: SAM(SGD(list(model.parameters())[:1], lr=0.1)))
    assert issubclass(NotApplicable, __import__("unittest").SkipTest)  # pytest shows it as skipped


@pytest.mark.parametrize(
    ("target", "status", "words"),
    [
        ("sam_bench.optim.LookSAM", 0, "passed, 0 failed"),
        ("tests.test_testing.LosesMomentum", 1, "FAILED   resumes_exactly"),
        ("sam_bench.optim.SMA", 2, "error: sam_bench.optim.SMA: cannot be imported"),
        ("SAM", 2, "error: SAM: cannot be imported"),
    ],
)
def test_the_command(target, status, words):
    command = [sys.executable, "-m", "sam_bench.testing", target]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert words in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
