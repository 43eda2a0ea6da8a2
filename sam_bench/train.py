"""Training, top to bottom."""

import copy
import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from filelock import FileLock, Timeout
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from sam_bench import checkpoint, data, models, optim, results
from sam_bench import device as devices
from sam_bench.data import Data
from sam_bench.data.sampling import derived_seed
from sam_bench.errors import SettingError, reason
from sam_bench.optim import Descent
from sam_bench.settings import Settings, TrainerSettings
from sam_bench.tracker import Tracker


def train(settings: Settings) -> dict[str, Any]:
    """Train as the settings say, from the run folder's checkpoint if it has one; return what `result.json` holds.

    Raises:
        SettingError: something that the settings name cannot be had, or the loss is no longer finite.

    """
    trainer, folder = settings.trainer, settings.folder
    device = devices.pick(trainer.device)
    devices.determinism(trainer.deterministic)
    commit = results.git_commit()  # now: the files may change while it trains
    dataset = data.create(settings.dataset, trainer.batch_size, device, settings.seed)
    torch.manual_seed(derived_seed("weights", settings.seed))
    model = models.create(settings.model, dataset.classes, dataset.channels, dataset.image_size).to(device)
    model = model.to(memory_format=memory_format(trainer))
    optimizer, decay = create_optimizer(settings, model, dataset.steps_per_epoch)
    steps = trainer.epochs * dataset.steps_per_epoch
    scheduler = LambdaLR(optimizer, warmup_then_cosine(trainer.warmup_epochs * dataset.steps_per_epoch, steps))
    closure = Closure(model, optimizer, trainer, decay)

    say_what_is_expected(settings, dataset, closure, steps)
    with run_folder(folder, model):
        rows = resume(settings, model, optimizer, scheduler)
        results.write_config(folder, settings.model_dump(mode="json"))
        tracker, result = Tracker(settings, folder), None
        for row in rows:
            tracker.log(row)
        bar = tqdm(total=steps, initial=len(rows) * dataset.steps_per_epoch, unit="step", disable=None, leave=False)
        try:
            for epoch in range(len(rows), trainer.epochs):
                # all that is random in an epoch, here dropout and the like, follows from (seed, epoch)
                torch.manual_seed(derived_seed("dropout", settings.seed, epoch))
                model.train()
                devices.reset_peak_memory(device)
                losses = torch.empty(dataset.steps_per_epoch, device=device)
                correct = torch.zeros((), dtype=torch.int64, device=device)
                start = time.perf_counter()
                for step, (images, labels) in enumerate(dataset.train(epoch)):
                    closure.batch(images, labels)
                    losses[step] = optimizer.step(closure)
                    correct += closure.correct()
                    scheduler.step()
                    bar.set_postfix_str(f"{optimizer.sharpness_aware_steps / (bar.n + 1):.0%} sharpness-aware", False)
                    bar.update()
                devices.wait_for(device)  # deliberate, for the clock; within the epoch nothing waits
                seconds = time.perf_counter() - start
                peak_memory = devices.peak_memory(device)

                test_loss, test_accuracy = evaluate(model, dataset.test(), trainer)
                check_finite(losses, model, epoch * dataset.steps_per_epoch, folder)
                images_seen = dataset.steps_per_epoch * trainer.batch_size
                rows.append(
                    {
                        "epoch": epoch + 1,
                        "steps": (epoch + 1) * dataset.steps_per_epoch,
                        "lr": scheduler.get_last_lr()[0],
                        "train_loss": losses.mean().item(),
                        "train_accuracy": correct.item() / images_seen,
                        "test_loss": test_loss,
                        "test_accuracy": test_accuracy,
                        "propagations": optimizer.propagations,
                        "forwards": optimizer.forwards,
                        "sharpness_aware_steps": optimizer.sharpness_aware_steps,
                        "seconds": seconds + (rows[-1]["seconds"] if rows else 0.0),
                        "images_per_second": images_seen / seconds,
                        "peak_memory_bytes": max(peak_memory, rows[-1]["peak_memory_bytes"] if rows else 0),
                    }
                )
                checkpoint.save(
                    folder / "last.pt",
                    settings.config_hash,
                    settings.seed,
                    {
                        "model": model.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "scheduler": scheduler.state_dict(),
                        "rows": rows,
                    },
                )
                results.write_metrics(folder, rows)
                tracker.log(rows[-1])
                bar.write(
                    f"epoch {epoch + 1:>3}/{trainer.epochs}  train loss {rows[-1]['train_loss']:.4f}  "
                    f"test accuracy {test_accuracy:.2%}  {rows[-1]['images_per_second']:,.0f} images/s"
                )
            result = summary(settings, dataset, model, optimizer, rows)
            result |= {"device": devices.describe(device), "git_commit": commit}
            results.write_result(folder, result)
        finally:
            bar.close()
            tracker.finish(result)
    return result


