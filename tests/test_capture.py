"""Steps replayed from a recording are the steps as they are written.

A tape stands for a CUDA graph where there is no GPU: it keeps every operation that reached the dispatcher, with the
very tensors and numbers that it was given, and plays them again. So whatever a step decides or computes on the host in
its device part is frozen in it, as in a graph.
"""

import gc
import os
import weakref
from collections import Counter
from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sam_bench.capture import WARM_UP, CapturedStep, cuda_graph, is_capturable
from sam_bench.errors import SettingError
from sam_bench.machine import wait_for
from sam_bench.optim import GRST, SAM, Descent
from sam_bench.optim.seeding import derived_seed
from sam_bench.run import Run
from sam_bench.schedules import Linear
from sam_bench.testing.problem import TOTAL, problem, same, weights
from sam_bench.train import train
from tests.command import TINY, settings
from tests.optim.methods import NAMES, adamw, build, sgd
from tests.optim.schedulable import UNDER_RST


class Tape(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        made = [t if isinstance(t, torch.Tensor) else None for t in tree_leaves(result)]
        new = [t is not None and t.untyped_storage().data_ptr() not in given for t in made]
        is_view = not any(new) and not func._schema.is_mutable
        if not is_view:
            self.calls.append((func, args, kwargs, made, new))
        return result

    def replay(self):
        with torch._C._AutoDispatchBelowAutograd():  # where they were kept
            for func, args, kwargs, made, new in self.calls:
                for at, is_new, value in zip(made, new, tree_leaves(func(*args, **kwargs)), strict=True):
                    if is_new:
                        at.copy_(value)


def record(work):
    with torch.no_grad():
        tape = Tape()
        with tape:
            result = work()
    return result, tape.replay


def recorder(device, stream=None):
    return cuda_graph(stream or torch.cuda.current_stream()) if device.type == "cuda" else record


def side_stream(device):
    """A graph cannot be captured on the default stream."""
    return torch.cuda.stream(torch.cuda.Stream(device)) if device.type == "cuda" else nullcontext()


# fused, they read learning rate and step count from tensors on a CPU too
def fused_sgd(model):
    return sgd(model, fused=True)


def fused_adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)


METHODS = {
    **{name: lambda model, base, name=name: build(name, model, base) for name in NAMES + UNDER_RST},
    "esam that skips nothing": lambda model, base: build("esam", model, base, beta=1.0),
    "gsam with a rho that follows lr": lambda model, base: build("gsam", model, base, rho_min=0.01),
    "grst with a weight": lambda model, base: GRST(SAM(base, model=model), Linear(0.2, 1), TOTAL, seed=3, weight=0.8),
}
ON_THE_HOST = {
    "aesam",
    "aelooksam",
    "esam",
    "rst over esam",
}  # what they do next follows from what came out, or changes every step


@pytest.mark.parametrize("base", [fused_sgd, fused_adamw])
@pytest.mark.parametrize("name", METHODS)
def test_replayed_steps_give_the_bits_of_written_ones(name, base, device):
    p = problem(device)
    if name in ON_THE_HOST:
        assert not is_capturable(METHODS[name](p.model, base(p.model)))
        return
    q = p.copy()
    batch = [t.clone() for t in (q.images[0], q.labels[0], q.examples[0])]
    variants: Counter = Counter()

    def step_of(problem, base_):
        optimizer = METHODS[name](problem.model, base_)
        lr = optimizer.param_groups[0]["lr"]
        optimizer.param_groups[0]["lr"] = torch.tensor(lr, device=device)  # the same rounding of it in both
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 / (1 + t))

    written, written_scheduler = step_of(p, base(p.model))
    replayed, replayed_scheduler = step_of(q, base(q.model))
    q.images, q.labels, q.examples = (t[None] for t in batch)
    written._opt_called = True  # schedulers warn where nobody called `step`

    def work():
        return (replayed.update(q.closure(replayed)),)

    with side_stream(device):
        captured = CapturedStep(replayed, work, recorder(device))
        for t in range(TOTAL):
            for at, values in zip(batch, (p.images, p.labels, p.examples), strict=True):
                at.copy_(values[t % len(values)])
            (loss,) = captured()
            written.begin()
            variants[written.variant] += 1
            assert torch.equal(loss, written.update(p.closure(written, t)))
            written.end()
            for scheduler in (written_scheduler, replayed_scheduler):
                scheduler.step()
            assert same(weights(p), weights(q)), f"step {t}"
    assert replayed.counts == written.counts
    if "mesa" in name:  # nor does anything that is kept grow a graph
        assert not any(q.requires_grad for q in replayed.average.parameters())
    one, other = (tree_leaves(o.state_dict()[type(o).__name__]) for o in (written, replayed))
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.nan_to_num(), b.nan_to_num()) if isinstance(a, torch.Tensor) else a == b
    recorded = {variant for variant, _ in captured.recorded}
    assert recorded == {variant for variant, times in variants.items() if times > WARM_UP} != set()


