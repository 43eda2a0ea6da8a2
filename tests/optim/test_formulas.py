"""Each method against a loop over tensors written from its formula: float64, 20 steps, a net with BatchNorm.

A specification is a function `direction(net, t, batch)`: the gradient of the base step at step t. `Net` takes gradients
at θ + ε by hand and restores everything.
"""

import copy
import itertools
import math
import random
import statistics
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, log_softmax, softmax

from sam_bench.optim import GRST, RST, S2SAM, SAM, Descent
from sam_bench.optim.seeding import derived_seed
from sam_bench.optim.sparse_backward import SparseBackward
from sam_bench.optim.vsam_window import Window
from sam_bench.schedules import Constant, Linear
from sam_bench.testing.problem import BATCH, BATCHES, TOTAL, Sample, problem
from tests.optim.methods import build

LR, MOMENTUM, DECAY, RHO = 0.1, 0.9, 0.01, 0.3


def dot(one, other):
    return sum((a * b).sum() for a, b in zip(one, other, strict=True))


def norm(tensors):
    return dot(tensors, tensors).sqrt()


def times(c, tensors):
    return [c * x for x in tensors]


def plus(one, other, c=1.0):
    return [a + c * b for a, b in zip(one, other, strict=True)]


class Net:
    """The net of the specification: gradients of the mean loss of chosen samples at θ + ε, tensor by tensor."""

    def __init__(self, model):
        self.model, self.params = model, list(model.parameters())
        self.moved = False  # whether BatchNorm statistics have, in this step

    def at(self, epsilon, work):
        """`work()` at θ + ε; statistics move in the first pass of a step alone."""
        theta, buffers = [p.detach().clone() for p in self.params], [b.clone() for b in self.model.buffers()]
        for p, e in zip(self.params, epsilon or times(0, theta), strict=True):
            p.data = p.data + e
        result = work()
        for p, old in zip(self.params, theta, strict=True):
            p.data = old
        if self.moved:
            for b, old in zip(self.model.buffers(), buffers, strict=True):
                b.copy_(old)
        self.moved = True
        return result

    def losses(self, x, y, epsilon=None):
        with torch.no_grad():
            return self.at(epsilon, lambda: cross_entropy(self.model(x), y, reduction="none"))

    def gradient(self, x, y, epsilon=None, term=lambda logits: 0.0):
        def work():
            logits = self.model(x)
            loss = cross_entropy(logits, y) + term(logits)
            self.logits, self.each = logits.detach(), cross_entropy(logits.detach(), y, reduction="none")
            return [g.detach() for g in torch.autograd.grad(loss, self.params)]

        return self.at(epsilon, work)

    def sam(self, x, y, rho=RHO):
        g = self.gradient(x, y)
        return g, self.gradient(x, y, times(rho / norm(g), g))


