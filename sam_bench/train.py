"""The training loop: one setting, with one or more seeds side by side."""

import copy
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from tqdm import tqdm

from sam_bench import machine, results
from sam_bench.capture import is_capturable
from sam_bench.errors import SettingError, reason
from sam_bench.optim import RST, ArgumentError, BatchClosure
from sam_bench.ranks import Ranks, collective
from sam_bench.run import Run, evaluate, optimizer_and_closure
from sam_bench.settings import Settings
from sam_bench.signals import StopSignal

COMPILE_FLOPS = 3e16  # estimated FLOPs of a training above which compiling pays off on a GPU


def train(seeds: list[Settings]) -> list[dict[str, Any]]:
    """Train one setting with one or more seeds side by side, each from its checkpoint if there is one.

    A run gives the same results as if it had trained alone. Returns the contents of each run's `result.json`. Raises a
    SettingError if something that the settings name does not exist, or if the loss of a run is no longer finite, after
    the other runs have trained to their end.
    """
    settings, trainer = seeds[0], seeds[0].trainer
    device = machine.pick_device(trainer.device)
    ranks = Ranks(device, trainer.side_by_side)
    check_ranks(settings, ranks)
    machine.set_determinism(trainer.deterministic)
    machine.keep_freed_memory()
    if device.type == "cuda":
        torch.cuda.empty_cache()  # peak memory is that of this training, not of one before it
    runs = [Run(one, device, ranks) for one in seeds]
    captured = should_capture(settings, runs[0])
    compiled, compile_seconds = print_expectation(settings, runs[0], len(runs))
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what the expectation needed, on another stream than the training
    failures: list[SettingError] = []
    with ExitStack() as folders:
        for run in runs:
            folders.enter_context(run.folder())
            run.prepare(compiled, captured, compile_seconds)
            if run.done:  # killed between its last checkpoint and its result
                run.finish()
                run.release()
        steps = sum(run.steps for run in runs)
        done = sum(run.epoch * run.steps_per_epoch + run.step_of_epoch for run in runs)
        hidden = None if ranks.is_first else True  # None: unless it is a terminal
        bar = folders.enter_context(tqdm(total=steps, initial=done, unit="step", disable=hidden, leave=False))
        stop = folders.enter_context(StopSignal())  # inside the folders, which it leaves with all that is saved
        folders.enter_context(memory_errors_named(settings, device))
        folders.enter_context(collective())
        while not all(run.done for run in runs):
            together, last = next_steps(runs)
            machine.reset_peak_memory(device)
            start = time.perf_counter()
            for run in together:
                with run.on_stream():
                    run.start()
            first, signal, due = together[0], 0, 0
            for _ in range(first.step_of_epoch, last):
                for run in together:
                    with run.on_stream():
                        run.step()
                made = first.epoch * first.steps_per_epoch + first.step_of_epoch
                bar.set_postfix_str(f"{first.optimizer.sharpness_aware_steps / made:.0%} sharpness-aware", False)
                bar.update(len(together))
                signal, due = ranks.agree(stop.received or 0, int(ranks.is_first and first.checkpoints.due))
                if signal or due:
                    break
            machine.wait_for(device)  # deliberate, for the clock and before a checkpoint; no step waits
            seconds = (time.perf_counter() - start) / len(together)
            peak_memory = machine.peak_memory(device)
            for run in together:
                run.pause(seconds, peak_memory)
            ended = together if first.step_of_epoch == first.steps_per_epoch else []
            for run in ended:
                try:
                    row = run.end(len(together))
                except SettingError as error:
                    failures.append(error)
                    if ranks.is_first:
                        results.write_error(run.settings.folder, str(error))
                    runs.remove(run)
                    run.release()
                    continue
                bar.write(
                    f"{f'seed {run.settings.seed}  ' if len(seeds) > 1 else ''}"
                    f"epoch {row['epoch']:>3}/{trainer.epochs}  train loss {row['train_loss']:.4f}  "
                    f"{accuracies(row)}  {row['images_per_second']:,.0f} images/s"
                )
                if run.done:
                    run.finish()
                    run.release()
            (signal,) = ranks.agree_now(signal or stop.received or 0)
            if signal or not ended:
                for run in together:
                    if run in runs and not run.done:
                        run.keep(at_once=True)
            if signal:
                for run in together:
                    ranks.on_first(lambda run=run: run.checkpoints.wait())  # type: ignore[misc]
                stop.obey(signal)
    if failures:
        raise SettingError("; ".join(map(str, failures)))
    return [run.result for run in runs if run.result]


