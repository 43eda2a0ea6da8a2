"""One seed of one setting: what it trains with, how far it is, and what it leaves in its run folder."""

import math
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from filelock import FileLock, Timeout
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from sam_bench import checkpoint, data, models, optim, results
from sam_bench import device as devices
from sam_bench.capture import CapturedStep, cuda_graph
from sam_bench.closure import Closure
from sam_bench.data.sampling import derived_seed
from sam_bench.errors import SettingError
from sam_bench.optim import Descent
from sam_bench.settings import Settings
from sam_bench.tracker import Tracker


class Run:
    """A run, from its settings.

    Raises:
        SettingError: something that the settings name cannot be had.

    """

    def __init__(self, settings: Settings, device: torch.device) -> None:
        self.settings, self.device, trainer = settings, device, settings.trainer
        results.git_commit()  # which it keeps: at the end of a long training the files may be others
        self.dataset = data.create(settings.dataset, trainer.batch_size, device, settings.seed)
        self.steps_per_epoch = self.dataset.steps_per_epoch
        self.steps = trainer.epochs * self.steps_per_epoch
        torch.manual_seed(derived_seed("weights", settings.seed))
        d = self.dataset
        self.model = models.create(settings.model, d.classes, d.channels, d.image_size).to(device)
        self.optimizer, self.closure = create_optimizer(settings, self.model, d)
        self.scheduler = LambdaLR(
            self.optimizer, warmup_then_cosine(trainer.warmup_epochs * self.steps_per_epoch, self.steps)
        )
        self.rows: list[dict[str, Any]] = []  # of metrics.csv, one an epoch
        self.result: dict[str, Any] | None = None
        # of its own, so that several seeds run side by side
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.random_state: torch.Generator | None = None

    @property
    def epoch(self) -> int:
        """The number of epochs behind it."""
        return len(self.rows)

    @property
    def done(self) -> bool:
        """Whether the last epoch is behind it."""
        return self.epoch == self.settings.trainer.epochs

    def resume(self) -> None:
        """Go back to the end of the last epoch that was saved, if any was.

        Raises:
            SettingError: there is a checkpoint that cannot be that of this run.

        """
        path = self.settings.folder / "last.pt"
        last = checkpoint.load(path, self.settings.config_hash, self.settings.seed)
        if last is None:
            return
        try:
            self.model.load_state_dict(last["model"])
            self.optimizer.load_state_dict(last["optimizer"])
            self.scheduler.load_state_dict(last["scheduler"])
            results.write_metrics(self.settings.folder, last["rows"])
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise SettingError(f"{path}: does not fit this run ({error!r:.200}); delete it to start anew") from error
        self.rows = last["rows"]
        print(f"seed {self.settings.seed} goes on after epoch {self.epoch} of {self.settings.trainer.epochs}")

    def prepare(self, compiled: bool, captured: bool, compile_seconds: float) -> None:
        """Choose how a step is made: as it is written, compiled, captured. After `resume`, before the first step."""
        self.compile_seconds = compile_seconds
        if self.stream:
            self.stream.wait_stream(torch.cuda.current_stream(self.device))  # which made model and data
        if compiled:
            self.closure.compile()
        self.captured = (
            CapturedStep(self.optimizer, self.work, cuda_graph(self.stream)) if captured and self.stream else None
        )

    @contextmanager
    def on_stream(self) -> Iterator[None]:
        """Within: this run's own queue of the device, and its own place in the device's random numbers.

        A graph reads its seed from the state of the generator that it was captured with; graphs of several seeds that
        run at once must not share one.
        """
        if self.stream is None:
            yield
            return
        generator = torch.cuda.default_generators[self.stream.device.index]
        before = generator.graphsafe_get_state()
        if self.random_state is None:
            self.random_state = before.clone_state()
        generator.graphsafe_set_state(self.random_state)
        try:
            with torch.cuda.stream(self.stream):
                yield
        finally:
            generator.graphsafe_set_state(before)

    def start(self) -> None:
        """Begin an epoch."""
        self.model.train()
        self.dataset.start(self.epoch)
        self.losses = torch.empty(self.steps_per_epoch, device=self.device)
        self.correct = torch.zeros((), device=self.device)

    def step(self, step: int) -> None:
        """One step of the epoch. Nothing in it waits for the device."""
        self.dataset.fetch()
        # all that is random in a step, dropout and the like, follows from (seed, step), whatever runs beside it
        torch.manual_seed(derived_seed("dropout", self.settings.seed, self.epoch * self.steps_per_epoch + step))
        if self.captured:
            loss, correct = self.captured()
        else:
            self.closure.batch(*self.dataset.batch())
            loss = self.optimizer.step(self.closure)
            correct = self.closure.correct()
        self.losses[step] = loss
        self.correct += correct
        self.scheduler.step()

    def work(self) -> tuple[Tensor, Tensor]:
        """What of a step is for the device: all of it but `begin` and `end` of the optimizer."""
        self.closure.batch(*self.dataset.batch())
        return self.optimizer.update(self.closure), self.closure.correct()

    def end(self, seconds: float, seeds_at_once: int, peak_memory: int) -> dict[str, Any]:
        """Test, and write what the epoch gave; `seconds` is this run's share of the clock. Returns the epoch's row.

        Raises:
            SettingError: the loss or a weight is no longer finite.

        """
        folder, rows = self.settings.folder, self.rows
        test_loss, test_accuracy = evaluate(self.model, self.dataset.test(), self.settings.trainer.precision == "bf16")
        check_finite(self.losses, self.model, self.epoch * self.steps_per_epoch, folder)
        images = self.steps_per_epoch * self.settings.trainer.batch_size
        weights = sum(p.numel() * p.element_size() for p in self.model.parameters())
        row = {
            "epoch": self.epoch + 1,
            "steps": (self.epoch + 1) * self.steps_per_epoch,
            "lr": float(self.scheduler.get_last_lr()[0]),
            "train_loss": self.losses.mean().item(),
            "train_accuracy": self.correct.item() / images,
            "test_loss": test_loss,
            "test_accuracy": test_accuracy,
            "propagations": self.optimizer.propagations,
            "forwards": self.optimizer.forwards,
            "sharpness_aware_steps": self.optimizer.sharpness_aware_steps,
            "seconds": seconds + (rows[-1]["seconds"] if rows else 0.0),
            "images_per_second": images / seconds,
            "seeds_at_once": seeds_at_once,
            "peak_memory_bytes": max(peak_memory, rows[-1]["peak_memory_bytes"] if rows else 0),
            "extra_copies": self.optimizer.extra_bytes / weights,
        }
        rows.append(row)
        checkpoint.save(
            folder / "last.pt",
            self.settings.config_hash,
            self.settings.seed,
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
                "rows": rows,
            },
        )
        results.write_metrics(folder, rows)
        self.tracker.log(row)
        return row

    def finish(self) -> None:
        """Write `result.json`: the last epoch, never the best one."""
        settings, last, steps = self.settings, self.rows[-1], self.rows[-1]["steps"]
        self.result = {
            "optimizer": settings.optimizer.label,
            "inner": settings.optimizer.inner.name if settings.optimizer.inner else None,
            "schedule": settings.schedule.name if settings.schedule else None,
            "dataset": settings.dataset.label,
            "model": settings.model.label,
            "seed": settings.seed,
            "epochs": self.epoch,
            "steps": steps,
            "train_images": self.dataset.train_size,
            "test_images": self.dataset.test_size,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "test_accuracy": last["test_accuracy"],
            "test_loss": last["test_loss"],
            "train_loss": last["train_loss"],
            "propagations_per_step": last["propagations"] / steps,
            "forwards_per_step": last["forwards"] / steps,
            "expected_propagations_per_step": self.optimizer.expected_propagations_per_step,
            "sharpness_aware_steps": last["sharpness_aware_steps"],
            "seconds": last["seconds"],
            "compile_seconds": self.compile_seconds,  # beside `seconds`
            "images_per_second": steps * settings.trainer.batch_size / last["seconds"],
            "peak_memory_bytes": last["peak_memory_bytes"],
            "extra_copies": last["extra_copies"],
            "seeds_at_once": last["seeds_at_once"],
            "precision": settings.trainer.precision,
            "versions": results.versions(),
            "config_hash": settings.config_hash,
            "config": settings.identity(),
            "device": devices.describe(self.device),
            "git_commit": results.git_commit(),
        }
        results.write_result(settings.folder, self.result)

    @contextmanager
    def folder(self) -> Iterator[None]:
        """Within: the run folder is there, for this process alone, and so is the tracker.

        Raises:
            SettingError: it cannot be made, has no space, or another process holds it.

        """
        folder = self.settings.folder
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        # weights and up to four copies of state (AdamW's, the mean of a method's), old and new
        need = 10 * sum(p.numel() * p.element_size() for p in self.model.parameters())
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
            self.resume()
            results.write_config(folder, self.settings.model_dump(mode="json"))
            self.tracker = Tracker(self.settings, folder)
            for row in self.rows:
                self.tracker.log(row)
            try:
                yield
            finally:
                self.tracker.finish(self.result)
        finally:
            lock.release()


