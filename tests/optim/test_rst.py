import pytest
import torch
from torch.optim import SGD

from sam_bench.optim import (
    AESAM,
    ASAM,
    ESAM,
    FSAM,
    GRST,
    KSAM,
    MSAM,
    RST,
    S2SAM,
    SAF,
    SAM,
    SSAMD,
    SSAMF,
    VSAM,
    ArgumentError,
    AsyncSAM,
    Descent,
    LookSAM,
)
from sam_bench.schedules import Constant, Linear, Piecewise
from sam_bench.testing.problem import BATCH, BATCHES, of_training, problem
from tests.optim.methods import build, sgd


class Schedulable(Descent):
    unschedulable = ""


@pytest.fixture
def inner(device):
    model = problem(device).model
    return SAM(sgd(model), 0.05, model=model)


def test_draws_follow_from_seed_and_step_alone(inner):
    short, long = RST(inner, Constant(0.5), 10, seed=7), RST(inner, Constant(0.5), 1000, seed=7)
    assert [short.draw(t) for t in range(10)] == [long.draw(t) for t in range(10)]
    assert [long.draw(t) for t in reversed(range(1000))][::-1] == [long.draw(t) for t in range(1000)]
    other = RST(inner, Constant(0.5), 1000, seed=8)
    agree = sum(other.draw(t) == long.draw(t) for t in range(1000))
    assert abs(agree - 500) < 4 * 250**0.5


@pytest.mark.parametrize(
    ("schedule", "mean"), [(Constant(0.3), 0.3), (Linear(0, 0.8), 0.4), (Piecewise(0.1, 0.25), 0.7)], ids=str
)
def test_share_of_sharpness_aware_steps(inner, schedule, mean):
    steps = 20_000
    optimizer = RST(inner, schedule, steps, seed=1)
    expected = sum(schedule(t / steps) for t in range(steps))
    deviation = sum(schedule(t / steps) * (1 - schedule(t / steps)) for t in range(steps)) ** 0.5
    assert abs(sum(map(optimizer.draw, range(steps))) - expected) < 4 * deviation
    assert optimizer.expected_propagations_per_step == pytest.approx(1 + mean, abs=1e-4)


def test_warmup_has_no_sharpness_aware_step(inner):
    optimizer = RST(inner, Constant(1), 100, warmup_steps=40)
    assert [optimizer.draw(t) for t in range(100)] == [False] * 40 + [True] * 60
    assert optimizer.expected_propagations_per_step == 1.6


@pytest.mark.parametrize(
    ("name", "settings", "propagations", "forwards"),
    [
        ("mesa", {"start_epochs": 1}, 1, 2 / 3),  # three epochs
        ("vsam", {"sam_epochs": 1}, 1 + 1 / 3 + 2 / 3 * 0.45, 0),
    ],
)
def test_the_expected_cost_of_a_whole_training(name, settings, propagations, forwards):
    optimizer = build(name, problem().model, **settings)
    assert optimizer.expected_propagations_per_step == pytest.approx(propagations)
    assert optimizer.expected_forwards_per_step == pytest.approx(forwards)


def test_rst_expects_new_masks_however_few_of_its_steps_are_those_of_ssam():
    p = problem()
    training = of_training(p.model)
    masked = SSAMF(
        sgd(p.model), model=p.model, update_steps=BATCHES, samples=BATCH, batch_size=BATCH, sample=training["sample"]
    )
    steps = 40 * BATCHES
    optimizer = RST(masked, Constant(0.5), steps)
    p.run(optimizer, steps)
    assert optimizer.expected_propagations_per_step == pytest.approx(1.5 + 1 / BATCHES)
    found = optimizer.propagations - optimizer.sharpness_aware_steps - steps
    assert found == pytest.approx(steps / BATCHES, abs=3)  # a period of seven steps without any is rare


def test_steps_past_the_end_draw_with_the_last_probability(inner):
    assert all(RST(inner, Linear(0, 1), 10).draw(t) for t in range(10, 40))


