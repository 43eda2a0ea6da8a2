"""What every registered optimizer must do. A new one gets all of it from its entry in METHODS and its file in conf/."""

import copy
import io
import pickle
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from benchmarks.step import operations_around
from sam_bench.methods import METHODS
from sam_bench.optim import RST
from sam_bench.schedules import Constant
from tests.optim.methods import (
    BASE,
    BATCH,
    BATCHES,
    NAMES,
    TOTAL,
    UNDER_RST,
    Problem,
    build,
    closure_of,
    problem,
    same,
    sgd,
    weights,
)

everyone = pytest.mark.parametrize("name", NAMES)
everyone_and_under_rst = pytest.mark.parametrize("name", NAMES + UNDER_RST)

# why a step of a method waits for the device, as its docstring says
WAITS = {
    "aesam": "the norm decides on the second pass",
    "aelooksam": "the norm decides on the second pass",
    "vsam": "the end of a window",
    "ssam_f": "the mask is made anew",
    "ssam_d": "the mask is moved",
}


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
    optimizer = build(name, p.model)
    spent = {"forward": 0.0, "backward": 0.0}

    def watch(model, inputs, output):
        spent["forward"] += len(inputs[0]) / BATCH
        if output.requires_grad:

            def watch_backward(grad):
                spent["backward"] += len(grad) / BATCH

            output.register_hook(watch_backward)

    for model in (p.model, getattr(optimizer, "average", None)):
        if model is not None:
            model.register_forward_hook(lambda *a: watch(*a) if a[0] is not p.model or a[0].training else None)
    for t in range(TOTAL):
        optimizer.step(p.closure(optimizer, t))
        assert spent["forward"] == pytest.approx(optimizer.propagations + optimizer.forwards)
        assert spent["backward"] == pytest.approx(optimizer.propagations)
    assert optimizer.samplewise == METHODS[name].single_samples
    aware = optimizer.sharpness_aware_steps
    assert aware == 0 if METHODS[name].kind == "plain" else 0 < aware <= TOTAL
    if isinstance(optimizer, RST):
        assert aware == sum(optimizer.draw(t) for t in range(TOTAL))
    if name in ("sam", "asam", "fsam", "vasso", "gsam", "adasam", "ssam_f", "ssam_d"):
        assert aware == TOTAL
        assert optimizer.propagations == 2 * TOTAL


# those that choose by the gradient, or toss a coin: tests/optim/test_train.py has their ranges
@pytest.mark.parametrize("name", sorted(set(NAMES) - {"aesam", "aelooksam", "vsam", "rst", "grst", "late_sam"}))
def test_it_spends_what_it_expects(name, device):
    p = problem(device)
    optimizer = build(name, p.model, **{"mesa": {"start_epochs": 0}}.get(name, {}))
    steps = 3 * BATCHES
    for t in range(steps):
        optimizer.step(p.closure(optimizer, t))
    # to one step of a period, and a sample a pass
    expected = pytest.approx(steps * optimizer.expected_propagations_per_step, abs=1 + steps / BATCH)
    assert optimizer.propagations == expected
    assert optimizer.forwards == steps * optimizer.expected_forwards_per_step
    if METHODS[name].kind == "inner":
        half = RST(optimizer, Constant(0.5), total_steps=steps)
        assert half.expected_forwards_per_step == optimizer.expected_forwards_per_step / 2


@everyone
def test_returns_the_loss_of_the_first_pass(name, device):
    p = problem(device)
    optimizer = build(name, p.model)
    for t in range(5):
        at_theta = copy.deepcopy(p)
        expected = at_theta.closure(build("sgd", at_theta.model), t)()
        loss = optimizer.step(p.closure(optimizer, t))
        if name == "msam" and t:
            assert loss.item() != expected.item()  # its one pass is elsewhere
        elif optimizer.samplewise:
            assert loss.item() == pytest.approx(expected.item(), rel=1e-6)  # the mean is taken by another kernel
        else:
            assert loss.item() == expected.item()


@everyone
def test_batch_norm_moves_once_a_step(name, device):
    p = problem(device)
    optimizer = build(name, p.model)
    for t in range(TOTAL):
        plain = copy.deepcopy(p.model)
        plain(p.images[t % len(p.images)])
        optimizer.step(p.closure(optimizer, t))
        for (key, moved), once in zip(p.model.named_buffers(), plain.buffers(), strict=True):
            if key.endswith("num_batches_tracked"):
                assert moved == once == t + 1
            elif (name == "msam" and t) or (name == "ausam" and t >= len(p.images)):
                assert not torch.equal(moved, once)  # the one pass is at other weights, on a part of the batch
            else:
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


@everyone_and_under_rst
def test_an_error_in_any_pass_leaves_theta_and_batch_norm_as_they_were(name, device):
    p = problem(device)
    optimizer = build(name, p.model)
    p.run(optimizer, 1)
    failed = 0
    for allowed in range(4):
        for t in range(1, TOTAL):
            calls = []

            def fail(calls=calls, allowed=allowed):
                if len(calls) == allowed:
                    raise MemoryError
                calls.append(1)

            before = [q.detach().clone() for q in p.model.parameters()]
            statistics = [b.clone() for b in p.model.buffers()]
            try:
                optimizer.step(p.closure(optimizer, t, before=fail))
            except MemoryError:
                failed += 1
                assert same(before, [q.detach() for q in p.model.parameters()])
                # they move in the first pass; that of MESA is the second, after its averaged model's
                assert same(statistics, list(p.model.buffers())) == (allowed <= (name == "mesa"))
            assert all(q.requires_grad for q in p.model.parameters())
            assert all(m.track_running_stats for m in p.model.modules() if isinstance(m, nn.BatchNorm2d))
    assert failed >= TOTAL - 1 if METHODS.get(name, METHODS["rst"]).kind in ("plain", "alone") else failed > TOTAL


