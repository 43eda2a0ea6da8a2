"""The measured perturbation, against ε computed by hand; and the columns of metrics.csv."""

import csv

import pytest
import torch
from torch.nn.functional import cross_entropy

from sam_bench import perturbation, run
from sam_bench.optim import BatchClosure
from sam_bench.testing.problem import problem
from tests.command import TINY
from tests.optim.methods import build

RHO = 0.2


def trained(name, steps=6):
    """A method after some steps, and the closure of the next batch."""
    p = problem(dtype=torch.float64)
    optimizer = build(name, p.model)
    p.run(optimizer, steps)
    closure = BatchClosure(p.model, optimizer)
    closure.batch(p.images[steps % len(p.images)], p.labels[steps % len(p.images)])
    return p.model, optimizer, closure


def by_hand(model, closure, direction):
    """Cosine with the gradient, norm, loss and its rise for ε = RHO direction/‖direction‖, None for the gradient."""
    params = list(model.parameters())
    loss = cross_entropy(model(closure.images), closure.labels)
    g = torch.cat([x.flatten() for x in torch.autograd.grad(loss, params)])
    d = g if direction is None else torch.cat([x.flatten() for x in direction])
    epsilon = RHO * d / d.norm()
    with torch.no_grad():
        for p, e in zip(params, epsilon.split([p.numel() for p in params]), strict=True):
            p += e.view_as(p)
        there = cross_entropy(model(closure.images), closure.labels)
        for p, e in zip(params, epsilon.split([p.numel() for p in params]), strict=True):
            p -= e.view_as(p)
    return [(g @ d / (g.norm() * d.norm())).item(), RHO, loss.item(), (there - loss).item()]


@pytest.mark.parametrize("name", ["sam", "rst", "s2sam", "rst_s2sam"])
def test_the_perturbation_is_that_of_the_next_step(name):
    model, optimizer, closure = trained(name)
    (optimizer if name == "sam" else optimizer.inner).rho = RHO
    d = optimizer.memory("d", optimizer.params()) if "s2sam" in name else None
    expected = by_hand(model, closure, d)
    theta = [p.detach().clone() for p in model.parameters()]
    found = perturbation.measure(optimizer, closure)
    assert list(found) == list(perturbation.COLUMNS)
    assert list(found.values()) == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert (found["epsilon_cosine"] < 0.9) == ("s2sam" in name)
    assert all(torch.equal(p, t) for p, t in zip(model.parameters(), theta, strict=True))


def test_of_sampa_it_is_that_along_the_previous_gradient():
    model, optimizer, closure = trained("sampa")
    optimizer.rho = RHO
    expected = by_hand(model, closure, optimizer.memory("previous", optimizer.params()))
    assert list(perturbation.measure(optimizer, closure).values()) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_what_is_not_finite_is_left_empty():
    _, optimizer, closure = trained("sam")
    optimizer.rho = 1e200
    found = perturbation.measure(optimizer, closure)
    assert found["epsilon_loss_rise"] is None
    assert found["loss_at_theta"] > 0


def test_it_may_begin_or_end_at_a_resume(command, monkeypatch):
    end = run.Run.end

    def end_and_stop(self, seeds_at_once):
        row = end(self, seeds_at_once)
        if self.epoch in (1, 2) and row["seconds"] not in seen:
            seen.add(row["seconds"])
            raise KeyboardInterrupt
        return row

    monkeypatch.setattr(run.Run, "end", end_and_stop)
    seen = set()
    words = [*TINY, "optimizer=sam", "trainer.checkpoint_minutes=0"]
    for measured, status in ((False, 130), (True, 130), (False, 0)):
        found, _, err = command(*words, f"trainer.test_perturbation={str(measured).lower()}")
        assert found == status, err
    (folder,) = command.folders()
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    assert [bool(row["epsilon_norm"]) for row in rows] == [False, True, False]


def test_a_method_without_a_perturbation_has_a_loss_alone():
    model, optimizer, closure = trained("sgd")
    found = perturbation.measure(optimizer, closure)
    loss = cross_entropy(model(closure.images), closure.labels).item()
    assert found.pop("loss_at_theta") == pytest.approx(loss, rel=1e-6)
    assert set(found.values()) == {None}


def test_it_is_measured_at_each_test_and_changes_no_result(command):
    words = ["optimizer=s2sam", *TINY, "trainer.epochs=5", "trainer.test_every=2"]
    rows = []
    for asked in ("false", "true"):
        status, _, err = command(*words, f"trainer.test_perturbation={asked}", f"runs={command.runs / asked}")
        assert status == 0, err
        (folder,) = (command.runs / asked).glob("*/seed-0")
        rows.append(list(csv.DictReader((folder / "metrics.csv").open())))
    without, measured = rows
    assert [bool(row["epsilon_loss_rise"]) for row in measured] == [False, True, False, True, True]
    assert all(float(row["epsilon_norm"]) == pytest.approx(0.05, rel=1e-4) for row in measured if row["epsilon_norm"])
    same = ("train_loss", "train_accuracy", "test_accuracy", "test_loss", "propagations")
    assert [[row[key] for key in same] for row in without] == [[row[key] for key in same] for row in measured]