def compare(p, optimizer, direction):
    """20 steps of the optimizer, and 20 of SGD with momentum and L2 as torch defines it, along the specification."""
    q = p.copy()
    q.model.zero_grad()
    p.run(optimizer, TOTAL)
    net = Net(q.model)
    velocity = [None] * len(net.params)
    for t in range(TOTAL):
        at, net.moved, net.velocity = t % len(q.images), False, velocity
        d = direction(net, t, SimpleNamespace(x=q.images[at], y=q.labels[at], i=q.examples[at]))
        assert net.moved
        for i, (w, x) in enumerate(zip(net.params, d, strict=True)):
            x = x + DECAY * w.data
            velocity[i] = x if velocity[i] is None else MOMENTUM * velocity[i] + x
            w.data = w.data - LR * velocity[i]
    for ours, theirs in zip(p.model.state_dict().values(), q.model.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.fixture
def p(device):
    return problem(device, dtype=torch.float64)


def base(p, **kwargs):
    return torch.optim.SGD(p.model.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=DECAY, **kwargs)


KINDS = pytest.mark.parametrize("kind", [{"foreach": False}, {"foreach": True}, {"fused": True}], ids=str)


@KINDS
def test_plain(p, kind):
    compare(p, Descent(base(p, **kind), model=p.model), lambda net, t, b: net.gradient(b.x, b.y))


@KINDS
def test_sam(p, kind):
    compare(p, SAM(base(p, **kind), RHO, model=p.model), lambda net, t, b: net.sam(b.x, b.y)[1])


def test_sam_with_a_part_of_the_batch_in_the_first_pass(p):
    def direction(net, t, b):
        g = net.gradient(b.x[:4], b.y[:4])
        return net.gradient(b.x, b.y, times(RHO / norm(g), g))

    optimizer = build("sam", p.model, base(p), rho=RHO, ascent_share=0.25)
    compare(p, optimizer, direction)
    assert optimizer.propagations == 1.25 * TOTAL


def test_stable_sam(p):
    def direction(net, t, b):
        g, g_s = net.sam(b.x, b.y)
        return times(norm(g) / norm(g_s), g_s)

    compare(p, build("stable_sam", p.model, base(p), rho=RHO), direction)


def test_sam_on(p):
    batch_norms = {id(q) for m in p.model.modules() if isinstance(m, nn.BatchNorm2d) for q in m.parameters()}
    of_norms = [id(q) in batch_norms for q in p.model.parameters()]
    assert 0 < sum(of_norms) < len(of_norms)

    def direction(net, t, b):
        g = [x * on for x, on in zip(net.gradient(b.x, b.y), of_norms, strict=True)]
        return net.gradient(b.x, b.y, times(RHO / norm(g), g))

    compare(p, build("sam_on", p.model, base(p), rho=RHO), direction)


def test_lesam(p):
    sigma, largest = 0.5, 0.4
    optimizer = build("lesam", p.model, base(p), rho=largest, loss_budget=sigma)

    def direction(net, t, b):
        s = t / optimizer.total_steps
        rise = min(20 * s, 1) if s < 0.8 else (1 + math.cos(math.pi * (s - 0.8) / 0.2)) / 2
        g = net.gradient(b.x, b.y)
        radius = min(sigma * rise / norm(g), largest)
        radii.append(float(radius))
        return net.gradient(b.x, b.y, times(radius / norm(g), g))

    radii = []
    compare(p, optimizer, direction)
    assert len(set(radii)) > 5
    assert largest in radii


@pytest.mark.parametrize("inner", ["sam", "asam", "vasso", "fsam", "vasso with eta"])
def test_s2sam(p, inner):
    """ε is that of the inner method's own specification, with the previous gradient of the base step for g."""
    state = {}

    def adaptive(net, d, eta):
        scale = [w.data.abs() + eta if "weight" in name else 1.0 for name, w in net.model.named_parameters()]
        scaled = [s * x for s, x in zip(scale, d, strict=True)]
        return [RHO * s * x / norm(scaled) for s, x in zip(scale, scaled, strict=True)]

    def perturbation(net, g):
        if inner in ("vasso", "vasso with eta"):
            g = state["v"] = plus(times(0.4, state["v"]), g, 0.6) if "v" in state else g
        if inner == "fsam":
            m = state.get("m")
            state["m"] = plus(times(0.8, m), g, 1 - 0.8) if m else g
            g = plus(g, m, -0.7) if m else g
        if inner in ("asam", "vasso with eta"):
            return adaptive(net, g, 0.02)
        return times(RHO / norm(g), g)

    def direction(net, t, b):
        state["g"] = net.gradient(b.x, b.y, perturbation(net, state["g"]) if t else None)
        return state["g"]

    settings = {
        "sam": {},
        "asam": {"eta": 0.02},
        "vasso": {"theta": 0.6},
        "fsam": {"sigma": 0.7, "lam": 0.8},
        "vasso with eta": {"theta": 0.6, "eta": 0.02},
    }[inner]
    optimizer = S2SAM(build(inner.split()[0], p.model, base(p), rho=RHO, **settings))
    compare(p, optimizer, direction)
    assert optimizer.propagations == TOTAL


def test_s2sam_with_steps_of_two_passes(p):
    previous = []

    def direction(net, t, b):
        if coin(5, t) < 0.4:
            d = net.sam(b.x, b.y)[1]
        else:
            d = net.gradient(b.x, b.y, times(RHO / norm(previous[-1]), previous[-1]) if t else None)
        previous.append(d)
        return d

    optimizer = S2SAM(SAM(base(p), RHO, model=p.model), Constant(0.4), TOTAL, seed=5)
    compare(p, optimizer, direction)
    assert TOTAL < optimizer.propagations < 2 * TOTAL


def test_asyncsam(p):
    previous = []

    def direction(net, t, b):
        g = net.gradient(b.x[:8], b.y[:8])
        previous.append(g)
        g = previous[max(t - 1, 0)]
        return net.gradient(b.x, b.y, times(RHO / norm(g), g))

    optimizer = build("asyncsam", p.model, base(p), rho=RHO, ascent_share=0.5)
    compare(p, optimizer, direction)
    assert optimizer.propagations == 1.5 * TOTAL


def test_sampa(p):
    state = {}

    def direction(net, t, b):
        d, before = state.get("d"), state.get("b", b)
        to_y = d and [
            -LR * (x + DECAY * w.data + MOMENTUM * v) for x, w, v in zip(d, net.params, net.velocity, strict=True)
        ]
        g = net.gradient(b.x, b.y, to_y)
        g_s = net.gradient(before.x, before.y, d and times(RHO / norm(d), d))
        state.update(d=g, b=b)
        return plus(times(0.7, g_s), g, 0.3)

    compare(p, build("sampa", p.model, base(p), rho=RHO, lam=0.3), direction)


def coin(seed, t):
    return random.Random((seed << 64) + t).random()


def test_rst(p):
    def direction(net, t, b):
        return net.sam(b.x, b.y)[1] if coin(5, t) < t / TOTAL else net.gradient(b.x, b.y)

    optimizer = RST(SAM(base(p), RHO, model=p.model), Linear(0, 1), TOTAL, seed=5)
    compare(p, optimizer, direction)
    assert 0 < optimizer.sharpness_aware_steps < TOTAL


@pytest.mark.parametrize("unit_norm", [False, True])
@pytest.mark.parametrize(
    ("settings", "gamma_at"),
    [
        ({"gamma": 0.3}, lambda p: 0.3),
        ({"gamma": 2.5}, lambda p: 2.5),
        ({"weight": 0.7}, lambda p: 0.7 / p),
        ({"weight": 5.0, "gamma_max": 3.0}, lambda p: 3.0),
    ],
    ids=lambda x: str(x) if isinstance(x, dict) else "",
)
def test_grst(p, settings, gamma_at, unit_norm):
    def direction(net, t, b):
        if coin(5, t) >= 0.6:
            return net.gradient(b.x, b.y)
        g, g_s = net.sam(b.x, b.y)
        gamma = gamma_at(0.6)
        return plus(times(gamma, g_s), times(1 / norm(g), g) if unit_norm else g, 1 - gamma)

    inner = SAM(base(p), RHO, model=p.model)
    compare(p, GRST(inner, Constant(0.6), TOTAL, seed=5, unit_norm=unit_norm, **settings), direction)


def test_sam_is_another_method_at_another_rho(p):
    """The comparison above can fail: a ρ of 0.31 is told from 0.3."""
    with pytest.raises(AssertionError):
        compare(p, SAM(base(p), 0.31, model=p.model), lambda net, t, b: net.sam(b.x, b.y)[1])


def test_asam(p):
    names = [name for name, _ in p.model.named_parameters()]

    def direction(net, t, b):
        g = net.gradient(b.x, b.y)
        T = [  # noqa: N806
            w.abs() + 0.01 if name.endswith("weight") else torch.ones_like(w)
            for name, w in zip(names, (w.detach() for w in net.params), strict=True)
        ]
        scaled = [a * x for a, x in zip(T, g, strict=True)]
        return net.gradient(b.x, b.y, [0.5 / norm(scaled) * a * a * x for a, x in zip(T, g, strict=True)])

    compare(p, build("asam", p.model, base(p), rho=0.5), direction)


def test_gsam(p):
    def direction(net, t, b):
        lr = 0.5 * LR  # where the test puts it
        g, g_s = net.sam(b.x, b.y, rho=0.1 + (RHO - 0.1) * lr / LR)
        across = plus(g, g_s, -dot(g, g_s) / dot(g_s, g_s))
        assert abs(dot(across, g_s)) < 1e-9
        return plus(g_s, across, -0.7)

    optimizer = build("gsam", p.model, base(p), rho_min=0.1, rho_max=RHO, alpha=0.7)
    optimizer.begin = lambda: optimizer.param_groups[0].update(lr=0.5 * LR)  # for ρ; and LR again for the step
    optimizer.innermost.register_step_pre_hook(lambda *_: optimizer.param_groups[0].update(lr=LR))
    compare(p, optimizer, direction)


@pytest.mark.parametrize("alpha", [0.0, 0.7])
def test_looksam(p, alpha):
    memory = {}

    def direction(net, t, b):
        if t % 3:
            g, v = net.gradient(b.x, b.y), memory["v"]
            return plus(g, v, alpha * norm(g) / norm(v))
        g, g_s = net.sam(b.x, b.y)
        memory["v"] = plus(g_s, g, -dot(g, g_s) / dot(g, g))
        return g_s

    name = "looksam" if alpha else "periodic_sam"
    optimizer = build(name, p.model, base(p), rho=RHO, k=3, alpha=alpha)
    compare(p, optimizer, direction)
    assert optimizer.sharpness_aware_steps == 7


@pytest.mark.parametrize("name", ["aesam", "aelooksam"])
def test_aesam(p, name):
    s = SimpleNamespace(mu=0.0, variance=0.0, v=None, aware=0)

    def direction(net, t, b):
        g = net.gradient(b.x, b.y)
        x = dot(g, g).item()
        s.mu = 0.9 * s.mu + 0.1 * x
        s.variance = 0.9 * s.variance + 0.1 * (x - s.mu) ** 2
        T = BATCHES * 3  # noqa: N806
        c = t / T * -1.0 + (1 - t / T) * 1.0
        if x >= s.mu + c * math.sqrt(s.variance):
            g_s = net.gradient(b.x, b.y, times(RHO / norm(g), g))
            s.v, s.aware = plus(g_s, g, -dot(g, g_s) / dot(g, g)), s.aware + 1
            return g_s
        return plus(g, s.v, 0.7 * norm(g) / norm(s.v)) if name == "aelooksam" else g

    optimizer = build(name, p.model, base(p), rho=RHO)
    compare(p, optimizer, direction)
    assert 1 < optimizer.sharpness_aware_steps == s.aware < TOTAL


def test_fsam(p):
    memory = {}

    def direction(net, t, b):
        g = net.gradient(b.x, b.y)
        d = plus(g, memory["m"], -0.8) if t else g
        memory["m"] = plus(times(0.6, memory["m"]), g, 0.4) if t else g
        return net.gradient(b.x, b.y, times(RHO / norm(d), d))

    compare(p, build("fsam", p.model, base(p), rho=RHO, sigma=0.8, lam=0.6), direction)


def test_vasso(p):
    memory = {}

    def direction(net, t, b):
        g = net.gradient(b.x, b.y)
        memory["d"] = d = plus(times(0.6, memory["d"]), g, 0.4) if t else g
        return net.gradient(b.x, b.y, times(RHO / norm(d), d))

    compare(p, build("vasso", p.model, base(p), rho=RHO, theta=0.4), direction)


@pytest.mark.parametrize("ascent_share", [1.0, 0.25])
def test_esam(p, ascent_share):
    n = round(16 * ascent_share)

    def direction(net, t, b):
        g = net.gradient(b.x[:n], b.y[:n])
        coins = random.Random(derived_seed("esam", 3, t))
        kept = [t == 0 or coins.random() < 0.6 for _ in g]
        if not any(kept):
            kept[coins.randrange(len(g))] = True
        g = [x if keep else 0 * x for x, keep in zip(g, kept, strict=True)]
        epsilon = times(0.05 / 0.6 / norm(g), g)  # with 0.3 all units of this net die, and samples tie
        before = torch.cat([net.each, net.losses(b.x[n:], b.y[n:])]) if n < 16 else net.each
        rise = net.losses(b.x, b.y, epsilon) - before
        chosen = rise.argsort(descending=True)[:8]
        return net.gradient(b.x[chosen], b.y[chosen], epsilon)

    optimizer = build("esam", p.model, base(p), rho=0.05, ascent_share=ascent_share)
    compare(p, optimizer, direction)
    assert optimizer.propagations == (ascent_share + 0.5) * TOTAL
    assert optimizer.forwards == (2 - ascent_share) * TOTAL


def test_ksam(p):
    def direction(net, t, b):
        worst = net.losses(b.x, b.y).argsort(descending=True)[:6]
        return net.sam(b.x[worst], b.y[worst])[1]

    optimizer = build("ksam", p.model, base(p), rho=RHO, share=0.37)
    compare(p, optimizer, direction)
    assert (optimizer.propagations, optimizer.forwards) == (2 * 6 / 16 * TOTAL, TOTAL)


def test_ausam(p):
    rises = [[] for _ in range(BATCHES * BATCH)]

    def direction(net, t, b):
        chosen = torch.arange(16)
        if t >= BATCHES:
            u = torch.rand(16, generator=torch.Generator().manual_seed(derived_seed("ausam", 3, t)))
            a = torch.tensor([statistics.fmean(rises[i]) if rises[i] else 1.0 for i in b.i.tolist()])
            largest = 0.1 + 0.4 * min(1, t / (2 * BATCHES))
            s = 0.1 + (largest - 0.1) * (a - a.min()) / (a.max() - a.min())
            # one after the other: who has the first arrival of processes of rates s
            arrival = [-math.log(x) / rate for x, rate in zip(u.tolist(), s.tolist(), strict=True)]
            chosen = torch.tensor(sorted(range(16), key=arrival.__getitem__)[:8])
        chosen = chosen.to(b.x.device)
        x, y = b.x[chosen], b.y[chosen]
        g = net.gradient(x, y)
        before = net.each
        g_s = net.gradient(x, y, times(RHO / norm(g), g))
        for i, rise in zip(b.i[chosen].tolist(), (net.each - before).abs().tolist(), strict=True):
            rises[i].append(rise)
        return g_s

    optimizer = build("ausam", p.model, base(p), rho=RHO, ramp_epochs=2)
    compare(p, optimizer, direction)
    assert optimizer.propagations == 2 * BATCHES + (TOTAL - BATCHES)


def test_ausam_draws_in_proportion_to_its_scores(device):
    """The first of a draw is example i with probability s_i/Σs."""
    p = problem(device)
    optimizer = build("ausam", p.model, full_epochs=0, ramp_epochs=0)
    optimizer.mean[:BATCH] = torch.arange(BATCH) / (BATCH - 1)
    optimizer.begin()
    closure, first = p.closure(optimizer), torch.zeros(BATCH)
    for t in range(4000):
        optimizer.t, optimizer.noise = t, None
        first[optimizer.draw(closure)[0]] += 1
    s = 0.1 + 0.4 * torch.arange(BATCH) / (BATCH - 1)
    share = s / s.sum()
    assert ((first / 4000 - share).abs() < 4 * (share / 4000).sqrt()).all()


def test_msam(p):
    def direction(net, t, b):
        v = net.velocity
        return net.gradient(b.x, b.y, times(-RHO / norm(v), v) if t else None)

    compare(p, build("msam", p.model, base(p), rho=RHO), direction)


def kl(old, now, tau):
    before, after = softmax(old / tau, 1), log_softmax(now / tau, 1)
    return (before * (before.log() - after)).sum(1).mean()


@pytest.mark.parametrize("tau_squared", [True, False])
def test_saf(p, tau_squared):
    outputs = []

    def direction(net, t, b):
        old = outputs[t - BATCHES] if t >= BATCHES else None
        weight = 0.3 * (25 if tau_squared else 1)
        d = net.gradient(b.x, b.y, term=lambda now: 0.0 if old is None else weight * kl(old, now, 5))
        outputs.append(net.logits)
        return d

    compare(p, build("saf", p.model, base(p), tau_squared=tau_squared), direction)


def test_saf_of_examples_that_some_epochs_leave_out(p):
    """Epochs of seven out of nine batches: a slot still holds what an example gave in an epoch before the last."""
    order = [(t + 4 * (t // BATCHES)) % 9 for t in range(TOTAL)]
    p.images = torch.cat([p.images, p.images[:2] + 1])[order]
    p.labels = torch.cat([p.labels, p.labels[:2]])[order]
    p.examples = torch.arange(9 * BATCH, device=p.labels.device).reshape(9, BATCH)[order]
    optimizer = build("saf", p.model, base(p))
    optimizer.train_size, optimizer.recorded = 9 * BATCH, torch.full((1, 9 * BATCH), -1, device=p.labels.device)
    outputs, known = {}, []

    def direction(net, t, b):
        epoch, batch = t // BATCHES, order[t]
        old = outputs.get((epoch - 1, batch))
        known.append(old is not None)
        d = net.gradient(b.x, b.y, term=lambda now: 0.0 if old is None else 7.5 * kl(old, now, 5))
        outputs[epoch, batch] = net.logits
        return d

    compare(p, optimizer, direction)
    assert [order[t] for t in range(BATCHES, TOTAL) if not known[t]] == [7, 8, 0]


def test_saf_with_outputs_of_two_epochs_ago(p):
    outputs = []

    def direction(net, t, b):
        old = outputs[t - 2 * BATCHES] if t >= 2 * BATCHES else None
        d = net.gradient(b.x, b.y, term=lambda now: 0.0 if old is None else 7.5 * kl(old, now, 5))
        outputs.append(net.logits)
        return d

    compare(p, build("saf", p.model, base(p), lag_epochs=2, start_epochs=0), direction)


def test_mesa(p):
    average = copy.deepcopy(p.model)

    def direction(net, t, b):
        if t:  # the average moves after the step before
            for a, w in zip(
                (*average.parameters(), *average.buffers()), (*net.params, *net.model.buffers()), strict=True
            ):
                if a.is_floating_point():
                    a.data = 0.9 * a.data + 0.1 * w.detach()
        if t < BATCHES:
            return net.gradient(b.x, b.y)
        with torch.no_grad():
            old = average.eval()(b.x)
        return net.gradient(b.x, b.y, term=lambda now: 0.8 * 4 * kl(old, now, 2))

    optimizer = build("mesa", p.model, base(p), tau=2)
    compare(p, optimizer, direction)
    assert (optimizer.propagations, optimizer.forwards) == (TOTAL, TOTAL - BATCHES)


def test_vsam(p):
    K, first = 10, 4  # noqa: N806
    s = SimpleNamespace(m=1.0, done=0, a=[], b=[], since=99, quotas=[])

    def variance(values):
        values = sorted(values)
        return statistics.fmean(statistics.variance(values[i : i + 2]) for i in range(0, 10, 2))

    def change(values):
        changes = [(new - old) / old for old, new in itertools.pairwise(values)]
        return max(-1.0, min(1.0, statistics.fmean(changes))) if changes else 0.0

    def direction(net, t, b):
        at = (t - first) % K
        left, lacking = K - at, int(s.m) - s.done
        sampled = t < first or (lacking > 0 and (coin(3, t) < s.m / K or left <= lacking))
        if sampled:
            g, g_s = net.sam(b.x, b.y)
            s.psf, s.since, d = plus(g_s, g, -1), 0, g_s
            s.a.append(norm(s.psf[-3:]).item())
            s.b.append(s.a[-1] / norm(g[-3:]).item())
        else:
            s.since += 1
            g = net.gradient(b.x, b.y)
            d = plus(g, s.psf, 0.7**s.since) if s.since <= 2 else g
        if t >= first:
            s.done += sampled
            if at == K - 1:
                v = [variance(s.a[i - K : i]) for i in range(K, len(s.a) + 1)]
                s.m *= 1 + 0.9 * change(s.b[-K:]) + 0.5 * change(v[-K:])
                s.m, s.done = min(max(s.m, 1.0), 8.0), 0
                s.quotas.append(s.m)
        return d

    settings = {"window": K, "quota": 7.0, "alpha_1": 0.9, "alpha_2": 0.5, "reuses": 2, "tensors": 3}
    s.m = 7.0
    optimizer = build("vsam", p.model, base(p), rho=RHO, sam_epochs=0, **settings)
    optimizer.sam_steps = first
    compare(p, optimizer, direction)
    assert optimizer.sharpness_aware_steps == len(s.a) == first + 7 + s.done
    assert optimizer.window.m == pytest.approx(s.m, rel=1e-5)
    assert s.m != 7


def fisher_by_hand(model, images, labels):
    """One sample at a time, in evaluation mode."""
    model = copy.deepcopy(model).eval()
    total = [torch.zeros_like(w) for w in model.parameters()]
    for x, y in zip(images, labels, strict=True):
        g = torch.autograd.grad(cross_entropy(model(x[None]), y[None]), list(model.parameters()))
        total = plus(total, [a.square() for a in g])
    return total


def test_ssam_f(p):
    memory = {}

    def direction(net, t, b):
        if t % BATCHES == 0:
            sample = Sample(b.x[:0])(20, derived_seed("fisher", 3, t // BATCHES))
            F = fisher_by_hand(net.model, *sample)  # noqa: N806
            flat = torch.cat([f.flatten() for f in F])
            threshold = flat.sort().values[round(0.3 * len(flat))]
            memory["mask"] = [f >= threshold for f in F]
        g = net.gradient(b.x, b.y)
        return net.gradient(b.x, b.y, [m * RHO / norm(g) * x for m, x in zip(memory["mask"], g, strict=True)])

    compare(p, build("ssam_f", p.model, base(p), rho=RHO, sparsity=0.3, samples=20), direction)


def test_ssam_d(p):
    """The masks are taken from the optimizer; tests/optim/test_masks.py has how they move."""
    optimizer = build("ssam_d", p.model, base(p), rho=RHO, update_epochs=1)
    masks = []
    optimizer.innermost.register_step_pre_hook(
        lambda *_: masks.append([m.clone() for m in optimizer.memory("mask", optimizer.perturbable())])
    )

    def direction(net, t, b):
        g = net.gradient(b.x, b.y)
        return net.gradient(b.x, b.y, [m * RHO / norm(g) * x for m, x in zip(masks[t], g, strict=True)])

    compare(p, optimizer, direction)
    assert any(not torch.equal(a, b) for a, b in zip(masks[0], masks[7], strict=True))


@pytest.mark.parametrize("name", ["ssam_f", "ssam_d"])
def test_the_sparse_backward(p, name):
    """The gradient of the emulated form: inputs see masked weights, weights see the inputs they had."""
    optimizer = build(name, p.model, base(p), rho=RHO, form="emulated", pattern="n:m", update_epochs=9)

    def direction(net, t, b):
        if t == 0:
            net.masks = masks = optimizer.memory("mask", optimizer.perturbable())  # moved once, before the first step
        masks = net.masks

        class Masked(torch.autograd.Function):  # y = layer(x) with the gradient of the masked layer for x
            @staticmethod
            def forward(ctx, plain, masked):
                return plain.clone()

            @staticmethod
            def backward(ctx, grad):
                return grad, grad

        model, x = net.model, b.x
        where = dict(zip(net.params, masks, strict=True))

        def work():
            h = x
            for layer in model:
                if isinstance(layer, (nn.Conv2d, nn.Linear)):
                    masked = copy.deepcopy(layer).requires_grad_(False)
                    masked.weight.mul_(where[layer.weight])
                    # its own gradient for the weights, the masked layer's for the input
                    h = Masked.apply(layer(h.detach()), masked(h))
                else:
                    h = layer(h)
            return [g.detach() for g in torch.autograd.grad(cross_entropy(h, b.y), net.params)]

        g = net.at(None, work)
        return net.gradient(b.x, b.y, [m * RHO / norm(g) * x for m, x in zip(masks, g, strict=True)])

    compare(p, optimizer, direction)


@pytest.mark.parametrize(
    "how", [{"stride": 2, "padding": 1}, {"groups": 2, "dilation": 2}, {"padding": "same"}], ids=str
)
def test_the_sparse_backward_of_a_convolution_that_is_called_by_keywords(how, device):
    """With a mask of ones it is the dense one."""
    torch.manual_seed(0)
    x = torch.randn(2, 4, 9, 9, device=device, dtype=torch.float64, requires_grad=True)
    weight = nn.Parameter(torch.randn(6, 4 // how.get("groups", 1), 3, 3, device=device, dtype=torch.float64))
    with SparseBackward({weight: torch.ones_like(weight)}, "emulated"):
        sparse = nn.functional.conv2d(x, weight, **how)
    dense = nn.functional.conv2d(x, weight, **how)
    assert torch.equal(sparse, dense)
    one, other = (torch.autograd.grad(y.square().sum(), (x, weight)) for y in (sparse, dense))
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["gsam", "looksam", "vsam", "grst"])
def test_a_layer_that_only_the_second_pass_reaches_has_no_gradient_in_the_first(name, device):
    """Its g is 0, and not what lay in that memory before."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.calls = nn.Linear(3, 2, bias=False), nn.Linear(3, 2, bias=False), 0

        def forward(self, x):
            self.calls += 1
            return self.a(x) if self.calls % 2 else self.a(x) + self.b(x)

    torch.manual_seed(0)
    net = Net().to(device, torch.float64)
    x, y = torch.randn(8, 3, device=device, dtype=torch.float64), torch.randint(2, (8,), device=device)
    optimizer = build(name, net, torch.optim.SGD(net.parameters(), lr=0.1), **({"k": 1} if name == "looksam" else {}))
    if name == "grst":
        optimizer.schedule = lambda s: 1.0
    for method in (optimizer, getattr(optimizer, "inner", optimizer)):
        for g in method.scratch("g", list(net.parameters())):
            g.fill_(torch.nan)

    def closure():
        optimizer.zero_grad()
        loss = cross_entropy(net(x), y)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert all(p.isfinite().all() for p in net.parameters())
    memory = optimizer._memory
    assert all(t.isfinite().all() for buffers in memory.values() for t in buffers.values())


def test_a_loss_that_is_no_number_ends_no_window_of_vsam():
    """The trainer says what happened at the end of the epoch; until then there is a quota."""
    window = Window(10, 1, 0.8, (0.13, 0.13), 0, torch.device("cpu"))
    for value in [*range(1, 15), float("nan"), float("inf"), 0.0, 3.0]:
        window.note(torch.tensor(float(value)), torch.tensor(float(value)))
        window.n += 1
        window.at.fill_(window.n % 20)
    window.close()
    assert 1 <= window.m <= 8
    window.begin(18, 8)
