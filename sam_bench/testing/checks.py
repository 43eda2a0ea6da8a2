"""The checks. Each builds an optimizer with the given factory and raises an AssertionError if a property fails."""

import copy
import io
import pickle
import unittest
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR, SequentialLR
from torch.utils._pytree import tree_leaves

from sam_bench.testing.dispatch import Operations, watch_steps
from sam_bench.testing.problem import (
    BATCH,
    CLASSES,
    TOTAL,
    Problem,
    WatchedClosure,
    problem,
    same,
    weights,
)

Factory = Callable[[nn.Module], Optimizer]
Step = Callable[[Any, Any], Tensor]


class NotApplicable(unittest.SkipTest):
    """The check does not apply to this optimizer. pytest reports it as skipped."""


@dataclass
class Subject:
    """An optimizer class or setting under test.

    Attributes:
        factory: makes an optimizer for the parameters of a model.
        step: makes one step with an optimizer and a closure, and returns the loss.
        device: where to train.
    """

    factory: Factory
    step: Step
    device: torch.device

    def start(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Problem, Any]:
        """A problem and an optimizer for it."""
        p = problem(self.device, seed, dtype)
        return p, self.factory(p.model)

    def run(self, p: Problem, optimizer: Any, steps: int = TOTAL, first: int = 0, **options: Any) -> None:
        """Make steps."""
        for t in range(first, first + steps):
            self.step(optimizer, p.closure(optimizer, t, **options))

    def innermost(self) -> type[Optimizer]:
        """The class of the optimizer that makes the last step inside a step: the base."""
        p, optimizer = self.start()
        seen: list[Optimizer] = []
        with watch_steps(seen.append):
            self.run(p, optimizer, 1)
        assert seen, "no torch optimizer steps inside its step"
        return type(seen[-1])


def params_of(model: nn.Module) -> list[Tensor]:
    """Copies of the parameters."""
    return [p.detach().clone() for p in model.parameters()]


def is_a_torch_optimizer(s: Subject) -> None:
    """It is a torch.optim.Optimizer over the model's parameters."""
    p, optimizer = s.start()
    assert isinstance(optimizer, Optimizer), f"{type(optimizer).__name__} is not a torch.optim.Optimizer"
    found = [q for group in optimizer.param_groups for q in group["params"]]
    assert {id(q) for q in found} == {id(q) for q in p.model.parameters()}, (
        "param_groups are not the model's parameters"
    )
    optimizer.load_state_dict(optimizer.state_dict())
    rate = optimizer.param_groups[0]["lr"]
    assert isinstance(rate, float | Tensor), f"the learning rate is {rate}"


def learns(s: Subject) -> None:
    """The loss of one batch falls by 30 % in 20 steps."""
    p, _ = s.start()
    p = p.one_batch()
    optimizer, start = s.factory(p.model), p.loss()
    s.run(p, optimizer)
    assert p.loss() < 0.7 * start, f"the loss went from {start:.3f} to {p.loss():.3f}"


def counts_its_passes(s: Subject) -> None:
    """`propagations` and `forwards` equal the number of passes that ran."""
    p = problem(s.device)
    spent = {"forward": 0.0, "backward": 0.0}

    def watch(module: nn.Module, inputs: Any, output: Tensor) -> None:
        if torch._C._functorch.peek_interpreter_stack() is not None:
            return  # per-sample gradients, counted by the batch they come from
        spent["forward"] += len(inputs[0]) / BATCH
        if output.requires_grad:

            def watch_backward(grad: Tensor) -> None:
                spent["backward"] += len(grad) / BATCH

            output.register_hook(watch_backward)

    p.model.register_forward_hook(watch)  # before a method copies the model
    optimizer: Any = s.factory(p.model)
    missing = [name for name in ("propagations", "forwards", "sharpness_aware_steps") if not hasattr(optimizer, name)]
    assert not missing, f"it has no `{missing[0]}`: its cost is not counted" if missing else ""
    for t in range(TOTAL):
        s.step(optimizer, p.closure(optimizer, t))
        counted = optimizer.propagations, optimizer.propagations + optimizer.forwards
        made = spent["backward"], spent["forward"]
        assert all(abs(a - b) < 1e-6 for a, b in zip(counted, made, strict=True)), (
            f"after step {t} it counts {counted[0]:g} backward and {counted[1]:g} forward passes; it made {made[0]:g} "
            f"and {made[1]:g}"
        )
    assert 0 <= optimizer.sharpness_aware_steps <= TOTAL, "sharpness_aware_steps is no number of steps"