def check_ranks(settings: Settings, ranks: Ranks) -> None:
    """Raise a SettingError if these settings need another number of ranks."""
    trainer = settings.trainer
    if trainer.batch_size % (ranks.parts * trainer.accumulate):
        parts = f"{ranks.n} ranks" + (f" × trainer.accumulate={trainer.accumulate}" if trainer.accumulate > 1 else "")
        raise SettingError(f"trainer.batch_size={trainer.batch_size}: should be divisible by {parts}")
    if trainer.side_by_side and (ranks.n != 2 or trainer.fsdp):
        raise SettingError(
            "trainer.side_by_side=true: needs two processes and no trainer.fsdp; start them with torchrun"
        )
    if trainer.fsdp and ranks.n == 1:
        raise SettingError("trainer.fsdp=true: needs several processes; start them with torchrun")
    if trainer.fsdp and settings.sharpness != "none":
        raise SettingError(f"sharpness={settings.sharpness}: needs whole weights; choose none with trainer.fsdp=true")
    if trainer.fsdp and trainer.test_perturbation:
        raise SettingError("trainer.test_perturbation=true: needs whole weights; choose false with trainer.fsdp=true")
    if ranks.n > 1 and trainer.seeds > 1:
        raise SettingError(f"trainer.seeds={trainer.seeds}: {ranks.n} ranks train one seed at a time; choose 1")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device, or the host, had no memory left."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def too_large(settings: Settings, device: torch.device) -> SettingError:
    """The error for a batch that needs more memory than there is."""
    trainer = settings.trainer
    parts = next((n for n in range(2 * trainer.accumulate, trainer.batch_size + 1) if trainer.batch_size % n == 0), 0)
    instead = f"trainer.accumulate={parts} computes it in smaller parts, or choose" if parts else "choose"
    return SettingError(
        f"trainer.batch_size={trainer.batch_size}: out of memory on {device}; {instead} a smaller batch"
    )


@contextmanager
def memory_errors_named(settings: Settings, device: torch.device) -> Iterator[None]:
    """Context manager: running out of memory raises a SettingError that says what to change."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise too_large(settings, device) from error
        raise


def next_steps(runs: list[Run]) -> tuple[list[Run], int]:
    """The runs that are furthest behind, and the step of their epoch up to which they train side by side.

    After a kill, some seeds may be ahead of others.
    """
    at = min(run.position for run in runs)
    end_of_epoch = at[0], runs[0].steps_per_epoch
    ahead = [run.position for run in runs if at < run.position < end_of_epoch]
    return [run for run in runs if run.position == at], min(ahead, default=end_of_epoch)[1]


def accuracies(row: dict[str, Any]) -> str:
    """The validation and test accuracy of an epoch's row, and its number of unreadable images, as text."""
    found = {part: row[f"{part}_accuracy"] for part in ("validation", "test")}
    known = [f"{part} accuracy {value:.2%}" for part, value in found.items() if value is not None]
    if unreadable := row["unreadable_images"]:
        known.append(f"{unreadable:,} unreadable training images")
    return "  ".join(known)


def should_capture(settings: Settings, run: Run) -> bool:
    """Whether to replay steps from CUDA graphs: `trainer.cuda_graphs`.

    Raises a SettingError if they were asked for and are impossible.
    """
    wanted, base = settings.trainer.cuda_graphs, type(run.optimizer.innermost).__name__
    possible = run.device.type == "cuda" and is_capturable(run.optimizer) and run.ranks.n == 1 and not run.closure.ddp
    if wanted is True and not possible:
        method = method_name(settings)
        why = f"CUDA graphs need a CUDA device, not {run.device}"
        if run.closure.ddp or run.ranks.n > 1:
            why = "CUDA graphs need one process"
        elif run.device.type == "cuda":
            why = f"{base if run.optimizer.capturable else method} cannot be captured"
        raise SettingError(f"trainer.cuda_graphs=true: {why}; choose auto or false")
    return possible and wanted is not False


