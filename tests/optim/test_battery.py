"""Every method keeps the contract. A new file in conf/optimizer/ gets all of it."""

import pytest
import torch

from sam_bench.conf_files import wraps_a_method
from sam_bench.optim import RST, SAM, Constant
from sam_bench.testing import CHECKS
from sam_bench.testing.dispatch import operations_around
from sam_bench.testing.problem import BATCH, BATCHES, TOTAL, problem
from tests.optim.methods import BASE, FILES, NAMES, build, sgd
from tests.optim.schedulable import SCHEDULABLE, UNDER_RST

TWO_PASSES = (
    "sam",
    "asam",
    "fsam",
    "vasso",
    "gsam",
    "adasam",
    "ssam_f",
    "ssam_d",
    "lesam",
    "sam_on",
    "stable_sam",
    "asyncsam",
)
everyone = pytest.mark.parametrize("name", NAMES)
WITH_SHARED = [name for name in NAMES if isinstance(build(name, problem().model), SAM)]  # with the options of SAM


@pytest.mark.parametrize("check", CHECKS, ids=str)
@everyone
def test_contract(check, name, device):
    check(lambda model: build(name, model), device=device)


@pytest.mark.parametrize(
    "check", [c for c in CHECKS if c.name in ("keeps_the_memory_it_claims", "keeps_its_state_round_trip")], ids=str
)
@pytest.mark.parametrize(("name", "settings"), [*((name, {}) for name in WITH_SHARED), ("looksam", {"alpha": 0.0})])
def test_memory_with_normalization_layers_alone(check, name, settings, device):
    check(lambda model: build(name, model, only_norm=True, **settings), device=device)


@pytest.mark.parametrize(
    "check", [c for c in CHECKS if c.name in ("resumes_exactly", "restores_theta_after_an_error")], ids=str
)
@pytest.mark.parametrize("name", UNDER_RST)
def test_contract_under_a_coin(check, name, device):
    check(lambda model: build(name, model), device=device)


@everyone
def test_shares_groups_and_state_with_its_base(name, device):
    p = problem(device)
    optimizer = build(name, p.model)
    base = optimizer.innermost
    for loaded in (optimizer, optimizer.base, base):  # torch binds new lists and dicts in the one that loads
        loaded.load_state_dict(loaded.state_dict())
        assert optimizer.param_groups is base.param_groups
        assert optimizer.state is base.state
    base.param_groups[0]["lr"] = 0.123
    assert optimizer.param_groups[0]["lr"] == 0.123


@everyone
def test_sharpness_aware_steps(name, device):
    p = problem(device)
    optimizer = build(name, p.model)
    p.run(optimizer, TOTAL)
    aware = optimizer.sharpness_aware_steps
    if name == "s2sam":
        assert (aware, optimizer.propagations) == (TOTAL - 1, TOTAL)
    elif name == "rst_s2sam":
        assert aware == TOTAL - (not optimizer.draw(0))
        assert optimizer.propagations == TOTAL + sum(optimizer.draw(t) for t in range(TOTAL))
    elif isinstance(optimizer, RST):
        assert aware == sum(optimizer.draw(t) for t in range(TOTAL))
    elif name in TWO_PASSES:
        assert (aware, optimizer.propagations) == (TOTAL, 2 * TOTAL)
    else:
        assert aware == 0 if name in ("sgd", "adamw", "timm") else 0 < aware <= TOTAL


# those that choose by the gradient, or toss a coin: tests/optim/test_train.py has their ranges
@pytest.mark.parametrize(
    "name", sorted(set(NAMES) - {"aesam", "aelooksam", "vsam", "rst", "grst", "late_sam", "rst_s2sam"})
)
def test_it_spends_what_it_expects(name, device):
    p = problem(device)
    optimizer = build(name, p.model, **{"mesa": {"start_epochs": 0}}.get(name, {}))
    steps = 3 * BATCHES
    for t in range(steps):
        optimizer.step(p.closure(optimizer, t))
    # to one step of a period, and one sample per pass
    expected = pytest.approx(steps * optimizer.expected_propagations_per_step, abs=1 + steps / BATCH)
    assert optimizer.propagations == expected
    assert optimizer.forwards == steps * optimizer.expected_forwards_per_step
    if name in SCHEDULABLE:
        half = RST(optimizer, Constant(0.5), total_steps=steps)
        assert half.expected_forwards_per_step == optimizer.expected_forwards_per_step / 2


@everyone
def test_a_state_dict_of_another_method_is_refused(name, device):
    optimizer = build(name, problem(device).model)
    with pytest.raises(ValueError, match="Invalid state_dict: not saved by"):
        optimizer.load_state_dict(optimizer.innermost.state_dict())


@everyone
def test_few_operations_with_the_base_included(name, device):
    torch.manual_seed(0)
    p = problem(device)
    once = {"update_epochs": 1000} if name.startswith("ssam") else {}  # a new mask is no part of most steps
    optimizer = build(name, p.model, sgd(p.model, fused=True), **once)
    p.run(optimizer, TOTAL - 3)  # by then the buffers are allocated
    operations = operations_around(optimizer, p.closure(optimizer), TOTAL // 2)
    assert 0 < len(operations) <= (20 if name in ("sgd", "adamw", "sam", "rst", "grst", "s2sam") else 60), operations


@everyone
def test_a_base_that_needs_the_closure_is_refused(name, device):
    model = problem(device).model
    with pytest.raises(ValueError, match="LBFGS evaluates the closure itself"):
        build(name, model, torch.optim.LBFGS(model.parameters()))


@pytest.mark.parametrize("name", [name for name in NAMES if not wraps_a_method(FILES[name])])
def test_a_base_that_is_a_method_is_refused(name, device):
    model = problem(device).model
    with pytest.raises(ValueError, match="Invalid base: SAM is a method itself"):
        build(name, model, SAM(sgd(model)))


@everyone
@pytest.mark.parametrize("base", ["sgd", "adamw", "timm"])
def test_any_base_trains(name, base, device):
    p = problem(device).one_batch()
    optimizer, start = build(name, p.model, BASE.get(base, sgd)(p.model)), p.loss()
    p.run(optimizer, TOTAL)
    assert p.loss() < 0.7 * start
