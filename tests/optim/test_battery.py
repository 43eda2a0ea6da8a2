"""What every registered optimizer must do. A new one gets all of it from its entry in METHODS and BUILD."""

import copy
import io
import pickle
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from benchmarks.step import operations_around
from sam_bench.methods import METHODS
from sam_bench.optim import RST
from tests.optim.methods import BASE, BUILD, NAMES, TOTAL, build, problem, same, sgd, weights

everyone = pytest.mark.parametrize("name", NAMES)


def test_every_registered_method_is_built_here():
    assert set(BUILD) == set(METHODS)


@everyone
def test_is_one_torch_optimizer_with_its_base(name, device):
    p = problem(device)
    optimizer = build(name, p.model)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert optimizer.param_groups is optimizer.base.param_groups
    base = optimizer.innermost
    for loaded in (optimizer, optimizer.base, base):  # torch binds new lists and dicts in the one that loads
        loaded.load_state_dict(loaded.state_dict())
        assert optimizer.param_groups is base.param_groups
        assert optimizer.state is base.state
    base.param_groups[0]["lr"] = 0.123
    assert optimizer.param_groups[0]["lr"] == 0.123


@everyone
def test_forward_and_backward_passes_are_what_it_counts(name, device):
    p = problem(device)
    forwards, backwards = [], []
    p.model.register_forward_hook(lambda *_: forwards.append(1))
    p.model[0].weight.register_hook(lambda _: backwards.append(1))
    optimizer = build(name, p.model)
    for t in range(TOTAL):
        optimizer.step(p.closure(optimizer, t))
        assert len(forwards) == optimizer.propagations + optimizer.forwards
        assert len(backwards) == optimizer.propagations
    aware = optimizer.sharpness_aware_steps
    assert optimizer.propagations == TOTAL + aware
    assert aware == {"plain": 0, "inner": TOTAL}.get(METHODS[name].kind, aware)
    if isinstance(optimizer, RST):
        assert 0 < aware < TOTAL
        assert aware == sum(optimizer.draw(t) for t in range(TOTAL))


@everyone
def test_returns_the_loss_of_the_first_pass(name, device):
    p = problem(device)
    optimizer = build(name, p.model)
    for t in range(5):
        at_theta = copy.deepcopy(p)
        expected = at_theta.closure(torch.optim.SGD(at_theta.model.parameters(), lr=0), t)()
        assert optimizer.step(p.closure(optimizer, t)).item() == expected.item()


@everyone
def test_batch_norm_moves_once_a_step(name, device):
    p = problem(device)
    optimizer = build(name, p.model)
    for t in range(6):
        plain = copy.deepcopy(p.model)
        plain(p.images[t])
        optimizer.step(p.closure(optimizer, t))
        for (key, moved), once in zip(p.model.named_buffers(), plain.buffers(), strict=True):
            assert torch.equal(moved, once), key


@everyone
def test_weights_are_back_at_theta_when_the_base_steps(name, device):
    p = problem(device)
    optimizer = build(name, p.model)
    before, seen = [], []
    optimizer.innermost.register_step_pre_hook(
        lambda *_: seen.append(same(before, [q.detach() for q in p.model.parameters()]))
    )
    for t in range(TOTAL):
        before[:] = [q.detach().clone() for q in p.model.parameters()]
        optimizer.step(p.closure(optimizer, t))
    assert seen == [True] * TOTAL


@everyone
def test_an_error_in_any_pass_leaves_theta_and_batch_norm_as_they_were(name, device):
    p = problem(device)
    optimizer = build(name, p.model)
    p.run(optimizer, 1)
    for allowed in range(2):
        for t in range(1, TOTAL):
            calls = []
            closure = p.closure(optimizer, t)

            def failing(calls=calls, closure=closure, allowed=allowed):
                if len(calls) == allowed:
                    raise RuntimeError("out of memory")
                calls.append(1)
                return closure()

            theta = [q.detach().clone() for q in p.model.parameters()]
            try:
                optimizer.step(failing)
            except RuntimeError:
                assert same(theta, [q.detach() for q in p.model.parameters()])
            assert all(m.track_running_stats for m in p.model.modules() if isinstance(m, nn.BatchNorm2d))


