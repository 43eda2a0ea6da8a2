import csv
import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from sam_bench import run
from sam_bench.build import create_model
from sam_bench.optim import SAM, BatchClosure, Descent
from tests.command import TINY, settings


def trainer(*overrides):
    return settings(*(f"trainer.{o}" for o in overrides)).trainer


def test_learning_rate():
    factor = run.warmup_then_cosine(4, 24)
    assert [factor(t) for t in range(4)] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert factor(4) == 1
    assert factor(14) == pytest.approx(0.5)
    assert factor(24) == 0
    assert run.warmup_then_cosine(0, 10)(0) == 1
    assert run.warmup_then_cosine(5, 5)(5) == 1


class Steps:
    """What an optimizer asks of a data set."""

    steps_per_epoch, train_size, knows_examples, sample = 10, 640, True, None


def closure_of(model, decay=0.0, lr=0.0, **kwargs):
    optimizer = Descent(torch.optim.SGD(model.parameters(), lr=lr), model=model)
    closure = BatchClosure(model, optimizer, decay=decay, decayed=model.parameters(), **kwargs)
    torch.manual_seed(1)
    closure.batch(torch.randn(64, 3, 8, 8), torch.randint(10, (64,)))
    return closure, optimizer


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))


def grads(model):
    return [p.grad.clone() for p in model.parameters()]


def test_accumulation_gives_the_gradient_of_the_whole_batch():
    one, other = net(), net()
    whole, _ = closure_of(one)
    parts, _ = closure_of(other, accumulate=4)
    torch.testing.assert_close(whole(), parts())
    torch.testing.assert_close(grads(one), grads(other))
    assert len(parts.logits) == len(parts.losses) == 64
    assert whole.correct() == parts.correct()


def test_decay_in_the_loss_is_its_gradient():
    for everything in (True, False):
        one, other = net(), net()
        chosen = settings("trainer.decay_in_loss=true", f"trainer.decay_norm_and_bias={everything}")
        plain, _ = closure_of(one)
        _, decayed = run.optimizer_and_closure(chosen, other, Steps())
        decayed.decay = 0.1
        decayed.batch(plain.images, plain.labels)
        assert plain() == decayed()
        for (name, p), g in zip(one.named_parameters(), grads(other), strict=True):
            expected = p.grad + 0.1 * p if everything or "weight" in name else p.grad
            torch.testing.assert_close(g, expected.detach())


def test_decay_in_the_loss_enters_the_perturbation_and_decay_of_the_base_does_not():
    def perturbed(in_loss):
        model = net()
        chosen = settings(
            "optimizer=sam", "optimizer.rho=1", f"trainer.decay_in_loss={in_loss}", "optimizer.base.weight_decay=5"
        )
        optimizer, closure = run.optimizer_and_closure(chosen, model, Steps())
        closure.batch(torch.randn(64, 3, 8, 8), torch.randint(10, (64,)))
        weights = []
        theta = [p.detach().clone() for p in model.parameters()]

        def watching():
            weights.append([p.detach() - q for p, q in zip(model.parameters(), theta, strict=True)])
            return closure()

        assert isinstance(optimizer, SAM)
        optimizer.step(watching)
        epsilon, g = torch.cat([e.flatten() for e in weights[1]]), torch.cat([q.flatten() for q in theta])
        return nn.functional.cosine_similarity(epsilon, g, dim=0).item()

    assert perturbed(in_loss=True) > 0.9  # ε follows λθ
    assert abs(perturbed(in_loss=False)) < 0.3


def test_no_decay_on_norm_and_bias():
    model = create_model(settings().model, 10, 1, 8)
    optimizer, _ = run.optimizer_and_closure(settings("trainer.decay_norm_and_bias=false"), model, Steps())
    decayed, rest = optimizer.param_groups
    assert {p.ndim for p in decayed["params"]} == {2, 4}
    assert {p.ndim for p in rest["params"]} == {1}
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.0005, 0)
    assert len(decayed["params"]) + len(rest["params"]) == len(list(model.parameters()))


@pytest.mark.parametrize("optimizer", ["sgd", "sam", "rst"])
def test_clip_bounds_the_gradient_of_the_base(optimizer):
    model = net()
    chosen = settings(f"optimizer={optimizer}", "trainer.clip=0.01")
    wrapped, closure = run.optimizer_and_closure(chosen, model, Steps())
    closure.batch(torch.randn(64, 3, 8, 8), torch.randint(10, (64,)))
    wrapped.step(closure)
    assert nn.utils.get_total_norm(grads(model)).item() == pytest.approx(0.01, rel=1e-3)