@pytest.mark.parametrize("dataset", ["digits", "cutout and flip"])
def test_a_replayed_run_gives_the_bits_of_a_written_one(dataset, device):
    """Batch, closure, optimizer and metrics together; the epoch's plan is read where it lies."""
    extra = [] if dataset == "digits" else ["dataset.cutout=3", "dataset.flip=true"]
    chosen = settings(*TINY, *extra, "trainer.accumulate=2", "trainer.clip=1", "optimizer=rst", "schedule=constant")
    results = []
    for captured in (False, True):
        one = Run(chosen, device)
        for group in one.optimizer.param_groups:
            group["lr"] = torch.tensor(group["lr"], device=device)
        one.prepare(False, False, 0.0)
        if captured:
            one.captured = CapturedStep(one.optimizer, one.work, recorder(device, one.stream))
        for epoch in range(2):
            if epoch:
                one.next_epoch()
            with one.on_stream():
                one.start()
                for _ in range(one.steps_per_epoch):
                    one.step()
        wait_for(device)
        results.append([*one.model.state_dict().values(), one.losses, one.correct])
        if captured:
            assert len(one.captured.recorded) == 2
    assert same(*results)


def test_only_a_base_that_keeps_its_numbers_on_the_device_is_captured():
    p = problem(torch.device("cpu"))
    assert is_capturable(Descent(fused_sgd(p.model)))
    assert not is_capturable(Descent(sgd(p.model)))
    assert is_capturable(SAM(adamw(p.model)))
    from timm.optim import create_optimizer_v2

    assert not is_capturable(SAM(create_optimizer_v2(list(p.model.parameters()), opt="lamb")))


def test_a_number_left_on_the_host_is_found_out():
    """The tape does freeze what a graph would freeze."""

    class Forgetful(Descent):
        def update(self, closure):
            loss = self.propagate(closure)
            torch._foreach_mul_(self.grads(self.params_with_grad()), 1 / self.propagations)
            self.base.step()
            return loss

    p = problem(torch.device("cpu"))
    q = p.copy()
    optimizers = [Forgetful(sgd(each.model)) for each in (p, q)]
    captured = CapturedStep(optimizers[1], lambda: (optimizers[1].update(q.closure(optimizers[1])),), record)
    for _ in range(TOTAL):
        optimizers[0].step(p.closure(optimizers[0]))
        captured()
    assert not same(weights(p), weights(q))


def test_a_compiled_closure_gives_what_the_written_one_gives(device):
    """In both modes of BatchNorm, with one compilation for all seeds."""
    torch._dynamo.reset()
    torch.set_num_threads(2)  # with one, sums are taken in an order that differs more from the compiled one's
    chosen = settings(*TINY, "optimizer=sam", "trainer.deterministic=false")
    losses, graphs = {}, []
    for compiled in (False, True):
        for seed in (0, 1):
            one = Run(chosen.model_copy(update={"seed": seed}), device)
            one.prepare(compiled, False, 0.0)
            one.start()
            torch._dynamo.utils.counters.clear()
            for _ in range(one.steps_per_epoch):
                one.step()
            graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
            statistics = next(t for key, t in one.model.state_dict().items() if "running_mean" in key)
            losses[compiled, seed] = [*one.losses.tolist(), *statistics.tolist()]
    for seed in (0, 1):
        assert losses[True, seed] == pytest.approx(losses[False, seed], rel=1e-3, abs=1e-5)
        assert losses[True, seed] != losses[False, seed], "nothing was compiled"
    assert graphs == [0, 0, 2, 0]
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))


def test_a_compiled_training_compiles_before_its_clock_starts(tmp_path):
    torch._dynamo.utils.counters.clear()
    (result,) = train(settings(*TINY, "optimizer=rst", "trainer.compile=true", f"runs={tmp_path}").each_seed())
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # the two modes of BatchNorm, once each
    assert result["compile_seconds"] > result["seconds"] > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="only a GPU has something to wait for")