@everyone
def test_resume_after_10_of_20_steps_gives_the_bits_of_20_undisturbed(name, device):
    p = problem(device)
    undisturbed, resumed = p.copy(), p.copy()
    whole = build(name, undisturbed.model)
    undisturbed.run(whole, TOTAL)

    first = build(name, resumed.model)
    resumed.run(first, TOTAL // 2)
    file = io.BytesIO()
    torch.save({"model": resumed.model.state_dict(), "optimizer": first.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    fresh = problem(device, seed=1)
    fresh.model.load_state_dict(state["model"])
    fresh.images, fresh.labels = p.images, p.labels
    second = build(name, fresh.model)
    second.load_state_dict(state["optimizer"])
    fresh.run(second, TOTAL // 2, first=TOTAL // 2)

    assert same(weights(fresh), weights(undisturbed))
    assert second.propagations == whole.propagations
    assert second.sharpness_aware_steps == whole.sharpness_aware_steps


@everyone
def test_state_dict_round_trip_is_exact_and_holds_no_copy_of_the_weights(name, device):
    p = problem(device)
    optimizer = build(name, p.model)
    p.run(optimizer, 7)
    state = optimizer.state_dict()
    size, plain_size = (
        sum(t.numel() for s in o.state_dict()["state"].values() for t in s.values() if isinstance(t, torch.Tensor))
        for o in (optimizer, optimizer.base)
    )
    assert size == plain_size
    assert not any(
        isinstance(v, torch.Tensor) for k in state if k not in ("state", "param_groups") for v in state[k].values()
    )
    other = build(name, p.copy().model)
    other.load_state_dict(copy.deepcopy(state))
    first, second = io.BytesIO(), io.BytesIO()
    torch.save(state, first)
    torch.save(other.state_dict(), second)
    assert first.getvalue() == second.getvalue()


@everyone
def test_a_state_dict_of_another_method_is_refused(name, device):
    optimizer = build(name, problem(device).model)
    with pytest.raises(ValueError, match="Invalid state_dict: not one of"):
        optimizer.load_state_dict(optimizer.innermost.state_dict())


@everyone
@pytest.mark.parametrize(
    "way", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["deepcopy", "pickle"]
)
def test_a_copy_goes_on_to_the_same_bits(name, way, device):
    p = problem(device)
    optimizer = build(name, p.model)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)  # hangs a local function on the instance
    p.run(optimizer, 5)
    q, twin = way((p, optimizer))
    assert twin.param_groups[0]["params"][0] is next(q.model.parameters())
    assert twin.param_groups is twin.base.param_groups
    p.run(optimizer, 5, first=5)
    q.run(twin, 5, first=5)
    assert same(weights(p), weights(q))
    assert optimizer.propagations == twin.propagations


@everyone
def test_learning_rate_schedulers_take_it(name, device):
    p = problem(device)
    optimizer = build(name, p.model)
    lr = optimizer.param_groups[0]["lr"]
    scheduler = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 0.5, total_iters=2),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3),
        ],
        milestones=[2],
    )
    seen = []
    for t in range(6):
        seen.append(optimizer.base.param_groups[0]["lr"])
        optimizer.step(p.closure(optimizer, t))
        scheduler.step()
    assert seen[:3] == pytest.approx([0.5 * lr, 0.75 * lr, lr])
    assert seen[5] == pytest.approx(0, abs=1e-9)


@everyone
def test_clipping_reaches_the_gradient_that_the_base_steps_along(name, device):
    p = problem(device)
    optimizer = BUILD[name](p.model, sgd(p.model, momentum=0, weight_decay=0, lr=1.0))
    params = list(p.model.parameters())
    optimizer.innermost.register_step_pre_hook(lambda *_: [nn.utils.clip_grad_norm_(params, 1e-3), None][1])
    for t in range(6):
        before = [q.detach().clone() for q in params]
        optimizer.step(p.closure(optimizer, t))
        moved = torch.nn.utils.get_total_norm([a - b for a, b in zip(params, before, strict=True)])
        assert moved.item() == pytest.approx(1e-3, rel=1e-2)