def returns_the_loss_of_the_first_pass(s: Subject) -> None:
    """`step` returns the loss at θ, detached from its graph."""
    p, optimizer = s.start()
    for t in range(5):
        plain = copy.deepcopy(p.model)
        expected = cross_entropy(plain(p.images[t]), p.labels[t]).item()
        loss = s.step(optimizer, p.closure(optimizer, t))
        assert isinstance(loss, Tensor), f"it returns {type(loss).__name__}"
        assert not loss.requires_grad, "the returned loss still holds its graph"
        if t == 0 or getattr(optimizer, "whole_first_pass", True):
            # the mean of single losses is taken by another kernel
            assert abs(loss.item() - expected) <= 1e-6 * abs(expected), (
                f"step {t}: {loss.item()}, at θ it is {expected}"
            )


def updates_batch_norm_once(s: Subject) -> None:
    """BatchNorm statistics are updated once per step, in the first pass."""
    p, optimizer = s.start()
    for t in range(TOTAL):
        plain = copy.deepcopy(p.model)
        plain(p.images[t % len(p.images)])
        s.step(optimizer, p.closure(optimizer, t))
        for (name, now), once in zip(p.model.named_buffers(), plain.buffers(), strict=True):
            if name.endswith("num_batches_tracked"):
                assert now == once, f"{name} is {now.item()} after {t + 1} steps"
            elif t == 0 or getattr(optimizer, "whole_first_pass", True):
                assert torch.equal(now, once), f"{name} is not that of one pass at θ"
    assert all(m.track_running_stats for m in p.model.modules() if isinstance(m, nn.BatchNorm2d))


def restores_theta_before_the_base_steps(s: Subject) -> None:
    """When the base optimizer steps, the weights are θ, bit for bit."""
    base = s.innermost()
    p, optimizer = s.start()
    before: list[Tensor] = []
    seen: list[bool] = []

    def look(stepping: Optimizer) -> None:
        if type(stepping) is base:
            seen.append(same(before, params_of(p.model)))

    with watch_steps(look):
        for t in range(TOTAL):
            before[:] = params_of(p.model)
            s.step(optimizer, p.closure(optimizer, t))
    assert len(seen) == TOTAL, f"the base made {len(seen)} steps in {TOTAL}"
    assert all(seen), f"in {seen.count(False)} of {TOTAL} steps the weights differ from θ"


def restores_theta_after_an_error(s: Subject) -> None:
    """After an error in any pass the weights are θ, and BatchNorm statistics were updated at most once."""
    failed = 0
    p, optimizer = s.start()
    s.run(p, optimizer, 1)
    for allowed in range(4):
        for t in range(1, TOTAL):
            passes: list[int] = []

            def fail(passes: list[int] = passes, allowed: int = allowed) -> None:
                if len(passes) == allowed:
                    raise MemoryError
                passes.append(1)

            theta, statistics = params_of(p.model), [b.clone() for b in p.model.buffers()]
            try:
                s.step(optimizer, p.closure(optimizer, t, before=fail))
            except MemoryError:
                failed += 1
                where = f"an error in pass {allowed + 1} of a step"
                assert same(theta, params_of(p.model)), f"{where} leaves perturbed weights"
                tracked = [int(b) for n, b in p.model.named_buffers() if n.endswith("tracked")]
                at_most = [int(b) + (allowed > 0) for b in statistics if b.ndim == 0]
                assert all(a <= b for a, b in zip(tracked, at_most, strict=True)), f"{where} moves BatchNorm twice"
                if allowed == 0:
                    assert same(statistics, p.model.buffers()), f"{where} moves BatchNorm statistics"
            assert all(q.requires_grad for q in p.model.parameters()), "a parameter no longer requires a gradient"
            assert all(m.track_running_stats for m in p.model.modules() if isinstance(m, nn.BatchNorm2d))
    assert failed >= TOTAL - 1, "the closure was not called"