def print_expectation(settings: Settings, run: Run, seeds: int) -> tuple[bool, float]:
    """Print the expected cost in propagations and, from a few steps of a copy, in seconds. Compile if asked.

    Returns whether the run is compiled, and the seconds that this took. Raises a SettingError if model, images and
    optimizer do not work together: here they meet for the first time.
    """
    trainer, dataset, device = settings.trainer, run.dataset, run.device
    expected = run.optimizer.expected_propagations_per_step
    if trainer.fsdp:  # a copy to take the time of may not fit on a device
        print(f"{run.steps} steps of {trainer.batch_size} images, {expected:.4f} expected propagations per step")
        return False, 0.0
    cost = expected + run.optimizer.expected_forwards_per_step / 3
    optimizer: Any
    optimizer, probe = optimizer_and_closure(settings, copy.deepcopy(run.model), dataset)  # without the other ranks
    best, compile_seconds, batch_size = math.inf, 0.0, trainer.batch_size // run.ranks.parts
    if isinstance(optimizer, RST):
        optimizer = optimizer.inner  # time the inner step, whatever RST would draw
    # in the data set's own memory format, since a compilation depends on it
    shape = (batch_size, dataset.image_size, dataset.image_size, dataset.channels)

    def seconds(step: int) -> float:
        optimizer.t = step  # the first and the last step of a method may differ
        start = time.perf_counter()
        probe.batch(images, labels, examples)
        optimizer.step(probe)
        probe.correct()
        machine.wait_for(device)
        return time.perf_counter() - start

    try:
        images = torch.ones(shape, device=device).permute(0, 3, 1, 2)
        labels = torch.full(shape[:1], dataset.classes - 1, device=device)
        examples = torch.arange(batch_size, device=device) if dataset.knows_examples else None
        for step in (0, run.steps - 1, run.steps - 1, run.steps - 1):
            before = optimizer.propagations + optimizer.forwards / 3
            best = min(best, seconds(step) / (optimizer.propagations + optimizer.forwards / 3 - before))
            if step and best * run.steps * cost < 10:
                break  # too short a training to look closer
        if probe.logits.shape[1:] != (dataset.classes,):
            raise SettingError(
                f"model={settings.model.name}: gave outputs of shape {tuple(probe.logits.shape)}, not (images, "
                f"{dataset.classes})"
            )
        for _ in range(2):  # the first one is cold
            start = time.perf_counter()
            evaluate(probe.model, [(images, labels)], trainer.precision == "bf16")
        tested = math.ceil(trainer.epochs / trainer.test_every) * (
            (dataset.validation_size or dataset.test_size) + run.batch_norm_epochs * dataset.train_size
        )
        testing = (time.perf_counter() - start) * tested / trainer.batch_size
        compiled = should_compile(settings, run, probe, cost)
        if compiled:
            # Earlier compilations in this process count towards torch's recompilation limit, and can make this one use
            # dynamic shapes, which round differently than in a fresh process.
            torch._dynamo.reset()
            torch.use_deterministic_algorithms(trainer.deterministic)  # tells the compiler, too
            probe.model.train()
            probe.compile()
            compile_seconds = seconds(0) + seconds(run.steps - 1)
    except SettingError:
        raise
    except ArgumentError as error:  # what a method can only tell at its first step
        inner = settings.optimizer.inner
        where = "optimizer.inner" if inner and error.name in inner.arguments else "optimizer"
        raise SettingError(f"{where}.{error.name}={error.value}: should be {error.allowed}") from error
    except Exception as error:  # whatever a model or an optimizer of others raises, the settings are the reason
        if is_out_of_memory(error):
            raise too_large(settings, device) from error
        names = f"model={settings.model.name}, dataset={settings.dataset.label}, optimizer={settings.optimizer.name}"
        raise SettingError(f"{names}: {reason(error)}") from error
    how = f", compiled in {compile_seconds:.0f} s" if compiled else ""
    print(
        f"{run.steps} steps of {trainer.batch_size} images, {expected:.4f} expected propagations per step: "
        f"about {best * run.steps * cost * seeds:.0f} s of training and {testing * seeds:.0f} s of testing "
        f"in total on {device}{how}"
    )
    return compiled, compile_seconds


def should_compile(settings: Settings, run: Run, probe: BatchClosure, cost: float) -> bool:
    """Whether to compile the closure: `trainer.compile`. `auto`: on a GPU, for trainings of over COMPILE_FLOPS.

    It depends on the settings and not on a clock, so that a resumed run chooses the same. On a CPU compiling takes
    longer, gains less and needs a C++ compiler. Raises a SettingError if it was asked for, and the method changes what
    is compiled from step to step.
    """
    wanted = settings.trainer.compile
    if not run.optimizer.compilable:
        if wanted is True:
            raise SettingError(
                f"trainer.compile=true: {method_name(settings)} changes the backward pass; choose auto or false"
            )
        return False
    if wanted != "auto":
        return wanted
    return run.device.type == "cuda" and probe.flops() * run.steps * cost > COMPILE_FLOPS


def method_name(settings: Settings) -> str:
    """The sharpness-aware method: the inner one if there is one."""
    return settings.optimizer.inner.name if settings.optimizer.inner else settings.optimizer.name
