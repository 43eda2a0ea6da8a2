"""Settings at which two methods are the same one, bit for bit."""

import pytest
import torch
from torch import nn

from sam_bench.optim import S2SAM, SAM, Constant, Descent
from sam_bench.testing.problem import BATCHES, TOTAL, problem, same, weights
from tests.optim.methods import NAMES, adamw, build, grst, rst, sgd
from tests.optim.schedulable import SCHEDULABLE

BASES = pytest.mark.parametrize("base", [sgd, adamw], ids=["sgd", "adamw"])


def plain(model, base):
    return Descent(base(model), model=model)


def sam(model, base, rho=0.05):
    return SAM(base(model), rho, model=model)


def of(name, **settings):
    return lambda model, base: build(name, model, base(model), **settings)


def without_its_term(name):
    def make(model, base):
        optimizer = build(name, model, base(model))
        optimizer.start_steps = 10**9
        return optimizer

    return make


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
    "LookSAM k=1 ≡ SAM": (of("looksam", k=1, rho=0.05), sam),
    "GSAM α=0, constant ρ ≡ SAM": (of("gsam", alpha=0.0), sam),
    "ESAM β=1, γ=1 ≡ SAM": (of("esam", beta=1.0, gamma=1.0), sam),
    "F-SAM σ=0 ≡ SAM": (of("fsam", sigma=0.0), sam),
    "VaSSO θ=1 ≡ SAM": (of("vasso", theta=1.0), sam),
    "AUSAM whole batch ≡ SAM": (of("ausam", share=1.0, rho=0.05), of("sam")),
    "K-SAM whole batch ≡ SAM": (of("ksam", share=1.0), sam),
    "vSAM quota K ≡ SAM": (of("vsam", quota=6.0, quota_max=1.0, alpha_1=0.0, alpha_2=0.0, sam_epochs=0), sam),
    "SSAM-F sparsity 0 ≡ SAM": (of("ssam_f", sparsity=0.0, rho=0.05), sam),
    "SSAM-D sparsity 0 ≡ SAM": (of("ssam_d", sparsity=0.0, rho=0.05), sam),
    "SSAM-F 4:4 ≡ SAM": (of("ssam_f", pattern="n:m", n=4, rho=0.05), sam),
    "AE-SAM, every step large ≡ SAM": (of("aesam", lambda_1=-99.0, lambda_2=-99.0), sam),
    "AE-SAM, no step large ≡ base": (of("aesam", lambda_1=99.0, lambda_2=99.0), plain),
    "AE-LookSAM α=0 ≡ AE-SAM": (of("aelooksam", alpha=0.0), of("aesam")),
    "periodic SAM ≡ LookSAM α=0": (of("periodic_sam"), of("looksam", alpha=0.0)),
    "AdaSAM ≡ SAM over its base": (of("adasam"), sam),
    "MSAM ρ=0 ≡ base": (of("msam", rho=0.0), plain),
    # the closure of both is the one that tells samples apart; it takes the mean of single losses
    "SAF λ=0 ≡ base": (of("saf", lam=0.0), without_its_term("saf")),
    "MESA λ=0 ≡ base": (of("mesa", lam=0.0), without_its_term("mesa")),
    "SAF, MESA before they start ≡ base": (without_its_term("saf"), without_its_term("mesa")),
    "S²-SAM ρ=0 ≡ base": (lambda m, b: S2SAM(sam(m, b, rho=0)), plain),
    "S²-SAM p=1 ≡ SAM": (lambda m, b: S2SAM(sam(m, b), Constant(1), TOTAL), sam),
    "S²-SAM over VaSSO θ=1 ≡ S²-SAM": (
        lambda m, b: S2SAM(build("vasso", m, b(m), theta=1.0)),
        lambda m, b: S2SAM(sam(m, b)),
    ),
    "AsyncSAM ρ=0 ≡ base": (of("asyncsam", rho=0.0), plain),
    "LE-SAM, its largest radius 0 ≡ base": (of("lesam", rho=0.0), plain),
    "LE-SAM, no budget ≡ base": (of("lesam", loss_budget=0.0), plain),
    "VaSSO with ASAM's T, θ=1 ≡ ASAM": (of("vasso", theta=1.0, eta=0.01, rho=0.1), of("asam")),
    "F-SAM with ASAM's T, σ=0 ≡ ASAM": (of("fsam", sigma=0.0, eta=0.01, rho=0.1), of("asam")),
    "ASAM without T ≡ SAM": (of("asam", eta=None, rho=0.05), sam),
    "ascent_share of all ≡ SAM": (of("sam", ascent_share=1.0), sam),
    **{f"{name} ρ=0 ≡ base": (of(name, rho=0.0), plain) for name in ("asam", "fsam", "vasso", "ssam_f", "ssam_d")},
    "LookSAM ρ=0 ≡ base": (of("looksam", rho=0.0, alpha=0.0), plain),
    "LookSAM with its own α, ρ=0 ≡ base": (of("looksam", rho=0.0), plain),
    "GSAM ρ=0, α=0 ≡ base": (of("gsam", rho_min=0.0, rho_max=0.0, alpha=0.0), plain),
    "AE-SAM ρ=0 ≡ base": (of("aesam", rho=0.0), plain),
    "ESAM ρ=0, γ=1 ≡ base": (of("esam", rho=0.0, gamma=1.0), plain),
    "vSAM ρ=0 ≡ base": (of("vsam", rho=0.0), plain),
    **{
        f"RST p=1 over {name} ≡ {name}": (lambda m, b, n=name: rst(build(n, m, b(m)), p=1), of(name))
        for name in SCHEDULABLE
    },
    **{
        f"G-RST γ=0 over {name} ≡ base": (lambda m, b, n=name: grst(build(n, m, b(m)), gamma=0), plain)
        for name in SCHEDULABLE
        if name not in ("esam", "ausam", "ksam")  # whose first pass is not that of the base
    },
    **{
        f"G-RST γ=1 over {name} ≡ RST over it": (
            lambda m, b, n=name, s=settings: grst(build(n, m, b(m), **s), gamma=1),
            lambda m, b, n=name, s=settings: rst(build(n, m, b(m), **s)),
        )
        for name in SCHEDULABLE
        for settings in [{"beta": 1.0} if name == "esam" else {}]  # it mixes the first gradient of all tensors
    },
}
DIFFERENT = {
    "SAM, base": (sam, plain),
    "RST, base": (lambda m, b: rst(sam(m, b)), plain),
    "RST, SAM": (lambda m, b: rst(sam(m, b)), sam),
    "G-RST, RST": (lambda m, b: grst(sam(m, b), gamma=2), lambda m, b: rst(sam(m, b))),
    "unit norm": (lambda m, b: grst(sam(m, b), unit_norm=True), lambda m, b: grst(sam(m, b))),
    **{f"{name}, SAM": (of(name), sam) for name in NAMES if name not in ("sam", "adasam", "timm")},
    "AE-LookSAM, AE-SAM": (of("aelooksam"), of("aesam")),
    "LookSAM, periodic SAM": (of("looksam"), of("periodic_sam")),
    "SSAM-F, SSAM-D": (of("ssam_f"), of("ssam_d")),
    "SSAM-F emulated, explicit": (of("ssam_f", form="emulated"), of("ssam_f")),
    "SSAM-F channels, tensors": (of("ssam_f", pattern="channel"), of("ssam_f", pattern="tensor")),
    "MSAM, base": (of("msam"), plain),
    "SAF, base": (of("saf"), of("saf", lam=0.0)),
    "MESA, base": (of("mesa"), of("mesa", lam=0.0)),
    "S²-SAM, SAM": (of("s2sam"), sam),
    "S²-SAM, base": (of("s2sam"), plain),
    "S²-SAM over ASAM, over SAM": (lambda m, b: S2SAM(build("asam", m, b(m))), of("s2sam")),
    "VaSSO with ASAM's T, VaSSO": (of("vasso", eta=0.01), of("vasso")),
    "a part of the batch, all of it": (of("sam", ascent_share=0.25), of("sam")),
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
def test_asam_without_a_weight_is_sam(base, device):
    """T = 1 on all that is trained."""
    results = []
    for make in (of("asam", rho=0.05), of("sam", rho=0.05)):
        p = problem(device)
        for name, q in p.model.named_parameters():
            q.requires_grad_(not name.endswith("weight"))
        p.run(make(p.model, base), TOTAL)
        results.append(weights(p))
    assert same(*results)


@BASES
def test_the_plain_method_is_the_base_itself(base, device):
    p, q = problem(device), problem(device)
    wrapped, bare = plain(p.model, base), base(q.model)
    p.run(wrapped, TOTAL)
    for t in range(TOTAL):
        bare.zero_grad()
        nn.functional.cross_entropy(q.model(q.images[t % BATCHES]), q.labels[t % BATCHES]).backward()
        bare.step()
    assert same(weights(p), weights(q))
