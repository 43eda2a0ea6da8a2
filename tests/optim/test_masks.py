"""What sparse SAM perturbs: exact numbers, the right dimension, the best scores; and the scores."""

import copy

import pytest
import torch
from torch import nn

from sam_bench.optim.fisher import fisher
from sam_bench.optim.masks import PATTERNS, highest, n_of_m
from sam_bench.testing.problem import BATCHES, problem, same
from tests.optim.methods import build
from tests.optim.test_formulas import fisher_by_hand

SHAPES = [(8, 4, 3, 3), (8,), (6, 8, 1, 1), (5, 12), (5,), (8, 3, 3, 3)]


@pytest.fixture
def scores(device):
    torch.manual_seed(0)
    return [torch.randn(shape, device=device).square() for shape in SHAPES]


def ones(masks):
    return sum(int(m.sum()) for m in masks)


@pytest.mark.parametrize("alive", [1, 2, 100, 387, 625])
def test_unstructured_is_exact_to_one_element_and_takes_the_best(scores, alive):
    masks = highest(scores, "unstructured", alive)
    assert ones(masks) == alive
    assert [m.shape for m in masks] == [s.shape for s in scores]
    kept = torch.cat([s[m > 0] for s, m in zip(scores, masks, strict=True)])
    left = torch.cat([s[m == 0] for s, m in zip(scores, masks, strict=True)])
    assert kept.min() >= left.max() if len(left) else alive == 625


def test_equal_scores_do_not_change_the_number():
    assert ones(highest([torch.ones(30, 7), torch.ones(11)], "unstructured", 100)) == 100


def test_channels_and_tensors_are_kept_whole_and_as_many_as_fit(scores):
    for pattern in ("channel", "tensor"):
        masks = highest(scores, pattern, 338)
        units = []
        for s, m in zip(scores, masks, strict=True):
            rows = m.flatten(1) if pattern == "channel" and m.ndim > 1 else m.reshape(len(m) if m.ndim == 1 else 1, -1)
            rows = m.reshape(1, -1) if pattern == "tensor" else rows
            means = s.reshape(rows.shape).mean(1)
            assert ((rows == rows[:, :1]).all(1)).all()
            units += [(mean.item(), int(row[0]), len(row)) for mean, row in zip(means, rows, strict=True)]
        left = 338
        for _, kept, size in sorted(units, reverse=True):  # the highest mean first
            assert kept == (size <= left)
            left -= size * kept


def test_one_unit_is_always_kept(scores):
    assert ones(highest(scores, "tensor", 1)) == 5  # the smallest


@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (1, 4), (3, 4), (4, 4)])
def test_n_of_every_m_along_the_input_dimension(scores, n, m):
    for s, mask in zip(scores, n_of_m(scores, n, m), strict=True):
        assert mask.shape == s.shape
        if s.ndim == 1 or s.shape[1] % m:
            assert mask.all()  # biases, norms, a first layer of three channels
            continue
        for start in range(0, s.shape[1], m):
            group, best = mask[:, start : start + m], s[:, start : start + m].topk(n, 1).values.sum(1)
            assert (group.sum(1) == n).all()
            torch.testing.assert_close((group * s[:, start : start + m]).sum(1), best)


def test_2_of_4_keeps_the_intended_share_of_the_scores(device):
    """0.700 for exponential scores; a mask that is not transposed back keeps 0.5."""
    draw = torch.distributions.Exponential(1.0)
    torch.manual_seed(0)
    for shape in [(64, 64, 3, 3), (128, 256)]:
        s = draw.sample(shape).to(device)
        (mask,) = n_of_m([s], 2, 4)
        # of four exponential values the largest two have means 25/12 and 13/12
        assert (mask * s).sum() / s.sum() == pytest.approx((25 / 12 + 13 / 12) / 4, abs=0.01)


def test_fisher_scores_are_those_of_one_sample_at_a_time_and_touch_nothing(device):
    p = problem(device, dtype=torch.float64)
    p.closure(build("sgd", p.model))()
    p.model[4].eval()  # a mode of its own, which must come back
    before = copy.deepcopy(p.model)
    grads = [q.grad.clone() for q in p.model.parameters()]
    state = torch.get_rng_state()
    scores = fisher(p.model, p.images[0][:13], p.labels[0][:13], chunk=4)
    by_hand = fisher_by_hand(before, p.images[0][:13], p.labels[0][:13])
    for q, expected in zip(p.model.parameters(), by_hand, strict=True):
        torch.testing.assert_close(scores[q], expected)
    assert all(torch.equal(q.grad, g) for q, g in zip(p.model.parameters(), grads, strict=True))
    assert same(list(p.model.state_dict().values()), list(before.state_dict().values()))
    assert [m.training for m in p.model.modules()] == [m.training for m in before.modules()]
    assert torch.equal(torch.get_rng_state(), state)


