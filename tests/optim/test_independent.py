"""SAM, ASAM and GSAM against those of the package pytorch_optimizer, which others wrote.

Where it is right: it does not look after BatchNorm, and loses momentum on a reload, so here are neither. Its ASAM has
T = |θ| on all parameters, ours has |θ| + η on weights: the net has weights alone, and η is 0.
"""

import pytest
import torch
from torch import nn

from sam_bench.testing.problem import TOTAL
from tests.optim.methods import build

SGD = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}


@pytest.fixture
def data(device):
    torch.manual_seed(0)
    x = torch.randn(5, 32, 8, device=device, dtype=torch.float64)
    return x, torch.randint(4, (5, 32), device=device)


def net(device):
    torch.manual_seed(1)
    layers = nn.Linear(8, 16, bias=False), nn.Tanh(), nn.Linear(16, 4, bias=False)
    return nn.Sequential(*layers).to(device, torch.float64)


def ours(name, data, device, lr_at=lambda t: 0.05, **settings):
    model = net(device)
    optimizer = build(name, model, torch.optim.SGD(model.parameters(), **SGD), shape=(8,), **settings)
    for t in range(TOTAL):
        x, y = data[0][t % 5], data[1][t % 5]
        optimizer.param_groups[0]["lr"] = lr_at(t)

        def closure(x=x, y=y):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            return loss

        optimizer.step(closure)
    return [p.detach() for p in model.parameters()]


@pytest.mark.parametrize(
    ("name", "settings", "theirs"),
    [
        ("sam", {"rho": 0.1}, {"rho": 0.1}),
        ("asam", {"rho": 0.7, "eta": 0.0}, {"rho": 0.7, "adaptive": True}),
    ],
)
def test_sam_and_asam(name, settings, theirs, data, device):
    from pytorch_optimizer import SAM

    model = net(device)
    optimizer = SAM(model.parameters(), torch.optim.SGD, perturb_eps=0.0, **theirs, **SGD)
    for t in range(TOTAL):
        x, y = data[0][t % 5], data[1][t % 5]
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.first_step(zero_grad=True)
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.second_step(zero_grad=True)
    for a, b in zip(ours(name, data, device, **settings), model.parameters(), strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=1e-6, atol=1e-6)


def test_gsam(data, device):
    from pytorch_optimizer import GSAM, LinearScheduler, ProportionScheduler

    model = net(device)
    base = torch.optim.SGD(model.parameters(), **SGD)
    schedule = LinearScheduler(base, t_max=TOTAL, max_lr=0.05, min_lr=0.0)
    rho = ProportionScheduler(schedule, max_lr=0.05, min_lr=0.0, max_value=0.3, min_value=0.1)
    optimizer = GSAM(model.parameters(), base, model, rho, alpha=0.6, adaptive=False, perturb_eps=0.0)
    rates = []
    for t in range(TOTAL):
        x, y = data[0][t % 5], data[1][t % 5]
        rates.append(base.param_groups[0]["lr"])
        optimizer.rho_t = 0.1 + 0.2 * rates[-1] / 0.05
        optimizer.set_closure(nn.functional.cross_entropy, x, y)
        optimizer.step()
        schedule.step()
    mine = ours("gsam", data, device, lr_at=rates.__getitem__, rho_min=0.1, rho_max=0.3, alpha=0.6)
    for a, b in zip(mine, model.parameters(), strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=1e-6, atol=1e-6)