def resume(settings: Settings, model: nn.Module, optimizer: Descent, scheduler: LambdaLR) -> list[dict[str, Any]]:
    """Go back to the end of the last epoch that was saved; return the rows of the epochs until then.

    Raises:
        SettingError: there is a checkpoint that cannot be that of this run.

    """
    path = settings.folder / "last.pt"
    last = checkpoint.load(path, settings.config_hash, settings.seed)
    if last is None:
        return []
    try:
        model.load_state_dict(last["model"])
        optimizer.load_state_dict(last["optimizer"])
        scheduler.load_state_dict(last["scheduler"])
        results.write_metrics(settings.folder, last["rows"])
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise SettingError(f"{path}: does not fit this run ({error!r:.200}); delete it to start anew") from error
    print(f"goes on after epoch {len(last['rows'])} of {settings.trainer.epochs}")
    return last["rows"]


class Closure:
    """zero_grad, forward and backward over the micro-batches of the current batch, as often as a method asks."""

    def __init__(self, model: nn.Module, optimizer: Descent, trainer: TrainerSettings, decay: float) -> None:
        self.model, self.optimizer, self.trainer = model, optimizer, trainer
        self.decay = decay  # λ of ½λ‖θ‖² in the loss
        self.decayed: list[Tensor] = [p for p in model.parameters() if p.requires_grad and is_decayed(p, trainer)]

    def batch(self, images: Tensor, labels: Tensor) -> None:
        """Set the batch of the next step."""
        self.images, self.labels = images.contiguous(memory_format=memory_format(self.trainer)), labels
        self.logits: list[Tensor] = []

    def __call__(self) -> Tensor:
        """The mean loss of the batch at the present weights, with its gradients in `.grad`."""
        self.optimizer.zero_grad()
        parts = self.trainer.accumulate
        total = torch.zeros((), device=self.images.device)
        for images, labels in zip(self.images.chunk(parts), self.labels.chunk(parts), strict=True):
            with autocast(images.device, self.trainer):
                logits = self.model(images)
                loss = F.cross_entropy(logits, labels, label_smoothing=self.trainer.label_smoothing) / parts
            loss.backward()
            total += loss.detach()
            self.logits.append(logits.detach())
        if self.decay:
            # the gradient of ½λ‖θ‖², without a graph for it; the loss that is reported leaves it out
            reached = [p for p in self.decayed if p.grad is not None]
            with torch.no_grad():
                torch._foreach_add_(Descent.grads(reached), reached, alpha=self.decay)
        return total

    def correct(self) -> Tensor:
        """How many of the batch the first pass of the step, the one at θ, had right."""
        return (torch.cat(self.logits[: self.trainer.accumulate]).argmax(1) == self.labels).sum()


def create_optimizer(settings: Settings, model: nn.Module, steps_per_epoch: int) -> tuple[Descent, float]:
    """The optimizer, with its clipping, and the weight decay that is left for the loss."""
    trainer, wanted, decay = settings.trainer, settings.optimizer, 0.0
    if trainer.decay_in_loss:
        decay = wanted.base.weight_decay
        wanted = wanted.model_copy(update={"base": wanted.base.model_copy(update={"weight_decay": 0.0})})
    params = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [{"params": [p for p in params if is_decayed(p, trainer)]}]
    if rest := [p for p in params if not is_decayed(p, trainer)]:
        groups.append({"params": rest, "weight_decay": 0.0})
    optimizer = optim.create(wanted, settings.schedule, model, groups, trainer.epochs, steps_per_epoch, settings.seed)
    if trainer.clip is not None:
        limit = trainer.clip

        def clip(*_: Any) -> None:
            nn.utils.clip_grad_norm_(params, limit)

        # a hook of the base sees the gradient that it is about to step along, whatever the method
        optimizer.innermost.register_step_pre_hook(clip)
    return optimizer, decay


def is_decayed(p: Tensor, trainer: TrainerSettings) -> bool:
    """Whether weight decay reaches a parameter: BatchNorm's and biases are the ones of one dimension."""
    return trainer.decay_norm_and_bias or p.ndim > 1


def warmup_then_cosine(warmup_steps: int, steps: int) -> Callable[[int], float]:
    """The learning rate at a step over its largest: up in a straight line, then down a half cosine to 0."""

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        return (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps))) / 2

    return factor


def memory_format(trainer: TrainerSettings) -> torch.memory_format:
    """How images and convolutions lie in memory."""
    return torch.channels_last if trainer.channels_last else torch.contiguous_format


