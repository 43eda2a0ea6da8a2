"""The methods on parameters that FSDP2 shards, in gloo processes."""

import gc

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

from sam_bench.optim import ASAM, RST, SAM, ArgumentError, Constant, Descent
from sam_bench.testing.problem import Problem, make_closure, problem
from tests.optim.ddp import here, on_ranks, part, without_batch_norm
from tests.optim.methods import NAMES, build, sgd

METHODS = {
    "base": lambda model: Descent(sgd(model), model=model),
    "sam": lambda model: SAM(sgd(model), rho=0.1, model=model),
    "lesam": lambda model: build("lesam", model, rho=0.1),
    "stable_sam": lambda model: build("stable_sam", model, rho=0.1),
    "sam_on": lambda model: build("sam_on", model, rho=0.1),
    "asam": lambda model: ASAM(sgd(model), rho=1.0, model=model),
    "rst over sam": lambda model: RST(SAM(sgd(model), rho=0.1, model=model), Constant(0.5), 20),
    "sam over adamw": lambda model: SAM(torch.optim.AdamW(model.parameters(), lr=0.01), rho=0.1, model=model),
}


def net(width=13) -> nn.Module:
    """Without BatchNorm; no size is divisible by two."""
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.ReLU())
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), block, nn.Linear(width, 5))


def train(optimizer, model, at: Problem, steps: int, rank: int = 0, ranks: int = 1) -> None:
    for step in range(steps):
        optimizer.step(make_closure(optimizer, model, *part(at, step, rank, ranks)))


def sharded(model: nn.Module) -> nn.Module:
    fully_shard(model[2])
    return fully_shard(model)


def weights(rank, ranks):
    found = {}
    for name, make in METHODS.items():
        at = without_batch_norm(here())
        model = sharded(net().double().to(here()))
        optimizer = make(model)
        train(optimizer, model, at, 20, rank, ranks)
        found[name] = [p.full_tensor().detach() for p in model.parameters()]
        found[name, "extra"] = optimizer.extra_bytes
        found[name, "weights"] = sum(p.to_local().nbytes for p in model.parameters())
    return found


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_weights_are_those_of_one_process(ranks, tmp_path):
    found = on_ranks(ranks, tmp_path / "ranks", weights)
    for name, make in METHODS.items():
        model = net().double()
        train(make(model), model, without_batch_norm(), 20)
        for of_rank in found:
            for one, other in zip(of_rank[name], model.parameters(), strict=True):
                torch.testing.assert_close(one, other, atol=1e-9, rtol=0)
            number = {"lesam": 4, "stable_sam": 8}.get(name, 0)  # σ_t, ‖g‖
            if name != "sam_on":  # which keeps θ of the perturbed weights alone
                assert of_rank[name, "extra"] == number + (0 if name == "base" else of_rank[name, "weights"])


def refusals(rank, ranks):
    found = {}
    for name in NAMES:
        try:
            build(name, sharded(net()))
        except Exception as error:
            found[name] = str(error)
    try:
        model = net()
        SAM(torch.optim.SGD([*sharded(model).parameters(), nn.Parameter(torch.zeros(3))], lr=0.1), model=model)
    except ArgumentError as error:
        found["mixed"] = str(error)
    return found


def test_all_others_are_refused(tmp_path):
    (found, _) = on_ranks(2, tmp_path / "ranks", refusals)
    allowed = {"sgd", "adamw", "timm", "sam", "adasam", "lesam", "sam_on", "stable_sam", "asam", "rst", "late_sam"}
    assert set(found) == {*NAMES, "mixed"} - allowed
    assert "unsharded parameters, which GSAM requires" in found["gsam"]
    assert "all of them sharded, or none" in found["mixed"]


def held(rank, ranks) -> int:
    """Bytes of all tensors that are alive between two steps of SAM, with a net of 9 MB."""
    model = net(1500).to(here())
    if ranks > 1:
        sharded(model)
    optimizer = METHODS["sam"](model)
    train(optimizer, model, problem(here()), 2, rank, ranks)
    optimizer.zero_grad()
    gc.collect()
    tensors = [t for t in gc.get_objects() if isinstance(t, torch.Tensor) and not hasattr(t, "to_local")]
    storages = {s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in tensors)}
    return sum(storages.values())


def test_each_rank_holds_its_share_of_weights_state_and_perturbation(tmp_path):
    (alone,) = on_ranks(1, tmp_path / "one", held)
    shares = on_ranks(4, tmp_path / "four", held)
    assert alone > 3 * 9e6  # weights, momentum, and θ during the second pass
    for share in shares:
        assert share / alone == pytest.approx(1 / 4, rel=0.1)