def test_gamma_for_a_target_weight(inner):
    optimizer = GRST(inner, Linear(0, 1), 100, weight=0.5, gamma_max=2)
    assert optimizer.gamma_at(50) == 1
    assert optimizer.gamma_at(10) == 2
    assert optimizer.gamma_at(80) == pytest.approx(0.625)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda i: SAM(i.base, rho=-1), "Invalid rho: -1"),
        (lambda i: SAM(i.base, rho=float("nan")), "Invalid rho: nan"),
        (lambda i: SAM(i.base, rho=float("inf")), "Invalid rho: inf"),
        (lambda i: RST(Descent(i.base), Constant(1), 1), "Invalid inner: Descent"),
        (lambda i: RST(RST(i, Constant(1), 1), Constant(1), 1), "Invalid inner: RST"),
        (lambda i: RST(i.base, Constant(1), 1), "Invalid inner: SGD"),
        (lambda i: RST(i, 0.5, 10), "Invalid schedule: 0.5"),
        (lambda i: SAM(i.param_groups), "Invalid base: list"),
        (lambda i: RST(i, Constant(1), 0), "Invalid total_steps: 0"),
        (lambda i: RST(i, Constant(1), 1, seed=-1), "Invalid seed: -1"),
        (lambda i: GRST(i, Constant(1), 1), "Invalid gamma and weight: None and None"),
        (lambda i: GRST(i, Constant(1), 1, gamma=1, weight=1), "Invalid gamma and weight: 1 and 1"),
        (lambda i: GRST(i, Constant(1), 1, weight=-1), "Invalid weight: -1"),
        (lambda i: RST(MSAM(i.base, rho=1), Constant(1), 1), "Invalid inner: MSAM"),
        (lambda i: RST(SAF(i.base, train_size=10, steps_per_epoch=1), Constant(1), 1), "Invalid inner: SAF"),
        (lambda i: RST(AESAM(i.base, total_steps=10), Constant(1), 1), "Invalid inner: AESAM"),
        (lambda i: RST(VSAM(i.base), Constant(1), 1), "Invalid inner: VSAM"),
        (lambda i: S2SAM(LookSAM(i.base)), "Invalid inner: LookSAM .a method with SAM's two passes"),
        (lambda i: S2SAM(RST(i, Constant(1), 1)), "Invalid inner: RST"),
        (lambda i: S2SAM(SAM(i.base, ascent_share=0.5)), "Invalid inner: SAM .ascent_share=1"),
        (lambda i: S2SAM(SAM(i.base, stable=True)), "Invalid inner: SAM .ascent_share=1"),
        (lambda i: S2SAM(i, Linear(0, 1)), "Invalid total_steps: None"),
        (lambda i: RST(S2SAM(i), Constant(1), 1), "Invalid inner: S2SAM"),
        (lambda i: RST(AsyncSAM(i.base), Constant(1), 1), "Invalid inner: AsyncSAM"),
        (lambda i: SAM(i.base, loss_budget=-1, total_steps=9), "Invalid loss_budget: -1"),
        (lambda i: SAM(i.base, loss_budget=1), "Invalid total_steps: None"),
        (lambda i: SAM(i.base, stable=1), "Invalid stable: 1"),
        (lambda i: ESAM(i.base, stable=True), "Invalid stable: True"),
        (lambda i: FSAM(i.base, eta=0.1), "Invalid model: None"),
        (lambda i: SAM(i.base, ascent_share=0), "Invalid ascent_share: 0"),
        (lambda i: ASAM(i.base), "Invalid model: None"),
        (lambda i: ESAM(i.base, beta=0), "Invalid beta: 0"),
        (lambda i: GRST(Schedulable(i.base), Constant(1), 1, gamma=2), "Invalid inner: Schedulable"),
        (lambda i: GRST(ESAM(i.base, beta=0.5), Constant(1), 1, gamma=2), "Invalid inner: ESAM"),
        (lambda i: LookSAM(i.base, k=0), "Invalid k: 0"),
        (lambda i: SSAMD(i.base, total_steps=10, update_steps=5, sparsity=1.5), "Invalid sparsity: 1.5"),
        (lambda i: SSAMD(i.base, total_steps=10, update_steps=5, sparsity=1), "Invalid sparsity: 1"),
        (lambda i: SSAMD(i.base, total_steps=10, update_steps=5, pattern="n:m", n=5, m=4), "Invalid n: 5"),
        (lambda i: SSAMD(i.base, total_steps=10, update_steps=5, pattern="rows"), "Invalid pattern: rows"),
        (lambda i: MSAM(SGD([torch.ones(1)], lr=1)), "Invalid base: SGD with momentum 0"),
        (lambda i: ESAM(i.base).step(lambda: torch.zeros(())), "Invalid closure: ESAM needs per-sample losses"),
        (lambda i: KSAM(i.base).step(lambda: torch.zeros(())), "Invalid closure: KSAM needs per-sample losses"),
        (
            lambda i: SAM(i.base, ascent_share=0.5).step(lambda: torch.zeros(())),
            "Invalid closure: SAM needs per-sample",
        ),
    ],
)
def test_wrong_arguments(inner, wrong, message):
    with pytest.raises((TypeError, ValueError), match=message):
        wrong(inner)


@pytest.mark.parametrize("p", [1.5, -0.5, None, "x", torch.tensor(0.5), float("nan")])
def test_probabilities_outside_of_the_unit_interval_are_refused(p):
    base = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    with pytest.raises(ArgumentError, match="a function of t/T with values in"):
        RST(SAM(base), lambda s: p if s > 0.9 else 0.5, total_steps=100)