def autocast(device: torch.device, trainer: TrainerSettings) -> torch.autocast:
    """bf16 where it is asked for; it needs no gradient scaler."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=trainer.precision == "bf16")


@torch.no_grad()
def evaluate(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], trainer: TrainerSettings
) -> tuple[float, float]:
    """Mean cross-entropy and accuracy over the batches."""
    model.eval()
    totals: Any = 0.0
    count = 0
    for images, labels in batches:
        count += len(labels)
        with autocast(images.device, trainer):
            logits = model(images).float()
        loss = F.cross_entropy(logits, labels, reduction="sum")
        totals = totals + torch.stack([loss, (logits.argmax(1) == labels).sum()])
    loss_sum, correct = totals.tolist()
    return loss_sum / count, correct / count


def check_finite(losses: Tensor, model: nn.Module, first_step: int, folder: Path) -> None:
    """Stop at a loss or a weight that is no number, before the checkpoint is replaced.

    Raises:
        SettingError: it names the step.

    """
    # BatchNorm can hide weights that have overflowed from the loss
    values = [t.float() for t in model.state_dict().values()]
    finite = torch.cat([losses, nn.utils.get_total_norm(values).reshape(1)]).isfinite()
    if not finite.all():
        step = first_step + int((~finite).nonzero()[0])
        kept = f"{folder / 'last.pt'} has the epoch before" if (folder / "last.pt").exists() else "nothing was saved"
        raise SettingError(
            f"the loss or a weight is not finite at step {step}: {kept}; a smaller optimizer.base.lr may help"
        )


@contextmanager
def run_folder(folder: Path, model: nn.Module) -> Iterator[None]:
    """Make the folder, for one process at a time.

    Raises:
        SettingError: it cannot be made, has no space, or another process holds it.

    """
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    need = 6 * sum(p.numel() * p.element_size() for p in model.parameters())  # weights and state, old and new
    free = shutil.disk_usage(existing).free
    if free < need:
        raise SettingError(f"runs={folder}: {free / 2**20:.1f} MiB free, checkpoints need {need / 2**20:.1f} MiB")
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise SettingError(f"runs={folder}: another process trains this very run") from error
    except OSError as error:
        raise SettingError(f"runs={folder}: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()


def say_what_is_expected(settings: Settings, dataset: Data, closure: "Closure", steps: int) -> None:
    """Print the cost that is expected, in propagations and, from a few steps of a copy, in seconds.

    Raises:
        SettingError: model, images and optimizer do not work together: here they meet for the first time.

    """
    trainer, expected = settings.trainer, closure.optimizer.expected_propagations_per_step
    device = next(closure.model.parameters()).device
    probe, best = copy.deepcopy(closure), math.inf
    shape = (trainer.batch_size, dataset.channels, dataset.image_size, dataset.image_size)
    images, labels = torch.ones(shape, device=device), torch.full(shape[:1], dataset.classes - 1, device=device)
    try:
        for _ in range(3):
            start = time.perf_counter()
            probe.batch(images, labels)
            probe.optimizer.descend(probe)
            devices.wait_for(device)
            best = min(best, time.perf_counter() - start)
        probe.optimizer.step(probe)
        probe.correct()
        start = time.perf_counter()
        evaluate(probe.model, [(images, labels)], trainer)
        testing = (time.perf_counter() - start) * dataset.test_size / trainer.batch_size * trainer.epochs
    except Exception as error:  # whatever a model or an optimizer of others raises, the settings are the reason
        names = f"model={settings.model.label}, dataset={settings.dataset.label}, optimizer={settings.optimizer.label}"
        raise SettingError(f"{names}: {reason(error)}") from error
    print(
        f"{steps} steps of {trainer.batch_size} images, {expected:.4f} propagations a step expected: "
        f"about {best * steps * expected:.0f} s of training and {testing:.0f} s of testing in all on {device}"
    )


def summary(
    settings: Settings, dataset: Data, model: nn.Module, optimizer: Descent, rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """What `result.json` holds: the last epoch, never the best one."""
    last, steps = rows[-1], rows[-1]["steps"]
    return {
        "optimizer": settings.optimizer.label,
        "inner": settings.optimizer.inner.name if settings.optimizer.inner else None,
        "schedule": settings.schedule.name if settings.schedule else None,
        "dataset": settings.dataset.label,
        "model": settings.model.label,
        "seed": settings.seed,
        "epochs": len(rows),
        "steps": steps,
        "train_images": dataset.train_size,
        "test_images": dataset.test_size,
        "parameters": sum(p.numel() for p in model.parameters()),
        "test_accuracy": last["test_accuracy"],
        "test_loss": last["test_loss"],
        "train_loss": last["train_loss"],
        "propagations_per_step": last["propagations"] / steps,
        "forwards_per_step": last["forwards"] / steps,
        "expected_propagations_per_step": optimizer.expected_propagations_per_step,
        "sharpness_aware_steps": last["sharpness_aware_steps"],
        "seconds": last["seconds"],
        "images_per_second": steps * settings.trainer.batch_size / last["seconds"],
        "peak_memory_bytes": last["peak_memory_bytes"],
        "precision": settings.trainer.precision,
        "versions": results.versions(),
        "config_hash": settings.config_hash,
        "config": settings.identity(),
    }