@everyone
def test_several_groups_frozen_and_non_contiguous_parameters(name, device):
    """Groups, a frozen layer, an unused parameter and transposed weights change nothing but what they say."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a = nn.Parameter(torch.randn(6, 8).t())  # not contiguous
            self.frozen = nn.Linear(6, 6)
            self.unused = nn.Parameter(torch.ones(3))
            self.b = nn.Linear(6, 5)

        def forward(self, x):
            return self.b(torch.tanh(self.frozen(x @ self.a)))

    net = Net().to(device)
    net.frozen.requires_grad_(False)
    x, y = torch.randn(16, 8, device=device), torch.randint(5, (16,), device=device)
    assert not net.a.is_contiguous()
    base = torch.optim.SGD([{"params": [net.a, net.unused]}, {"params": [*net.frozen.parameters()], "lr": 5.0}], lr=0.1)
    optimizer = BUILD[name](net, base)
    optimizer.add_param_group({"params": [*net.b.parameters()], "lr": 0.0})
    before = copy.deepcopy(net.state_dict())

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(TOTAL)]
    after = net.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"a"}
    assert losses[-1] < losses[0]


@everyone
def test_bf16_autocast(name, device):
    p = problem(device)
    optimizer = build(name, p.model)

    def closure():
        optimizer.zero_grad()
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = nn.functional.cross_entropy(p.model(p.images[0]), p.labels[0])
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(TOTAL)]
    assert losses[-1] < 0.7 * losses[0]
    assert all(q.dtype == torch.float32 for q in p.model.parameters())


@everyone
def test_autocast_around_the_step_gives_the_bits_of_autocast_in_the_closure(name, device):
    """Autocast keeps its casts of θ; a second pass must not be served them for θ + ε."""

    def run(around: bool):
        def autocast(here: bool):  # not a disabled one: around another, it would keep the cache as well
            return torch.autocast(device.type, dtype=torch.bfloat16) if here else nullcontext()

        p = problem(device)
        optimizer = build(name, p.model)
        for t in range(6):

            def closure(t=t):
                optimizer.zero_grad()
                with autocast(not around):
                    loss = nn.functional.cross_entropy(p.model(p.images[t]), p.labels[t])
                loss.backward()
                return loss

            with autocast(around):
                optimizer.step(closure)
        return weights(p)

    assert same(run(around=True), run(around=False))


@everyone
def test_bf16_weights(name, device):
    p = problem(device, dtype=torch.bfloat16).one_batch()
    optimizer = build(name, p.model)
    losses = p.run(optimizer, TOTAL)
    assert losses[-1] < 0.7 * losses[0]
    assert all(q.dtype == torch.bfloat16 for q in p.model.parameters())


@everyone
def test_at_most_20_operations_around_the_passes_whatever_the_number_of_tensors(name, device):
    def net(layers: int) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)) for _ in range(layers))).to(device)

    x, y = torch.randn(16, 8, device=device), torch.randint(8, (16,), device=device)

    def operations(layers: int) -> list[str]:
        model = net(layers)
        optimizer = BUILD[name](model, sgd(model, fused=True))

        def closure():
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            return loss

        for _ in range(TOTAL // 2):  # by then the buffers are allocated
            optimizer.step(closure)
        return operations_around(optimizer, closure, TOTAL // 2)

    small, large = operations(2), operations(40)
    assert small == large
    assert 0 < len(large) <= 20, large


@everyone
@pytest.mark.skipif(not torch.cuda.is_available(), reason="only a GPU has something to wait for")
def test_a_step_waits_for_nothing(name):
    p = problem(torch.device("cuda"))
    optimizer = build(name, p.model)
    p.run(optimizer, 2)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for t in range(2, TOTAL):
            optimizer.step(p.closure(optimizer, t))
    finally:
        torch.cuda.set_sync_debug_mode("default")


@everyone
def test_a_base_that_needs_the_closure_is_refused(name, device):
    model = problem(device).model
    with pytest.raises(ValueError, match="LBFGS evaluates the closure itself"):
        BUILD[name](model, torch.optim.LBFGS(model.parameters()))


@everyone
@pytest.mark.parametrize("base", ["sgd", "adamw", "timm"])
def test_any_base_trains(name, base, device):
    p = problem(device).one_batch()
    optimizer = BUILD[name](p.model, BASE.get(base, sgd)(p.model))
    losses = p.run(optimizer, TOTAL)
    assert losses[-1] < 0.7 * losses[0]