def masks_of(optimizer):
    return [m.clone() for m in optimizer.memory("mask", optimizer.perturbable())]


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.77, 0.99])
@pytest.mark.parametrize("name", ["ssam_f", "ssam_d"])
def test_the_alive_share_is_exact_and_stays(name, sparsity, device):
    p = problem(device)
    optimizer = build(name, p.model, sparsity=sparsity)
    size = sum(q.numel() for q in p.model.parameters())
    seen = []
    for t in range(3 * BATCHES):
        optimizer.step(p.closure(optimizer, t))
        seen.append(masks_of(optimizer))
        assert ones(seen[-1]) == size - round(sparsity * size)
    for t in range(1, 3 * BATCHES):
        moved = any(not torch.equal(a, b) for a, b in zip(seen[t - 1], seen[t], strict=True))
        assert moved == (t % BATCHES == 0), t


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("name", ["ssam_f", "ssam_d"])
def test_every_pattern_holds_through_a_training(name, pattern, device):
    p = problem(device)
    optimizer = build(name, p.model, pattern=pattern)
    seen = []
    for t in range(2 * BATCHES):
        optimizer.step(p.closure(optimizer, t))
        seen.append(masks_of(optimizer))
    for masks in (seen[0], seen[-1]):
        for q, m in zip(p.model.parameters(), masks, strict=True):
            if pattern == "n:m" and q.ndim > 1 and q.shape[1] % 4 == 0:
                assert (m.unflatten(1, (-1, 4)).sum(2) == 2).all()
            if pattern == "tensor":
                assert m.min() == m.max()
            if pattern == "channel":
                assert (m.flatten(1).amin(1) == m.flatten(1).amax(1)).all() if q.ndim > 1 else True
    if pattern != "n:m":
        size = sum(q.numel() for q in p.model.parameters())
        half = size - round(0.5 * size)
        largest = {"unstructured": 1, "channel": 96, "tensor": 480}[pattern]  # of the units
        for masks in (seen[0], seen[-1]):
            assert half - largest < ones(masks) <= half
    if pattern != "tensor":  # of nine, hardly any other choice fits
        assert any(not torch.equal(a, b) for a, b in zip(seen[0], seen[-1], strict=True))


@pytest.mark.parametrize("drop", ["gradient", "weight"])
def test_ssam_d_drops_the_smallest_of_the_alive_and_grows_the_dead(drop, device):
    p = problem(device)
    optimizer = build("ssam_d", p.model, drop=drop)
    p.run(optimizer, BATCHES)
    before = torch.cat([m.flatten() for m in masks_of(optimizer)]) > 0
    values = {}
    first_pass = optimizer.first_pass

    def watching(*args):
        loss = first_pass(*args)
        values["gradient"] = torch.cat([q.grad.abs().flatten() for q in p.model.parameters()])
        values["weight"] = torch.cat([q.detach().abs().flatten() for q in p.model.parameters()])
        return loss

    optimizer.first_pass = watching
    optimizer.step(p.closure(optimizer, BATCHES))
    after = torch.cat([m.flatten() for m in masks_of(optimizer)]) > 0
    dropped, grown = before & ~after, after & ~before
    # period 1 of 3: f = (0.5/2)(1 + cos(π/3))
    assert dropped.sum() == grown.sum() == int(0.375 * before.sum())
    assert values[drop][dropped].max() <= values[drop][before & after].min()


def test_ssam_d_keeps_its_share_where_more_would_be_dropped_than_are_dead(device):
    """Published code lets the alive share fall here."""
    p = problem(device)
    optimizer = build("ssam_d", p.model, sparsity=0.05, drop_rate=1.0)
    p.run(optimizer, BATCHES + 1)
    size = sum(q.numel() for q in p.model.parameters())
    assert ones(masks_of(optimizer)) == size - round(0.05 * size)


@pytest.mark.parametrize("name", ["ssam_f", "ssam_d"])
def test_the_perturbation_is_sams_on_the_mask_and_none_elsewhere(name, device):
    p = problem(device, dtype=torch.float64)
    q = p.copy()
    optimizer = build(name, p.model, rho=0.3)
    seen = []
    closure = p.closure(optimizer, before=lambda: seen.append([w.detach().clone() for w in p.model.parameters()]))
    optimizer.step(closure)
    epsilon = [b - a for a, b in zip(*seen, strict=True)]
    q.closure(build("sgd", q.model))()
    g = [w.grad for w in q.model.parameters()]
    norm = nn.utils.get_total_norm(g)
    for e, x, m in zip(epsilon, g, masks_of(optimizer), strict=True):
        torch.testing.assert_close(e, m * 0.3 / norm * x, rtol=1e-6, atol=1e-9)
    assert nn.utils.get_total_norm(epsilon) < 0.3