@everyone_and_under_rst
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
    fresh.images, fresh.labels, fresh.examples = p.images, p.labels, p.examples
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
    params = sum(q.numel() for q in p.model.parameters())
    own = {key: value for key, value in state.items() if key not in ("state", "param_groups")}
    kept = sum(t.numel() for t in tree_leaves(own) if isinstance(t, torch.Tensor)) / params
    claimed = METHODS[name].state
    if not claimed or not claimed[0].isdigit():
        assert not any(optimizer._memory.values())
        assert kept == 0 or claimed
    else:
        assert int(claimed.split()[0]) <= kept < int(claimed.split()[0]) + 0.1
    theta = [q.detach() for q in p.model.parameters()]
    assert not any(torch.equal(t, q) for t in tree_leaves(own) if isinstance(t, torch.Tensor) for q in theta)
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
    optimizer = build(name, p.model, sgd(p.model, momentum=1e-9, weight_decay=0, lr=1.0))  # MSAM takes no 0
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
    groups = [{"params": [net.a, net.unused]}, {"params": [*net.frozen.parameters()], "lr": 5.0}]
    base = torch.optim.SGD(groups, lr=0.1, momentum=1e-9)
    optimizer = build(name, net, base, shape=(8,))
    optimizer.add_param_group({"params": [*net.b.parameters()], "lr": 0.0})
    before = copy.deepcopy(net.state_dict())
    start = nn.functional.cross_entropy(net(x), y).item()
    for _ in range(TOTAL):
        optimizer.step(closure_of(optimizer, net, x, y))
    after = net.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"a"}
    assert nn.functional.cross_entropy(net(x), y).item() < start


@everyone
def test_bf16_autocast(name, device):
    p = problem(device)
    optimizer, start = build(name, p.model), p.loss()
    for _ in range(TOTAL):
        optimizer.step(p.closure(optimizer, bf16=True))
    assert p.loss() < 0.7 * start
    assert all(q.dtype == torch.float32 for q in p.model.parameters())


@everyone
def test_autocast_around_the_step_gives_the_bits_of_autocast_in_the_closure(name, device):
    """Autocast keeps its casts of θ; a second pass must not be served them for θ + ε."""

    def run(around: bool):
        p = problem(device)
        optimizer = build(name, p.model)
        for t in range(12):
            with torch.autocast(device.type, dtype=torch.bfloat16) if around else nullcontext():
                optimizer.step(p.closure(optimizer, t, bf16=not around))
        return weights(p)

    assert same(run(around=True), run(around=False))


@everyone
def test_bf16_weights(name, device):
    p = problem(device, dtype=torch.bfloat16).one_batch()
    optimizer, start = build(name, p.model), p.loss()
    p.run(optimizer, TOTAL)
    assert p.loss() < 0.7 * start
    assert all(q.dtype == torch.bfloat16 for q in p.model.parameters())


def operations(name, layers, device):
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)) for _ in range(layers))).to(device)
    x, y = torch.randn(16, 8, device=device), torch.randint(8, (16,), device=device)
    once = {"update_epochs": 1000} if name.startswith("ssam") else {}  # a new mask is no part of a step
    optimizer = build(name, model, sgd(model, fused=True), shape=(8,), **once)
    for _ in range(TOTAL - 3):  # by then the buffers are allocated
        optimizer.step(closure_of(optimizer, model, x, y))
    return operations_around(optimizer, closure_of(optimizer, model, x, y), TOTAL // 2)


@everyone
def test_few_operations_around_the_passes_whatever_the_number_of_tensors(name, device):
    small, large = operations(name, 2, device), operations(name, 40, device)
    assert small == large or name == "mesa"  # of its two averages, those of 2 layers fit into one chunk less
    assert len(small) == len(large)
    assert 0 < len(large) <= (20 if name in ("sgd", "adamw", "sam", "rst", "grst") else 60), large


@everyone
def test_memory_is_what_the_catalogue_says(name, device):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 5))
    p = Problem(model.to(device), *list(vars(problem(device)).values())[1:])
    optimizer = build(name, p.model)
    p.run(optimizer, TOTAL)
    copies = optimizer.extra_bytes / sum(q.numel() * q.element_size() for q in p.model.parameters())
    claimed = METHODS[name].memory.replace("inner's + 1", "2").replace("inner's", "1").split()[0]
    assert int(claimed) <= copies < int(claimed) + 0.1


@everyone
@pytest.mark.skipif(not torch.cuda.is_available(), reason="only a GPU has something to wait for")
def test_a_step_waits_for_nothing(name):
    if name in WAITS:
        pytest.skip(f"it waits on purpose: {WAITS[name]}")
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
        build(name, model, torch.optim.LBFGS(model.parameters()))


@pytest.mark.parametrize("name", sorted(name for name in NAMES if METHODS[name].kind != "scheduled"))
def test_a_base_that_is_a_method_is_refused(name, device):
    model = problem(device).model
    with pytest.raises(ValueError, match="Invalid base: SAM is a method itself"):
        build(name, model, build("sam", model))


@everyone
@pytest.mark.parametrize("base", ["sgd", "adamw", "timm"])
def test_any_base_trains(name, base, device):
    p = problem(device).one_batch()
    optimizer, start = build(name, p.model, BASE.get(base, sgd)(p.model)), p.loss()
    p.run(optimizer, TOTAL)
    assert p.loss() < 0.7 * start