def create_optimizer(settings: Settings, model: nn.Module, dataset: data.Data) -> tuple[Descent, Closure]:
    """The optimizer, with its clipping, and the closure, with what weight decay is left for the loss."""
    trainer, wanted = settings.trainer, settings.optimizer
    if trainer.channels_last:
        model.to(memory_format=torch.channels_last)
    params = [p for p in model.parameters() if p.requires_grad]
    # BatchNorm's parameters and biases are the ones of one dimension
    decayed = [p for p in params if trainer.decay_norm_and_bias or p.ndim > 1]
    rest = [p for p in params if not (trainer.decay_norm_and_bias or p.ndim > 1)]
    decay = wanted.base.weight_decay if trainer.decay_in_loss else 0.0
    if trainer.decay_in_loss:
        wanted = wanted.model_copy(update={"base": wanted.base.model_copy(update={"weight_decay": 0.0})})
    groups: list[dict[str, Any]] = [{"params": decayed}]
    if rest:
        groups.append({"params": rest, "weight_decay": 0.0})
    training = optim.Training(
        model,
        trainer.epochs,
        dataset.steps_per_epoch,
        settings.seed,
        dataset.train_size if dataset.knows_examples else None,
        trainer.batch_size,
        lambda n, seed: dataset.sample(n, seed),  # a copy of the optimizer copies no data set with it
    )
    optimizer = optim.create(wanted, settings.schedule, groups, training)
    if trainer.clip is not None:
        limit = trainer.clip

        def clip(*_: Any) -> None:
            nn.utils.clip_grad_norm_(params, limit)

        # a hook of the base sees the gradient that it is about to step along, whatever the method
        optimizer.innermost.register_step_pre_hook(clip)
    closure = Closure(
        model,
        optimizer,
        accumulate=trainer.accumulate,
        label_smoothing=trainer.label_smoothing,
        bf16=trainer.precision == "bf16",
        channels_last=trainer.channels_last,
        decay=decay,
        decayed=decayed,
    )
    return optimizer, closure


def warmup_then_cosine(warmup_steps: int, steps: int) -> Callable[[int], float]:
    """The learning rate at a step over its largest: up in a straight line, then down a half cosine to 0."""

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        return (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps))) / 2

    return factor


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[data.Batch], bf16: bool) -> tuple[float, float]:
    """Mean cross-entropy and accuracy over the batches."""
    model.eval()
    totals: Any = 0.0
    count = 0
    for images, labels in batches:
        count += len(labels)
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=bf16):
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