@pytest.mark.parametrize("captured", [True, False])
def test_nothing_waits_in_100_steps(captured):
    device = torch.device("cuda")
    one = Run(settings("optimizer=rst", "schedule=constant", "logger=none", "trainer.batch_size=12"), device)
    one.prepare(False, captured, 0.0)
    with one.on_stream():
        one.start()
        for _ in range(10):  # both kinds warmed up and recorded
            one.step()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(10, 110):
                one.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_a_number_of_a_group_that_changes_is_captured_anew(device):
    """A capture would freeze it: here ρ, under a scheduler of the user's."""
    p = problem(device)
    q = p.copy()
    optimizers = [SAM(fused_sgd(each.model), model=each.model) for each in (p, q)]
    for optimizer in optimizers:
        optimizer.param_groups[0]["lr"] = torch.tensor(0.1, device=device)
    with side_stream(device):
        captured = CapturedStep(
            optimizers[1], lambda: (optimizers[1].update(q.closure(optimizers[1])),), recorder(device)
        )
        for t in range(3 * WARM_UP + 6):
            for optimizer in optimizers:
                optimizer.param_groups[0]["rho"] = 0.05 if t < WARM_UP + 3 else 0.3
            optimizers[0].step(p.closure(optimizers[0]))
            captured()
        assert same(weights(p), weights(q))
    assert len(captured.recorded) == 2


class Failing:
    """A capture that fails after it has counted and drawn."""

    def __init__(self):
        self.calls = 0

    def __call__(self, work):
        self.calls += 1
        torch.rand(3)
        work.__self__.optimizer.counts["propagations"] += 99
        raise RuntimeError("operation not permitted when stream is capturing\nmore")


def run_of(arguments, device, record=None, required=False):
    one = Run(settings(*TINY, *arguments), device)
    for group in one.optimizer.param_groups:
        group["lr"] = torch.tensor(group["lr"], device=device)
    one.prepare(False, False, 0.0)
    if record:
        one.captured = CapturedStep(one.optimizer, one.work, record, required=required)
    one.start()
    for _ in range(one.steps_per_epoch):
        one.step()
    return one


DROPOUT = ["model=timm", "model.architecture=test_vit", "+model.kwargs.drop_rate=0.3", "+model.kwargs.patch_size=4"]


def test_a_capture_that_fails_is_quoted_once_and_training_continues():
    """With the counts and random numbers that it would have had."""
    cpu, failing = torch.device("cpu"), Failing()
    with pytest.warns(
        UserWarning, match="steps run eagerly, .*: operation not permitted when stream is capturing"
    ) as seen:
        one = run_of(["optimizer=sam", *DROPOUT], cpu, failing)
    other = run_of(["optimizer=sam", *DROPOUT], cpu)
    assert len([w for w in seen if "eagerly" in str(w.message)]) == failing.calls == 1
    assert one.optimizer.counts == other.optimizer.counts
    assert same(one.model.state_dict().values(), other.model.state_dict().values())
    assert not one.captured.recorded


def test_a_capture_that_fails_and_was_asked_for_is_an_error():
    with pytest.raises(SettingError, match=r"trainer.cuda_graphs=true: .* \(operation not permitted .*\); choose auto"):
        run_of(["optimizer=sam"], torch.device("cpu"), Failing(), required=True)


def test_a_finished_run_does_not_wait_for_the_garbage_collector(tmp_path):
    """Graphs of a sweep would pile up: the captured step refers to the run, which refers to it."""
    chosen = settings(*TINY, "trainer.epochs=1", f"runs={tmp_path}")
    gc.collect()
    gc.disable()
    try:
        one = Run(chosen, torch.device("cpu"))
        alive = weakref.ref(one.model)
        with one.folder():
            one.prepare(False, False, 0.0)
            one.captured = CapturedStep(one.optimizer, one.work, record)
            one.start()
            for _ in range(one.steps_per_epoch):
                one.step()
            one.pause(1.0, 0)
            one.end(1)
            one.finish()
            one.release()
        del one
        assert alive() is None
    finally:
        gc.enable()


def test_a_step_seeds_the_generators_in_use_as_manual_seed_would(monkeypatch):
    one = Run(settings(*TINY), torch.device("cpu"))
    one.prepare(False, False, 0.0)
    one.start()
    seeded = []
    monkeypatch.setattr(torch, "manual_seed", lambda seed: seeded.append(seed))
    one.step()
    assert seeded == []
    monkeypatch.undo()
    drawn = torch.get_rng_state()
    torch.manual_seed(derived_seed("dropout", 0, 0))
    assert torch.equal(drawn, torch.get_rng_state())