def test_metrics_are_those_of_the_first_pass():
    """With ρ so large that the second pass knows nothing, loss and accuracy still say what θ gives."""
    chosen = settings("optimizer=sam", "optimizer.rho=1000", "optimizer.base.lr=0")
    model = net()
    optimizer, closure = run.optimizer_and_closure(chosen, model, Steps())
    images, labels = torch.randn(64, 3, 8, 8), torch.randint(10, (64,))
    closure.batch(images, labels)
    logits = model(images)
    loss = optimizer.step(closure)
    torch.testing.assert_close(loss, nn.functional.cross_entropy(logits, labels))
    assert closure.correct() == (logits.argmax(1) == labels).sum()
    assert not torch.equal(closure.logits, logits)


def test_same_seed_same_bits_other_seed_other_bits(command):
    weights = []
    for seed, runs in ((0, "a"), (0, "b"), (1, "c")):
        command.runs = command.runs.parent / runs
        assert command(*TINY, f"seed={seed}")[0] == 0
        (folder,) = command.folders()
        weights.append(torch.load(folder / "last.pt", weights_only=True)["model"]["fc.weight"])
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_testing_less_often_changes_nothing_else(command):
    """The same bits at the end, in the same run folder. MSAM re-estimates BatchNorm's statistics for each test."""
    rows = []
    for every in (1, 2):
        run = [
            *TINY,
            "optimizer=msam",
            "optimizer.rho=0.1",
            f"trainer.test_every={every}",
            f"runs={command.runs}{every}",
        ]
        assert command(*run)[0] == 0
        (path,) = Path(f"{command.runs}{every}").glob("*/seed-0/metrics.csv")
        rows.append(list(csv.DictReader(path.open())))
        rows[-1].append((path.parts[-3], json.loads((path.parent / "result.json").read_text())["test_loss"]))
    always, seldom = rows
    assert [row["test_accuracy"] != "" for row in always[:3]] == [True, True, True]
    assert [row["test_accuracy"] != "" for row in seldom[:3]] == [False, True, True]  # the second, and the last
    assert [row["train_loss"] for row in always[:3]] == [row["train_loss"] for row in seldom[:3]]
    assert seldom[1]["test_loss"] == always[1]["test_loss"]
    assert seldom[3] == always[3]


def test_bf16_and_fp32_agree_roughly(command):
    losses = []
    for precision in ("fp32", "bf16"):
        command.runs = command.runs.parent / precision
        command(*TINY, f"trainer.precision={precision}")
        (folder,) = command.folders()
        losses.append(json.loads((folder / "result.json").read_text())["train_loss"])
    assert losses[0] != losses[1]
    assert math.isclose(*losses, rel_tol=0.2)


def test_rst_learns_a_part_of_real_cifar10(cifar_root, command):
    """Far above chance in 4 epochs, counted as it should be."""
    names = ["dataset=cifar10", f"dataset.root={cifar_root}", "dataset.subset=1000", "schedule=constant"]
    sizes = ["trainer.epochs=4", "trainer.batch_size=32", "trainer.test_every=4", "logger=none"]
    status, _, err = command(*names, *sizes, "optimizer=rst")
    assert status == 0, err
    (folder,) = command.folders()
    result = json.loads((folder / "result.json").read_text())
    assert result["test_accuracy"] > 0.25  # chance is 0.1; four epochs of 31 steps
    assert result["expected_propagations_per_step"] == 1.5
    assert result["propagations_per_step"] == 1 + result["sharpness_aware_steps"] / result["steps"]


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_fused_base_steps_as_the_loop_does(channels_last):
    """torch's fused step reads weights and gradients as they lie in memory, so the two must lie alike."""
    weights = []
    for fused in (True, False):
        choices = [f"optimizer.base.fused={fused}", f"trainer.channels_last={channels_last}", "schedule.start=1"]
        chosen = settings("optimizer=grst", *choices)
        torch.manual_seed(0)
        model = create_model(chosen.model, 10, 3, 8).double()
        optimizer, closure = run.optimizer_and_closure(chosen, model, Steps())
        for _ in range(6):
            closure.batch(torch.randn(32, 3, 8, 8, dtype=torch.float64), torch.randint(10, (32,)))
            optimizer.step(closure)
        assert optimizer.sharpness_aware_steps == 6
        weights.append([p.detach().clone() for p in model.parameters()])
    torch.testing.assert_close(*weights)
