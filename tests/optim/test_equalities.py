"""methods.md, section 5: settings at which two methods are the same one, bit for bit."""

import pytest
import torch

from sam_bench.optim import SAM, Descent
from tests.optim.methods import TOTAL, adamw, grst, problem, rst, same, sgd, weights

BASES = pytest.mark.parametrize("base", [sgd, adamw], ids=["sgd", "adamw"])


def plain(model, base):
    return Descent(base(model), model)


def sam(model, base, rho=0.05):
    return SAM(base(model), rho, model)


EQUAL = {
    "SAM ρ=0 ≡ base": (lambda m, b: sam(m, b, rho=0), plain),
    "RST ρ=0 ≡ base": (lambda m, b: rst(sam(m, b, rho=0)), plain),
    "G-RST ρ=0 ≡ base": (lambda m, b: grst(sam(m, b, rho=0), gamma=3.0), plain),
    "RST p=0 ≡ base": (lambda m, b: rst(sam(m, b), p=0), plain),
    "RST p=1 ≡ SAM": (lambda m, b: rst(sam(m, b), p=1), sam),
    "G-RST p=0 ≡ base": (lambda m, b: grst(sam(m, b), p=0, gamma=3.0), plain),
    "G-RST γ=1 ≡ RST": (lambda m, b: grst(sam(m, b), gamma=1), lambda m, b: rst(sam(m, b))),
    "G-RST γ=0 ≡ base": (lambda m, b: grst(sam(m, b), gamma=0), plain),
    "G-RST p=1 w=1 ≡ SAM": (lambda m, b: grst(sam(m, b), p=1, gamma=None, weight=1.0), sam),
}
DIFFERENT = {
    "SAM, base": (sam, plain),
    "RST, base": (lambda m, b: rst(sam(m, b)), plain),
    "RST, SAM": (lambda m, b: rst(sam(m, b)), sam),
    "G-RST, RST": (lambda m, b: grst(sam(m, b), gamma=2), lambda m, b: rst(sam(m, b))),
    "unit norm": (lambda m, b: grst(sam(m, b), unit_norm=True), lambda m, b: grst(sam(m, b))),
}


def run(build, base, device):
    p = problem(device)
    optimizer = build(p.model, base)
    p.run(optimizer, TOTAL)
    momenta = [t for s in optimizer.state_dict()["state"].values() for t in s.values() if isinstance(t, torch.Tensor)]
    return weights(p) + momenta


@BASES
@pytest.mark.parametrize("case", EQUAL)
def test_equal(case, base, device):
    one, other = (run(build, base, device) for build in EQUAL[case])
    assert same(one, other)


@BASES
@pytest.mark.parametrize("case", DIFFERENT)
def test_different(case, base, device):
    """So that the equalities above are not those of methods that do nothing."""
    one, other = (run(build, base, device) for build in DIFFERENT[case])
    assert not same(one, other)


@BASES
def test_the_plain_method_is_the_base_itself(base, device):
    p, q = problem(device), problem(device)
    wrapped, bare = plain(p.model, base), base(q.model)
    p.run(wrapped, TOTAL)
    for t in range(TOTAL):
        bare.step(q.closure(bare, t))
    assert same(weights(p), weights(q))
