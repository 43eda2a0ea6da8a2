"""Two ranks that share the passes of a step, in gloo processes: bit for bit what one process computes."""

import pytest
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves

from sam_bench.optim import ArgumentError, AsyncSAM, SAMPa
from sam_bench.testing.problem import TOTAL, problem, same
from tests.optim.ddp import here, on_ranks
from tests.optim.methods import sgd

METHODS = {"asyncsam": AsyncSAM, "half of the batch": AsyncSAM, "sampa": SAMPa}


def trained(name, pair=None):
    """The state of model and optimizer after some steps, the losses, and the passes that this process made."""
    p, passes = problem(here() if pair else "cpu"), []
    settings = {"ascent_share": 0.5} if name == "half of the batch" else {}
    optimizer = METHODS[name](sgd(p.model), rho=0.1, model=p.model, pair=pair, **settings)
    losses = []
    for step in range(TOTAL):
        closure = p.closure(optimizer, step, before=lambda: passes.append(0))
        losses.append(optimizer.step(closure).float())
    state = {"model": p.model.state_dict(), "optimizer": optimizer.state_dict(), "losses": torch.stack(losses)}
    return state, len(passes), optimizer.propagations, optimizer.sharpness_aware_steps


def in_pairs(rank, ranks):
    return {name: trained(name, distributed.group.WORLD) for name in METHODS}


def test_a_pair_computes_what_one_process_does_and_each_rank_makes_half_of_the_passes(tmp_path):
    one, other = on_ranks(2, tmp_path / "ranks", in_pairs)
    for name in METHODS:
        expected, passes, *counts = trained(name)
        assert passes == 2 * TOTAL
        first = 2 if name != "sampa" else 1  # AsyncSAM's first step is SAM's
        for state, mine, *counted in (one[name], other[name]):
            assert mine == TOTAL + first - 1
            assert counted == counts
            for a, b in zip(tree_leaves(state), tree_leaves(expected), strict=True):
                assert same([a], [b]) if isinstance(a, torch.Tensor) else a == b


def refusals(rank, ranks):
    model, found = problem(here()).model, []
    for method, wrong in (
        (AsyncSAM, {"model": DistributedDataParallel(model)}),
        (SAMPa, {}),
    ):
        try:
            method(sgd(model), pair=distributed.group.WORLD, **wrong)
        except ArgumentError as error:
            found.append(str(error))
    return found


def test_a_pair_needs_the_model_itself(tmp_path):
    for found in on_ranks(2, tmp_path / "ranks", refusals):
        assert len(found) == 2
        assert all("a model that is not in DistributedDataParallel" in each for each in found)


def test_wrong_arguments():
    model = problem().model
    with pytest.raises(ArgumentError, match="Invalid stable: True"):
        AsyncSAM(sgd(model), stable=True)
    with pytest.raises(ArgumentError, match=r"Invalid ascent_share: 0\.5"):
        SAMPa(sgd(model), ascent_share=0.5)
    with pytest.raises(ArgumentError, match="Invalid lam: 2"):
        SAMPa(sgd(model), lam=2)
    with pytest.raises(TypeError, match="SAMPa needs"):
        SAMPa(sgd(model)).step(lambda: torch.zeros(()))