def resumes_exactly(s: Subject) -> None:
    """10 steps, a checkpoint and 10 more steps equal 20 uninterrupted steps, bit for bit."""
    p = problem(s.device)
    undisturbed, resumed = p.copy(), p.copy()
    whole: Any = s.factory(undisturbed.model)
    s.run(undisturbed, whole)

    first = s.factory(resumed.model)
    s.run(resumed, first, TOTAL // 2)
    file = io.BytesIO()
    torch.save({"model": resumed.model.state_dict(), "optimizer": first.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    other = problem(s.device, seed=1)
    fresh = p.with_model(other.model)
    fresh.model.load_state_dict(state["model"])
    second: Any = s.factory(fresh.model)
    second.load_state_dict(state["optimizer"])
    s.run(fresh, second, TOTAL // 2, first=TOTAL // 2)

    drift = max(((a - b).abs().max().item() for a, b in zip(weights(fresh), weights(undisturbed), strict=True)))
    assert drift == 0, f"after the reload the weights drift by up to {drift:.1e}"
    for name in ("propagations", "sharpness_aware_steps"):
        assert getattr(second, name, 0) == getattr(whole, name, 0), f"`{name}` is lost on a reload"


def keeps_its_state_round_trip(s: Subject) -> None:
    """Loading and saving a state_dict gives the same bytes, and it holds no copy of the weights."""
    p, optimizer = s.start()
    s.run(p, optimizer, 7)
    state = optimizer.state_dict()
    other = s.factory(p.copy().model)
    other.load_state_dict(copy.deepcopy(state))
    first, second = io.BytesIO(), io.BytesIO()
    torch.save(state, first)
    torch.save(other.state_dict(), second)
    assert first.getvalue() == second.getvalue(), "the loaded state_dict differs from the saved one"
    tensors = [t for t in tree_leaves(state) if isinstance(t, Tensor)]
    copies = sum(any(torch.equal(t, q) for t in tensors) for q in p.model.parameters())
    assert not copies, f"the state_dict holds a copy of {copies} of the weight tensors"
    if (claimed := getattr(optimizer, "state_copies", None)) is not None:
        own = {key: value for key, value in state.items() if key not in ("state", "param_groups")}
        size = sum(t.numel() for t in tree_leaves(own) if isinstance(t, Tensor))
        copies_kept = size / sum(q.numel() for q in p.model.parameters())
        claims = claimed <= copies_kept < claimed + 0.1 or getattr(optimizer, "samplewise", False)
        assert claims, f"state_copies is {claimed}, and the state_dict holds {copies_kept:.2f} copies' size"


def refuses_the_state_of_its_base(s: Subject) -> None:
    """Loading the state_dict of the bare base optimizer raises an error."""
    _, optimizer = s.start()
    state = optimizer.state_dict()
    bare = {key: state[key] for key in ("state", "param_groups")}
    if state.keys() == bare.keys():
        raise NotApplicable("its state_dict has no entry of its own")
    try:
        optimizer.load_state_dict(bare)
    except (ValueError, KeyError):
        return
    raise AssertionError("it loads a state_dict that lacks its own entry")


def _a_copy_goes_on(s: Subject, copied: Callable[[Any], Any]) -> None:
    p, optimizer = s.start()
    LambdaLR(optimizer, lambda _: 1.0)  # attaches a local function to the instance
    s.run(p, optimizer, 5)
    q, twin = copied((p, optimizer))
    theirs = {id(x) for x in q.model.parameters()}
    assert all(id(x) in theirs for g in twin.param_groups for x in g["params"]), "the copy has other parameters"
    s.run(p, optimizer, 5, first=5)
    s.run(q, twin, 5, first=5)
    assert same(weights(p), weights(q)), "the copy continues with other weights"
    assert getattr(twin, "propagations", 0) == getattr(optimizer, "propagations", 0), "the copy counts otherwise"


def survives_deepcopy(s: Subject) -> None:
    """A deep copy of model and optimizer continues bit for bit."""
    _a_copy_goes_on(s, copy.deepcopy)


def survives_pickling(s: Subject) -> None:
    """A pickled model and optimizer continue bit for bit."""
    _a_copy_goes_on(s, lambda pair: pickle.loads(pickle.dumps(pair)))


def takes_schedulers(s: Subject) -> None:
    """Learning-rate schedulers act on the step."""
    p, optimizer = s.start()
    rate = optimizer.param_groups[0]["lr"]
    warm, cosine = LinearLR(optimizer, 0.5, total_iters=2), CosineAnnealingLR(optimizer, 3)
    scheduler = SequentialLR(optimizer, [warm, cosine], milestones=[2])
    rates = []
    for t in range(6):
        rates.append(float(optimizer.param_groups[0]["lr"]) / rate)
        before = params_of(p.model)
        s.step(optimizer, p.closure(optimizer, t))
        moved = not same(before, params_of(p.model))
        assert moved == (rates[-1] > 1e-9), f"at {rates[-1]:.2f} of the learning rate, moved: {moved}"
        scheduler.step()
    expected = [0.5, 0.75, 1.0, 0.75, 0.25, 0.0]
    assert all(abs(a - b) < 1e-6 for a, b in zip(rates, expected, strict=True)), f"the rates are {rates}"


def takes_clipping(s: Subject) -> None:
    """A hook of the base optimizer can change the gradient it is about to use, for every method."""
    base = s.innermost()
    results = []
    for first in (0, 3):  # with gradients clipped to 0, the data makes no difference
        p, optimizer = s.start()

        def clip(stepping: Optimizer, p: Problem = p) -> None:
            if type(stepping) is base:
                nn.utils.clip_grad_norm_(p.model.parameters(), 0.0)

        with watch_steps(clip):
            s.run(p, optimizer, 5, first)
        results.append(params_of(p.model))
    assert same(*results), "a gradient that was clipped to 0 still moves the weights"


def respects_parameter_groups(s: Subject) -> None:
    """Parameter groups, frozen layers, unused parameters and transposed weights are handled as in torch.optim."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a = nn.Parameter(torch.randn(6, 64).t())  # not contiguous
            self.frozen = nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6))
            self.unused = nn.Parameter(torch.ones(3))
            self.fixed = nn.Linear(6, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.fixed(torch.tanh(self.frozen(x.flatten(1) @ self.a)))

    net = Net().to(s.device)
    net.frozen.requires_grad_(False)
    p = problem(s.device).with_model(net).one_batch()
    optimizer = s.factory(net)
    fixed = list(net.fixed.parameters())
    group = optimizer.param_groups[0]
    group["params"] = [q for q in group["params"] if all(q is not other for other in fixed)]
    optimizer.add_param_group({"params": fixed, "lr": 0.0})
    before = {name: t.clone() for name, t in net.named_parameters()}
    start = p.loss()
    s.run(p, optimizer)
    after = dict(net.named_parameters())
    changed = sorted(name for name in before if not torch.equal(before[name], after[name]))
    assert changed == ["a"], f"changed are {', '.join(changed) or 'none'}; only `a` has a gradient and a learning rate"
    assert p.loss() < start, "the loss does not fall"


def does_nothing_without_gradients(s: Subject) -> None:
    """A step in which no parameter has a gradient does nothing, as in torch.optim."""
    p, optimizer = s.start()
    s.run(p, optimizer, 3)

    class Idle(WatchedClosure):
        def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
            self.optimizer.zero_grad()
            return self.evaluate(args[0] if args else None).mean()

    closure = Idle(p.model, optimizer)
    closure.before, closure.zeroes = lambda: None, True
    closure.batch(p.images[0], p.labels[0], p.examples[0])
    theta = params_of(p.model)
    try:
        s.step(optimizer, closure)
    except Exception as error:
        raise AssertionError(f"it raises {type(error).__name__}: {error}") from error
    assert same(theta, params_of(p.model)), "it moves the weights"
    s.run(p, optimizer, 1)


def takes_closures_without_zero_grad(s: Subject) -> None:
    """A closure that does not call zero_grad gives the same bits: no pass adds to the gradients of another."""
    results = []
    for zeroes in (True, False):
        p, optimizer = s.start()
        for t in range(TOTAL):
            optimizer.zero_grad()
            s.step(optimizer, p.closure(optimizer, t, zeroes=zeroes))
        results.append(weights(p))
    assert same(*results), "the second pass adds to what the first one left in `.grad`"


def refuses_accumulation_outside(s: Subject) -> None:
    """Gradients accumulated outside the closure raise an error, or the step uses their sum."""
    p, optimizer = s.start()
    s.run(p, optimizer, 1)
    q, both = s.start()
    s.run(q, both, 1)
    p.closure(optimizer, 1)()
    try:
        s.step(optimizer, p.closure(optimizer, 2, zeroes=False))
    except RuntimeError:
        return

    def closure() -> Tensor:
        both.zero_grad()
        losses = [cross_entropy(q.model(q.images[t]), q.labels[t]) for t in (1, 2)]
        (losses[0] + losses[1]).backward()
        return losses[0]

    s.step(both, closure)
    drift = max((a - b).abs().max().item() for a, b in zip(params_of(p.model), params_of(q.model), strict=True))
    assert drift < 1e-6, f"without an error, its step differs from that of the sum by up to {drift:.1e}"


def refuses_a_grad_scaler(s: Subject) -> None:
    """`scaler.step(optimizer, closure)` raises an error, or the step uses unscaled gradients."""
    p, optimizer = s.start()
    q, unscaled = s.start()
    s.run(q, unscaled, 1)
    scaler = torch.amp.GradScaler(s.device.type)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(p.model(p.images[0]), p.labels[0])
        scaler.scale(loss).backward()
        return loss

    closure()
    try:
        scaler.step(optimizer, closure)
    except (RuntimeError, TypeError):
        return
    drift = max((a - b).abs().max().item() for a, b in zip(params_of(p.model), params_of(q.model), strict=True))
    assert drift < 1e-3, f"it uses the scaled gradient: the weights are off by up to {drift:.1e}"


def calls_hooks_once(s: Subject) -> None:
    """Step hooks, global ones too, and the four state_dict hooks are each called once."""
    p, optimizer = s.start()
    s.run(p, optimizer, 1)
    calls: list[str] = []

    def note(name: str) -> Callable[..., None]:
        return lambda *_: calls.append(name)

    optimizer.register_step_pre_hook(note("step_pre"))
    optimizer.register_step_post_hook(note("step_post"))
    optimizer.register_state_dict_pre_hook(note("state_dict_pre"))
    optimizer.register_state_dict_post_hook(note("state_dict_post"))
    optimizer.register_load_state_dict_pre_hook(note("load_pre"))
    optimizer.register_load_state_dict_post_hook(note("load_post"))
    with watch_steps(note("global_pre"), note("global_post")):
        s.run(p, optimizer, 1, first=1)
    optimizer.load_state_dict(optimizer.state_dict())
    names = ["step_pre", "step_post", "global_pre", "global_post"]
    names += ["state_dict_pre", "state_dict_post", "load_pre", "load_post"]
    wrong = [f"{name} {calls.count(name)} times" for name in names if calls.count(name) != 1]
    assert not wrong, f"called {', '.join(wrong)}"


def ignores_the_default_dtype(s: Subject) -> None:
    """torch.set_default_dtype(torch.float64) changes nothing for a float32 model."""
    results = []
    for dtype in (torch.float32, torch.float64):
        p = problem(s.device)
        torch.set_default_dtype(dtype)
        try:
            optimizer = s.factory(p.model)
            s.run(p, optimizer)
        except (RuntimeError, TypeError) as error:
            raise AssertionError(f"it raises {type(error).__name__}: {error}") from error
        finally:
            torch.set_default_dtype(torch.float32)
        results.append(weights(p))
    assert same(*results), "the weights differ"


def works_under_autocast(s: Subject) -> None:
    """It learns under bf16 autocast, and autocast around the step or in the closure gives the same bits."""
    p, optimizer = s.start()
    start = p.loss()
    q = p.one_batch()
    s.run(q, optimizer, bf16=True)
    assert q.loss() < 0.7 * start, f"the loss went from {start:.3f} to {q.loss():.3f}"
    results = []
    for around in (True, False):
        p, optimizer = s.start()
        for t in range(12):
            with torch.autocast(s.device.type, dtype=torch.bfloat16) if around else nullcontext():
                s.step(optimizer, p.closure(optimizer, t, bf16=not around))
        results.append(weights(p))
    assert same(*results), "a second pass inside autocast uses the cached bf16 copy of θ, not θ + ε"


def trains_bf16_weights(s: Subject) -> None:
    """bf16 weights are trained and stay bf16."""
    p = problem(s.device, dtype=torch.bfloat16).one_batch()
    optimizer, start = s.factory(p.model), p.loss()
    s.run(p, optimizer)
    assert p.loss() < 0.7 * start, f"the loss went from {start:.3f} to {p.loss():.3f}"
    assert all(q.dtype == torch.bfloat16 for q in p.model.parameters()), "a weight has another dtype"


def _around_the_passes(s: Subject, p: Problem, steps: int) -> Operations:
    """Operations of the last steps, without those of the closure and of the base's own step."""
    base, operations = s.innermost(), Operations()
    optimizer = s.factory(p.model)
    s.run(p, optimizer, TOTAL - steps)  # by then the buffers are allocated
    most = Operations()
    for t in range(TOTAL - steps, TOTAL):
        operations = Operations()

        def enter(stepping: Optimizer, operations: Operations = operations) -> None:
            operations.paused += type(stepping) is base

        def leave(stepping: Optimizer, operations: Operations = operations) -> None:
            operations.paused -= type(stepping) is base

        with watch_steps(enter, leave), operations:
            s.step(optimizer, operations.apart_from(p.closure(optimizer, t)))
        most.waits += operations.waits
        if len(operations.names) > len(most.names):
            most.names = operations.names
    return most


def waits_for_nothing(s: Subject) -> None:
    """No operation of a step makes the host wait for the device."""
    p, optimizer = s.start()
    if reason := getattr(optimizer, "waits", ""):
        raise NotApplicable(f"it waits on purpose: {reason}")
    waits = _around_the_passes(s, p, 6).waits
    assert not waits, f"{len(waits)} operations in 6 steps wait for the device: {', '.join(sorted(set(waits)))}"
    if s.device.type == "cuda":
        s.run(p, optimizer, 4)
        torch.cuda.set_sync_debug_mode("error")
        try:
            s.run(p, optimizer, 10, first=4)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def needs_few_operations(s: Subject) -> None:
    """The number of operations outside the passes is at most 60 and does not grow with the number of tensors."""

    def net(layers: int) -> nn.Module:
        torch.manual_seed(0)
        blocks = [nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64)) for _ in range(layers)]
        return nn.Sequential(nn.Flatten(), *blocks)

    # a new mask is no part of most steps; of the steps seen, that with the most operations would be one
    small, large = (len(_around_the_passes(s, problem(s.device).with_model(net(n)), 4).names) for n in (4, 40))
    assert small == large <= 60, f"{small} operations with 4 layers, {large} with 40"


def keeps_the_memory_it_claims(s: Subject) -> None:
    """`extra_bytes` is `memory_copies` times the weights."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, CLASSES))
    p = problem(s.device).with_model(net)
    optimizer: Any = s.factory(p.model)
    if not hasattr(optimizer, "memory_copies") or not hasattr(optimizer, "extra_bytes"):
        raise NotApplicable("it has no `memory_copies` and `extra_bytes`")
    s.run(p, optimizer)
    copies = optimizer.extra_bytes / sum(q.numel() * q.element_size() for q in p.model.parameters())
    claimed = optimizer.memory_copies
    assert claimed <= copies < claimed + 0.1, f"memory_copies is {claimed}, and it keeps {copies:.2f} copies"


FUNCTIONS: tuple[Callable[[Subject], None], ...] = (
    is_a_torch_optimizer,
    learns,
    counts_its_passes,
    returns_the_loss_of_the_first_pass,
    updates_batch_norm_once,
    restores_theta_before_the_base_steps,
    restores_theta_after_an_error,
    resumes_exactly,
    keeps_its_state_round_trip,
    refuses_the_state_of_its_base,
    survives_deepcopy,
    survives_pickling,
    takes_schedulers,
    takes_clipping,
    respects_parameter_groups,
    does_nothing_without_gradients,
    takes_closures_without_zero_grad,
    refuses_accumulation_outside,
    refuses_a_grad_scaler,
    calls_hooks_once,
    ignores_the_default_dtype,
    works_under_autocast,
    trains_bf16_weights,
    waits_for_nothing,
    needs_few_operations,
    keeps_the_memory_it_claims,
)
