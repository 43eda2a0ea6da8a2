"""The methods under DistributedDataParallel, in gloo processes: replicas stay equal, and ε is whose it should be."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves

from sam_bench.optim import AUSAM, ESAM, KSAM, RST, SAM, ArgumentError, BatchClosure, SAMPa
from sam_bench.testing.problem import problem, same, weights
from tests.optim.ddp import (
    counted_reductions,
    here,
    on_ranks,
    part,
    train_in_parts,
    train_replica,
    without_batch_norm,
)
from tests.optim.methods import NAMES, build

UNDER = [f"{outer} over {name}" for outer in ("rst", "grst") for name in ("sam", "asam")] + ["rst over looksam"]
METHODS = [*(name for name in NAMES if name not in ("rst", "grst", "sampa")), *UNDER]


def perturbing(name):
    """The SAM that makes the second pass, after the first `begin`; None if there is none."""
    method = build(name, problem().model)
    sam = method.inner if isinstance(method, RST) and method.mean_p else method
    sam.begin()
    return sam if isinstance(sam, SAM) else None


SELECTING = [name for name in METHODS if (sam := perturbing(name)) and sam.selects]
# each rank has an ε of its own; the others have one for all ranks, or none
LOCAL = [name for name in METHODS if (sam := perturbing(name)) and not sam.selects and not sam.reduces_first_pass]
# its new masks follow from the mean gradient, which parts do not have
IN_PARTS = {"ssam_d": {"drop": "weight"}}


STEPS = 20


def all_methods(rank, ranks):
    """Weights and state after some steps with BatchNorm; weights without it, with an ε of all ranks or one of each."""
    found = {}
    for name in METHODS:
        at = problem(here())
        optimizer = train_replica(name, at, rank, ranks, 50)
        state = [t for t in tree_leaves(optimizer.state_dict()) if isinstance(t, Tensor)]
        found[name, "replica"] = [p.detach() for p in at.model.parameters()] + state
        for sync in (False, True) if name in LOCAL else (False,):
            at, settings = without_batch_norm(here()), {} if sync else IN_PARTS.get(name, {})
            train_replica(name, at, rank, ranks, STEPS, sync, **settings)
            found[name, sync] = weights(at)
    return found


@pytest.mark.parametrize("ranks", [2, 4])
def test_replicas_stay_equal_and_every_perturbation_is_of_the_samples_it_should_be(ranks, tmp_path):
    first, *others = on_ranks(ranks, tmp_path / "ranks", all_methods)
    # bit for bit, weights and state
    for name in METHODS:
        assert all(same(first[name, "replica"], other[name, "replica"]) for other in others), name
    # with an ε of all ranks: as one process on the joined batch
    for name in METHODS:
        if name not in SELECTING:
            at = without_batch_norm()
            at.run(build(name, at.model), STEPS)
            assert_close(first[name, name in LOCAL], weights(at), name)
    # with an ε of each rank: as a plain loop over the parts of the batch
    for name in [*LOCAL, *SELECTING]:
        at = without_batch_norm()
        train_in_parts(name, at, ranks, STEPS, **IN_PARTS.get(name, {}))
        assert_close(first[name, False], weights(at), name)
    assert not torch.allclose(first["sam", True][0], first["sam", False][0])


def assert_close(given, expected, name):
    for one, other in zip(given, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=0, msg=lambda text: f"{name}: {text}")


def reductions(rank, ranks):
    """The bytes of each reduction of gradients in a step of each kind."""
    found = {}
    for sync in (False, True):
        for accumulate in (1, 4):
            model = DistributedDataParallel(problem(here()).model)
            sizes = counted_reductions(model)
            optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1), model=model, sync_perturbation=sync)
            closure = BatchClosure(model, optimizer, accumulate=accumulate)
            closure.batch(*part(problem(here()), 0, rank, ranks))
            for _ in range(3):
                sizes.clear()
                optimizer.step(closure)
            found[sync, accumulate] = list(sizes)
    return found


def test_sam_reduces_its_gradient_once_per_step_and_twice_with_a_common_perturbation(tmp_path):
    size = 4 * sum(p.numel() for p in problem().model.parameters())
    for found in on_ranks(2, tmp_path / "ranks", reductions):
        for accumulate in (1, 4):
            assert found[False, accumulate] == [size]
            assert found[True, accumulate] == [size, size]


def refusals(rank, ranks):
    model, found = DistributedDataParallel(problem(here()).model), {}
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    for method, further in ((ESAM, {}), (KSAM, {}), (AUSAM, {"train_size": 8}), (SAMPa, {})):
        try:
            method(base, model=model, sync_perturbation=True, **further)
        except ArgumentError as error:
            found[method.__name__] = str(error)
    return found


def test_what_cannot_be_reduced_is_refused(tmp_path):
    for found in on_ranks(2, tmp_path / "ranks", refusals):
        assert set(found) == {"ESAM", "KSAM", "AUSAM", "SAMPa"}
        assert "for two processes use `pair`" in found["SAMPa"]
        assert "false, since each rank selects samples from its own part of the batch" in found["KSAM"]


# ------------------------------------------------------------------------------------------------------------ the pages

DOCS = Path(__file__).parent.parent.parent / "docs"


def blocks_of_the_page(rank, ranks):
    """The weights after each block of docs/integrations/ddp.md."""
    found = []
    for block in re.findall(r"```python\n(.*?)```", (DOCS / "integrations" / "ddp.md").read_text(), re.DOTALL):
        at = without_batch_norm(here())
        loader = [part(at, step, rank, ranks)[:2] for step in range(5)]
        names = {"model": at.model, "loader": loader, "epochs": 2, "blocks": [at.model[1]]}
        exec(block, names)
        assert names["optimizer"].sharpness_aware_steps > 0
        found.append(
            [p.full_tensor() if hasattr(p, "full_tensor") else p.detach() for p in names["model"].parameters()]
        )
    return found


def test_the_code_of_the_page_runs_and_replicas_stay_equal(tmp_path):
    one, other = on_ranks(2, tmp_path / "ranks", blocks_of_the_page)
    assert len(one) == 2
    assert all(same(a, b) for a, b in zip(one, other, strict=True))


def test_the_table_of_the_page_says_what_each_method_reduces():
    rows = re.findall(r"^\| (`.*?`) \| (.*?) \| (\d)", (DOCS / "several_devices.md").read_text(), re.MULTILINE)
    said = {name: (text, int(n)) for names, text, n in rows for name in re.findall(r"`(\w+)`", names)}
    assert set(NAMES) - set(said) <= {"signsam"}, "all but the method of the recipe"
    for name, (text, n) in said.items():
        sam = perturbing(name)
        if sam is None:
            assert text.startswith("none"), name
        elif sam.selects or name == "sampa":
            assert "is refused" in text, name
        else:
            assert n == 1 + sam.reduces_first_pass, name
            assert sam.reduces_first_pass == text.startswith("one:"), name
