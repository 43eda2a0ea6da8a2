"""The base class of all methods. Used alone, `Descent` makes the base optimizer's step with g = ∇L(θ).

A method is a subclass that overrides `gradient`. It calls the closure once per pass, at perturbed weights (`perturbed`)
or on part of the batch if needed. When `gradient` returns, the weights are θ and `.grad` holds the gradient for the
base optimizer.
"""

import inspect
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NoReturn, Self
from weakref import ref

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from sam_bench.optim.checks import ArgumentError
from sam_bench.optim.closure import Closure, SampleClosure, Selection, Term

TINY = 1e-12  # keeps ρ/‖g‖ finite at a stationary point; far below the rounding error of any norm that matters


class NoGradientError(Exception):
    """The closure left no parameter with a gradient. The step then does nothing, as in torch.optim."""

    def __init__(self, loss: Tensor) -> None:
        self.loss = loss


class Descent(Optimizer):
    """The base class of all methods. Used alone, it makes the plain step of the base optimizer.

    It shares `param_groups` and `state` with `base`, so a learning-rate scheduler of either acts on both. To clip
    gradients, register a step pre-hook on `base`: it runs after all passes, just before the update.

    Args:
        base: a `torch.optim.Optimizer` instance that does not call the closure itself.
        model: the module that is trained. Its BatchNorm layers then update their running statistics once per step;
            without it, in every pass. If it is wrapped in `DistributedDataParallel`, pass the wrapper: a method can
            then skip the reduction of its first pass where it needs none.

    Raises:
        TypeError: `base` is not an optimizer.
        ArgumentError: `base` is LBFGS, which calls the closure itself, or is already a method of this package.
    """

    # What the catalogue prints and the contract test measures.
    paper = ""
    cost = "1"  # propagations per step, and extra forward passes
    memory_copies: int = 0  # copies of the weights kept in addition to weights, gradients and the state of the base
    state_copies: int = 0  # how many of those copies a checkpoint holds
    state_contents = ""  # what a checkpoint holds for the method, in words
    state_names: tuple[str, ...] = ()  # attributes that are part of the state: plain numbers and tensors
    waits = ""  # when a step synchronizes with the device; empty if it never does

    batch_norm_epochs: int = 0  # epochs of forward passes that re-estimate BatchNorm statistics before each test
    samplewise: bool = False  # needs a SampleClosure
    whole_first_pass: bool = True  # the first pass is at θ and over the whole batch
    unschedulable = "it has no second pass to skip"  # why RST cannot wrap it; empty if it can
    capturable: bool = True  # CUDA graphs work: all steps of a variant run the same device operations
    compilable: bool = True  # the closure can be compiled once for all passes
    wraps_methods = False  # takes another method as its base
    takes_shards = True  # works on parameters that FSDP shards; not inherited

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Refuse `SAM(model.parameters(), SGD, rho=0.05)`, which other packages take, before Python counts arguments.

        Unpickling calls this without arguments.
        """
        base = args[0] if args else kwargs.get("base")
        if (args or "base" in kwargs) and not isinstance(base, Optimizer) and not cls.wraps_methods:
            own = {name for each in cls.__mro__ for name in inspect.signature(each.__init__).parameters}  # type: ignore[misc]
            name = next((a.__name__ for a in args if isinstance(a, type)), "SGD")
            of_base = [f"{k}={v}" for k, v in kwargs.items() if k not in own and len(str(v)) < 20] or ["lr=0.1"]
            of_method = [
                f"{k}={v}" for k, v in kwargs.items() if k in own and k != "base" and isinstance(v, int | float)
            ]
            line = ", ".join([f"torch.optim.{name}(model.parameters(), {', '.join(of_base)})", *of_method])
            raise TypeError(
                f"Invalid base: {type(base).__name__} (a ready optimizer: {cls.__name__}({line}, model=model))"
            )
        return super().__new__(cls)

    def __init__(self, base: Optimizer, *, model: nn.Module | None = None) -> None:
        if isinstance(base, Descent) and not self.wraps_methods:
            raise ArgumentError("base", f"{type(base).__name__} is a method itself", "an optimizer of torch or timm")
        if isinstance(base, torch.optim.LBFGS):
            raise ArgumentError("base", "LBFGS evaluates the closure itself", "any first-order optimizer")
        self.base = base
        self.check_shards(base.param_groups)
        super().__init__(base.param_groups, base.defaults)
        self.batch_norms = batch_norms(model) if model is not None else []
        self.ddp = model if isinstance(model, DistributedDataParallel) else None
        self.counts: dict[str, float] = {"propagations": 0.0, "forwards": 0.0, "sharpness_aware_steps": 0}
        self.t = 0  # steps made
        self._scratch: dict[str, dict[Tensor, Tensor]] = {}
        self._memory: dict[str, dict[Tensor, Tensor]] = {}

    def check_shards(self, groups: list[dict[str, Any]]) -> None:
        """Raise an ArgumentError if FSDP shards some of the parameters, or all and the method does not support it."""
        sharded = {hasattr(p, "to_local") for group in groups for p in group["params"]}
        if True in sharded and not vars(type(self)).get("takes_shards", False):
            allowed = f"unsharded parameters, which {type(self).__name__} requires"
            raise ArgumentError("base", "parameters sharded by FSDP", allowed)
        if len(sharded) > 1:
            raise ArgumentError("base", "some parameters sharded by FSDP, some not", "all of them sharded, or none")

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Tensor:  # type: ignore[override]
        """Make one update.

        Args:
            closure: runs zero_grad, forward and backward, and returns the loss. It is called once per pass. If the
                method has `samplewise`, it must be a `SampleClosure`.

        Returns:
            The loss of the first pass, as a detached tensor on its device. It is the loss at θ, except for MSAM and
            S²-SAM (at the perturbed weights) and SAMPa (at y). K-SAM and AUSAM return that of their selected samples.

        Raises:
            TypeError: there is no closure, it does not return a tensor, or the method needs a `SampleClosure` and it is
                not one.
            RuntimeError: the closure added to gradients that were accumulated outside of it.
        """
        if not callable(closure):
            raise TypeError(f"Invalid closure: {closure} (a function: zero_grad, forward, backward, return the loss)")
        args: tuple[Any, ...] = (self, closure)
        for before in self._optimizer_step_pre_hooks.values():
            args, _ = before(self, args, {}) or (args, {})
        self.begin()
        loss = self.update(args[1])
        self.end()
        for after in self._optimizer_step_post_hooks.values():
            after(self, args, {})
        return loss

    # torch wraps each `step` to call the hooks. The base optimizer's step is wrapped, so global hooks run there, once.
    step.hooked = True  # type: ignore[attr-defined]

    # Only `update` has work for the device. It can be captured once per variant and replayed between `begin` and `end`,
    # see `sam_bench.capture`. Numbers that change from step to step must therefore reach it in tensors.

    def begin(self) -> None:
        """Prepare the step on the host: choose its variant, and write the numbers that change per step into tensors."""

    @property
    def variant(self) -> Hashable:
        """The variant of the current step. All steps of one variant do the same work on the device."""
        return None

    @torch.no_grad()
    def update(self, closure: Closure) -> Tensor:
        """Do the device work of the step that has begun; return the loss of the first pass."""
        if self.samplewise:
            self.samples(closure)  # raises a TypeError if it is not a SampleClosure
        try:
            loss = self.gradient(closure)
        except NoGradientError as stop:
            return stop.loss
        self.innermost.step()
        return loss

    def end(self) -> None:
        """Finish the step on the host."""
        self.t += 1

    def gradient(self, closure: Closure) -> Tensor:
        """Put the gradient for the base optimizer, here g = ∇L(θ), into `.grad`; return the loss at θ."""
        return self.propagate(closure)

    def propagate(
        self, closure: Closure, selection: Selection | None = None, term: Term | None = None, *, reduced: bool = True
    ) -> Tensor:
        """Run one pass: call the closure at the current weights, on the selection if one is given, and count it.

        With DistributedDataParallel, the gradient is the mean over all ranks if it is `reduced`, and else this rank's.
        Raises a NoGradientError if no parameter has a gradient afterwards.
        """
        self.counts["propagations"] += self.share_of(closure, selection)
        # weak references, so that zero_grad in the closure frees this memory
        before = [(p, ref(p.grad), p.grad._version) for p in self.params() if p.grad is not None]
        zeroed = dict(self._zeroed())
        self._zeroed().clear()
        # the forward, too, has to be within no_sync
        with torch.enable_grad(), nullcontext() if reduced or not self.ddp else self.ddp.no_sync():
            plain = selection is None and term is None
            loss = closure() if plain else self.samples(closure)(selection, term)
        if not isinstance(loss, Tensor):
            raise TypeError(f"Invalid closure: it returned {type(loss).__name__} (it must return the loss, a tensor)")
        if loss.requires_grad:
            loss = loss.detach()
        # A closure that zeroes gradients replaces these tensors, or writes to some of them twice: zero, then add.
        # Several backward passes without zeroing look the same and are not detected.
        old = [(p, grad, version) for p, grad, version in before if zeroed.get(p) != version]
        untouched = all((g := p.grad) is not None and g is grad() and g._version <= v + 1 for p, grad, v in old)
        if old and untouched and not self._zeroed():
            raise RuntimeError(
                f"{type(self).__name__}.step: the closure added to gradients that were there before; call "
                "zero_grad in it, and accumulate micro-batches inside it, since each pass needs all of them"
            )
        if all(p.grad is None for p in self.params()):
            raise NoGradientError(loss)
        return loss

    def evaluate(self, closure: Closure, selection: Selection | None = None, model: nn.Module | None = None) -> Tensor:
        """Per-sample losses (n,) by a forward pass without backward, counted."""
        self.counts["forwards"] += self.share_of(closure, selection)
        return self.samples(closure).evaluate(selection, model)

    def share_of(self, closure: Closure, selection: Selection | None) -> float:
        """The share of the batch that the selection covers."""
        if selection is None:
            return 1.0
        size = self.samples(closure).size
        return (len(range(size)[selection]) if isinstance(selection, slice) else len(selection)) / size

    def samples(self, closure: Closure) -> SampleClosure:
        """Return the closure if it is a `SampleClosure`; raise a TypeError otherwise."""
        if not isinstance(closure, SampleClosure):
            raise TypeError(
                f"Invalid closure: {type(self).__name__} needs per-sample losses, which a plain function does not give "
                "(use sam_bench.optim.BatchClosure or another SampleClosure)"
            )
        return closure

    def examples(self, closure: Closure) -> Tensor:
        """Indices int64 (B,) of the batch's examples in the training set.

        Raises a TypeError if the closure has none.
        """
        examples = self.samples(closure).examples
        if examples is None:
            raise TypeError(
                f"Invalid closure: {type(self).__name__} needs the indices of the batch's examples in the training set "
                "(`examples` of BatchClosure.batch)"
            )
        return examples

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As in torch.optim."""
        super().zero_grad(set_to_none)
        self._zeroed().clear()
        self._zeroed().update({p: p.grad._version for p in self.params() if p.grad is not None})

    def _zeroed(self) -> dict[Tensor, int]:
        """Versions of the gradients that zero_grad left as zeros, for all methods around one base."""
        return vars(self.innermost).setdefault("_zeroed_versions", {})

    # torch.amp.GradScaler sets these on an optimizer with `_step_supports_amp_scaling` and then calls its `step`
    _step_supports_amp_scaling = True

    def _refuse_scaler(self, _: Any = None) -> NoReturn:
        raise RuntimeError(
            f"{type(self).__name__}.step: GradScaler would scale every pass and unscale none; use bf16 autocast, which "
            "needs no scaler"
        )

    found_inf = property(fset=_refuse_scaler)
    grad_scale = property(fset=_refuse_scaler)

    @contextmanager
    def frozen_batch_norm(self) -> Iterator[None]:
        """Context manager: BatchNorm layers do not update their running statistics.

        They normalize by the batch either way. Setting `track_running_stats`, unlike momentum=0, also keeps
        `num_batches_tracked`.
        """
        tracking = [m for m in self.batch_norms if m.track_running_stats]
        for module in tracking:
            module.track_running_stats = False
        try:
            yield
        finally:
            for module in tracking:
                module.track_running_stats = True

    @contextmanager
    def offset_by(self, params: list[Tensor], epsilon: list[Tensor]) -> Iterator[None]:
        """Context manager: the weights are θ + ε. Afterwards, even after an error, they are θ, bit for bit.

        θ is copied back, since (θ + ε) - ε is not θ in floating point.
        """
        if not params:
            yield
            return
        theta, weights = self.scratch("theta", params), local(params)
        torch._foreach_copy_(theta, weights)
        try:
            torch._foreach_add_(weights, epsilon)
            del epsilon  # may be the last reference to a copy of the weights
            torch.clear_autocast_cache()  # if `step` is called within autocast, it holds θ in bf16
            yield
        finally:
            torch._foreach_copy_(weights, theta)
            torch.clear_autocast_cache()

    @contextmanager
    def perturbed(self, params: list[Tensor], epsilon: list[Tensor]) -> Iterator[None]:
        """Context manager: weights θ + ε, frozen BatchNorm. Afterwards, even after an error: θ, bit for bit."""
        offset = self.offset_by(params, epsilon)
        del epsilon
        with offset, self.frozen_batch_norm():
            yield

    @property
    def rank(self) -> int:
        """The rank of the process within DistributedDataParallel; 0 without it."""
        return self.ddp.process_group.rank() if self.ddp else 0

    @property
    def ranks(self) -> int:
        """The number of ranks of DistributedDataParallel; 1 without it."""
        return self.ddp.process_group.size() if self.ddp else 1

    def mean_over_ranks(self, tensors: list[Tensor]) -> list[Tensor]:
        """Replace each tensor by its mean over all ranks."""
        if self.ddp:
            average(tensors, self.ddp.process_group)
        return tensors

    def of_all_ranks(self, rows: Tensor) -> Tensor:
        """The rows of all ranks, in the order of the ranks. Every rank must have the same number of rows."""
        if self.ddp is None:
            return rows
        gathered = [torch.empty_like(rows) for _ in range(self.ranks)]
        torch.distributed.all_gather(gathered, rows.contiguous(), self.ddp.process_group)
        return torch.cat(gathered)

    def params(self) -> list[Tensor]:
        """All parameters, in the order of the groups."""
        return [p for group in self.param_groups for p in group["params"]]

    def params_with_grad(self) -> list[Tensor]:
        """The parameters whose `.grad` is not None, in the order of the groups."""
        return [p for p in self.params() if p.grad is not None]

    @staticmethod
    def grads(params: list[Tensor]) -> list[Tensor]:
        """The gradients of those parameters that have one; with FSDP, this rank's shards of them."""
        return local([p.grad for p in params if p.grad is not None])

    def norm(self, tensors: list[Tensor]) -> Tensor:
        """The norm of all tensors together; with FSDP, over the shards of all ranks."""
        norm = get_total_norm(tensors)
        sharded: Any = self.param_groups[0]["params"][0]
        if not hasattr(sharded, "to_local"):
            return norm
        square = norm.square()
        for dim, placement in enumerate(sharded.placements):
            if placement.is_shard():
                torch.distributed.all_reduce(square, group=sharded.device_mesh.get_group(dim))
        return square.sqrt()

    def scratch(self, name: str, params: list[Tensor]) -> list[Tensor]:
        """One uninitialized buffer per parameter, of its shape, strides and dtype. Reused, and not in `state_dict`."""
        buffers = self._scratch.setdefault(name, {})
        for p in params:
            if p not in buffers or (buffers[p].dtype, buffers[p].device) != (p.dtype, p.device):
                buffers[p] = torch.empty_like(*local([p]))
        return [buffers[p] for p in params]

    def memory(self, name: str, params: list[Tensor]) -> list[Tensor]:
        """One buffer per parameter, zero at first, that `state_dict` saves."""
        buffers = self._memory.setdefault(name, {})
        for p in params:
            if p not in buffers:
                buffers[p] = torch.zeros_like(p)
        return [buffers[p] for p in params]

    def remember(self, name: str, params: list[Tensor], values: list[Tensor]) -> None:
        """Copy values to `memory(name)`, and zeros for the parameters that are not among `params`."""
        torch._foreach_copy_(self.memory(name, params), values)
        present = set(params)
        if rest := [t for p, t in self._memory[name].items() if p not in present]:
            torch._foreach_zero_(rest)

    @property
    def propagations(self) -> float:
        """Forward-backward pairs so far. A pass over a share of the batch counts as that share."""
        return self.counts["propagations"]

    @property
    def forwards(self) -> float:
        """Forward passes without a backward so far."""
        return self.counts["forwards"]

    @property
    def sharpness_aware_steps(self) -> int:
        """Steps so far with a perturbation or, in SAF and MESA, with their extra term in the loss."""
        return int(self.counts["sharpness_aware_steps"])

    @property
    def expected_propagations_per_step(self) -> float:
        """The mean number of propagations per step that a whole training is expected to need."""
        return 1.0

    @property
    def mask_propagations_per_step(self) -> float:
        """Of those, the ones that new masks need, however few of the steps are sharpness-aware."""
        return 0.0

    @property
    def expected_forwards_per_step(self) -> float:
        """The same for `forwards`."""
        return 0.0

    @property
    def extra_bytes(self) -> int:
        """Bytes kept in addition to weights, gradients and base state: buffers and the method's own state."""
        kept = [t for each in (self._scratch, self._memory) for buffers in each.values() for t in buffers.values()]
        kept += [t for t in vars(self).values() if isinstance(t, Tensor)]
        return sum(t.numel() * t.element_size() for t in kept)

    @property
    def innermost(self) -> Optimizer:
        """The base optimizer under all the methods that wrap each other."""
        return self.base.innermost if isinstance(self.base, Descent) else self.base

    # properties, since torch's load_state_dict and unpickling bind new objects in the base
    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of the base optimizer."""
        return self.base.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        pass  # torch's constructor starts a list of its own

    @property
    def state(self) -> defaultdict[Tensor, Any]:
        """The state of the base optimizer."""
        return self.base.state

    @state.setter
    def state(self, state: defaultdict[Tensor, Any]) -> None:
        pass

    def own_state(self) -> dict[str, Any]:
        """What this class adds to the state of `base` for an exact resume: plain numbers and tensors."""
        order = {p: i for i, p in enumerate(self.params())}
        memory = {name: {order[p]: t for p, t in buffers.items()} for name, buffers in self._memory.items()}
        own = {name: getattr(self, name) for name in self.state_names}
        return {"t": self.t, "counts": dict(self.counts), "memory": memory, **own}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Load what `own_state` returned."""
        params = self.params()
        self.t = state["t"]
        self.counts.update(state["counts"])
        self._memory = {
            name: {params[i]: t.to(params[i].device, copy=True) for i, t in buffers.items()}
            for name, buffers in state["memory"].items()
        }
        for name in self.state_names:
            value, present = state[name], getattr(self, name)
            if isinstance(value, Tensor) and isinstance(present, Tensor):
                present.copy_(value)  # in place, where a captured step reads
            else:
                setattr(self, name, value.to(params[0].device, copy=True) if isinstance(value, Tensor) else value)

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's `state_dict` with one more entry, under this class's name."""
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        state = {**self.base.state_dict(), type(self).__name__: self.own_state()}
        for after in self._optimizer_state_dict_post_hooks.values():
            state = after(self, state) or state
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned. Raises a ValueError if it comes from another method."""
        state_dict = dict(state_dict)
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = before(self, state_dict) or state_dict
        own = type(self).__name__
        if own not in state_dict:
            raise ValueError(f"Invalid state_dict: not saved by {own} (its keys: {', '.join(map(str, state_dict))})")
        self.base.load_state_dict({key: value for key, value in state_dict.items() if key != own})
        self.load_own_state(state_dict[own])
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def check_group(self, group: dict[str, Any]) -> None:
        """Raise an ArgumentError if a setting of the method in a parameter group is out of range."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base optimizer, and so to this one."""
        if not any(group is param_group for group in self.param_groups):  # torch's constructor adds those it is given
            self.check_group(param_group)
            self.base.add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and deepcopy: without buffers and without what torch and its schedulers attach to an instance."""
        left = {"_scratch", "step"}
        return {k: v for k, v in self.__dict__.items() if k not in left and not k.startswith("_optimizer_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._scratch = {}


def average(tensors: list[Tensor], group: "torch.distributed.ProcessGroup | None" = None) -> None:
    """Replace each tensor by its mean over the ranks of a process group, in one reduction."""

    def mean(together: Tensor) -> None:
        torch.distributed.all_reduce(together, group=group)
        together /= torch.distributed.get_world_size(group)

    if tensors:
        as_one(tensors, mean)


def as_one(tensors: list[Tensor], collective: Callable[[Tensor], object]) -> None:
    """Call a collective that works in place once, on all tensors as one flat tensor."""
    together = torch.cat([t.flatten() for t in tensors])
    collective(together)
    for t, part in zip(tensors, together.split([t.numel() for t in tensors]), strict=True):
        t.copy_(part.view_as(t))


def local(tensors: list[Tensor]) -> list[Tensor]:
    """The local shards of tensors that FSDP shards, which share their memory; other tensors as they are."""
    return [t.to_local() if hasattr(t, "to_local") else t for t in tensors]


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """The BatchNorm layers of a model."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def without_ddp(model: nn.Module) -> nn.Module:
    """The module that `DistributedDataParallel` wraps, or the module itself."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def number_of(share: float, size: int) -> int:
    """How many of `size` samples a share is: at least one."""
    return max(1, round(share * size))


def cosine(a: list[Tensor], b: list[Tensor], buffer: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """The cosine between two lists of tensors, each taken as one vector, and their norms. Overwrites `buffer`.

    cos = 1 - ½‖a/‖a‖ - b/‖b‖‖². No foreach operation computes an inner product, and where the two vectors are nearly
    parallel, as g and gₛ are, this form is exact where a sum of products would cancel.
    """
    norm_a, norm_b = get_total_norm(a) + TINY, get_total_norm(b) + TINY
    torch._foreach_copy_(buffer, a)
    torch._foreach_mul_(buffer, norm_b / norm_a)
    torch._foreach_sub_(buffer, b)
    return 1 - (get_total_norm(buffer) / norm_b).square() / 2, norm_a, norm_b
