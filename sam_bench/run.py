"""One seed of one setting: its model, data and optimizer, its progress, and the files of its run folder."""

import copy
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
import yaml
from filelock import FileLock, Timeout
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import update_bn

from sam_bench import checkpoint, curvature, files, machine, perturbation, results
from sam_bench.build import Training, create_dataset, create_model, create_optimizer
from sam_bench.capture import CapturedStep, cuda_graph
from sam_bench.checkpoint import Checkpoints
from sam_bench.data import Batch, Data
from sam_bench.errors import SettingError, reason
from sam_bench.optim import BatchClosure, Descent
from sam_bench.optim.descent import batch_norms, local
from sam_bench.optim.seeding import derived_seed
from sam_bench.optim.side_by_side import SideBySide
from sam_bench.ranks import Ranks
from sam_bench.settings import Settings
from sam_bench.tracker import Tracker

# settings that make a training diverge if they are too large, by the end of their names
STEP_SIZES = ("lr", "weight_decay", "rho", "rho_max", "gamma", "weight", "alpha", "lam")


class Run:
    """A run, from its settings. Raises a SettingError if something that they name does not exist."""

    def __init__(self, settings: Settings, device: torch.device, ranks: Ranks | None = None) -> None:
        ranks = ranks or Ranks(device)
        self.settings, self.device, self.ranks, trainer = settings, device, ranks, settings.trainer
        results.git_commit()  # cached now: the files may have changed by the end of a long training
        self.dataset = create_dataset(
            settings.dataset, trainer.batch_size, device, settings.seed, ranks.part, ranks.parts
        )
        self.steps_per_epoch = self.dataset.steps_per_epoch
        self.steps = trainer.epochs * self.steps_per_epoch
        torch.manual_seed(derived_seed("weights", settings.seed))
        d = self.dataset
        self.model = create_model(settings.model, d.classes, d.channels, d.image_size)
        if trainer.fsdp:
            ranks.shard(self.model, device)  # moves it, too
            self.optimizer, self.closure = optimizer_and_closure(settings, self.model, d)
            for group in self.optimizer.param_groups:  # torch's fused SGD takes no shards
                if "fused" in group:
                    group["fused"] = None
        else:
            self.model.to(device)
            if trainer.channels_last:
                self.model.to(memory_format=torch.channels_last)
            self.optimizer, self.closure = optimizer_and_closure(settings, ranks.replica(self.model), d, ranks.pair)
        self.scheduler = LambdaLR(
            self.optimizer, warmup_then_cosine(trainer.warmup_epochs * self.steps_per_epoch, self.steps)
        )
        self.epoch = 0  # finished epochs
        self.step_of_epoch = 0  # finished steps of the current epoch
        self.losses: Tensor | None = None  # of the steps of this epoch; None before it starts in this process
        # this rank's part of the current epoch, from the checkpoint
        self.losses_before, self.correct_before, self.unreadable_before = torch.empty(0), torch.zeros(()), 0
        self.seconds, self.peak_memory = 0.0, 0  # of the current epoch
        self.extra_copies = 0.0  # largest so far: the method's buffers, in copies of the weights
        self.rows: list[dict[str, Any]] = []  # of metrics.csv, one per epoch
        wanted = trainer.batch_norm_epochs
        self.batch_norm_epochs = self.optimizer.batch_norm_epochs if wanted == "auto" else wanted
        if not batch_norms(self.model):
            self.batch_norm_epochs = 0
            if wanted not in ("auto", 0):
                raise SettingError(
                    f"trainer.batch_norm_epochs={wanted}: has no effect, model={settings.model.name} has no BatchNorm"
                )
        self.conditions = machine.conditions(device) | {"ranks": ranks.n}
        self.machine_changes: list[str] = []  # what was different after a resume
        self.result: dict[str, Any] | None = None
        self.captured: CapturedStep | None = None
        self.compile_seconds = 0.0
        # a stream of its own, so that several seeds run side by side
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.random_state: torch.Generator | None = None
        # all that is random in a step comes from these
        self.generators = [torch.default_generator]
        if self.stream:
            self.generators.append(torch.cuda.default_generators[self.stream.device.index])

    @property
    def position(self) -> tuple[int, int]:
        """Finished epochs, and finished steps of the current epoch."""
        return self.epoch, self.step_of_epoch

    @property
    def done(self) -> bool:
        """Whether the last epoch is finished."""
        return self.epoch == self.settings.trainer.epochs

    def resume(self) -> None:
        """Load the last checkpoint, if there is one.

        Raises a SettingError if the checkpoint cannot be that of this run.
        """
        path = self.settings.folder / "last.pt"
        last = self.ranks.on_first(lambda: checkpoint.load(path, self.settings.config_hash, self.settings.seed))
        if last is None:
            return
        if ("shards" in last) != self.settings.trainer.fsdp:
            asked = str(self.settings.trainer.fsdp).lower()
            raise SettingError(
                f"trainer.fsdp={asked}: {path} was saved with the opposite setting; choose another folder with runs="
            )
        try:
            if self.settings.trainer.fsdp:
                last = checkpoint.load_shards(self.settings.folder, last, self.shards())
            self.model.load_state_dict(last["model"])
            self.optimizer.load_state_dict(last["optimizer"])
            self.scheduler.load_state_dict(last["scheduler"])
            rows, epochs = last["rows"], self.settings.trainer.epochs
            numbers = [row["epoch"] for row in rows]
            if numbers != list(range(1, min(len(rows), epochs) + 1)) or not (rows or last["step_of_epoch"]):
                raise ValueError(f"it has rows of {len(rows)} epochs, not of 1 to {epochs}")
            # but for those of `trainer.test_perturbation`, which may be switched at a resume
            if len({tuple(name for name in row if name not in perturbation.COLUMNS) for row in rows}) > 1:
                raise ValueError("its rows have different columns")
            then, self.machine_changes = last["conditions"], list(last["machine_changes"])
            self.step_of_epoch = last["step_of_epoch"]
            self.seconds, self.peak_memory = last["seconds"], last["peak_memory"]
            self.extra_copies = last["extra_copies"]
            mine = part_of(last["of_ranks"], self.ranks)
            self.losses_before, self.correct_before = mine["losses"], mine["correct"]
            self.unreadable_before = mine["unreadable_images"]
            for statistics, value in zip(self.batch_norm_statistics, mine["batch_norm"], strict=True):
                statistics.copy_(value)
            if not len(self.losses_before) == self.step_of_epoch < self.steps_per_epoch:
                raise ValueError(f"it has {len(self.losses_before)} losses of {self.step_of_epoch} steps")
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
            what = " ".join(str(error).split())[:200]
            raise SettingError(f"{path}: does not fit this run ({what}); move it away to start over") from error
        if rows:
            self.ranks.on_first(lambda: results.write_metrics(self.settings.folder, rows))
        self.rows, self.epoch = rows, len(rows)
        changes = [f"{key} {then.get(key)}, now {now}" for key, now in self.conditions.items() if then.get(key) != now]
        changes = [] if self.done else changes
        differs = ""
        if changes:
            differs = f"; changed since: {'; '.join(changes)}, so bits may differ from an uninterrupted run"
        where = f"epoch {self.epoch}"
        at = f"{where} of {epochs}"
        if self.step_of_epoch:
            where += f", step {self.step_of_epoch}"
            at += f" and step {self.step_of_epoch} of {self.steps_per_epoch}"
        self.machine_changes += [f"after {where}: {change}" for change in changes]
        print(f"seed {self.settings.seed} continues after {at}{differs}")

    def prepare(self, compiled: bool, captured: bool, compile_seconds: float) -> None:
        """Choose how a step is made: eager, compiled, captured. Call it after `resume`, before the first step."""
        self.compile_seconds = compile_seconds
        if self.stream:
            self.stream.wait_stream(torch.cuda.current_stream(self.device))  # which made model and data
        if compiled:
            self.closure.compile()
        if self.closure.ddp:
            self.order_gradients(self.closure.ddp)
        if captured and self.stream:
            required = self.settings.trainer.cuda_graphs is True
            self.captured = CapturedStep(self.optimizer, self.work, cuda_graph(self.stream), required=required)

    def order_gradients(self, ddp: DistributedDataParallel) -> None:
        """Run two passes without a step, after which DistributedDataParallel sums gradients in its final order.

        It chooses that order after the first backward pass of a process. Without this, the first steps of a resumed run
        would sum in another order, with other bits.
        """
        buffers = list(self.model.buffers())
        before = [buffer.clone() for buffer in buffers]
        self.model.train()
        d, size = self.dataset, self.settings.trainer.batch_size // self.ranks.parts
        images = torch.zeros(size, d.channels, d.image_size, d.image_size, device=self.device)
        for _ in range(2):
            ddp(images).sum().backward()
        self.optimizer.zero_grad()
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)

    def release(self) -> None:
        """Free the captured graphs now; otherwise their memory is held until the garbage collector runs."""
        self.captured = None  # it refers to `work`, and so to this run

    @property
    def batch_norm_statistics(self) -> list[Tensor]:
        """Running means and variances, which each rank has of its own parts of the batches."""
        statistics = [t for norm in batch_norms(self.model) for t in (norm.running_mean, norm.running_var)]
        return [t for t in statistics if t is not None]

    @contextmanager
    def on_stream(self) -> Iterator[None]:
        """Context manager: use this run's own CUDA stream and random number generator state.

        A graph reads its seed from the generator state that it was captured with. Graphs of several seeds that run at
        once must not share one.
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
            self.random_state = generator.graphsafe_get_state()  # another one after a capture that failed
            generator.graphsafe_set_state(before)

    def start(self) -> None:
        """Start an epoch, or continue the one that the checkpoint is in."""
        if self.losses is not None:
            return  # it goes on after a pause
        self.model.train()
        self.dataset.start(self.epoch, self.step_of_epoch)
        self.losses = torch.empty(self.steps_per_epoch, device=self.device)
        self.correct = torch.zeros((), device=self.device)
        if self.step_of_epoch:
            self.losses[: self.step_of_epoch] = self.losses_before.to(self.device)
            self.correct += self.correct_before.to(self.device)

    def step(self) -> None:
        """One step of the epoch. Nothing in it waits for the device."""
        assert self.losses is not None
        self.dataset.fetch()
        # dropout and the like follow from (seed, step), whatever runs beside it
        step = self.epoch * self.steps_per_epoch + self.step_of_epoch
        seed = derived_seed("dropout", self.settings.seed, step, self.ranks.part)
        for generator in self.generators:  # torch.manual_seed takes 0.1 ms or more: it visits every device
            generator.manual_seed(seed)
        if self.captured:
            loss, correct = self.captured()
        else:
            self.closure.batch(*self.dataset.batch())
            loss = self.optimizer.step(self.closure)
            correct = self.closure.correct()
        self.losses[self.step_of_epoch] = loss
        if self.ranks.is_first or not self.ranks.pair:  # the other one of a pair has no logits at θ
            self.correct += correct
        self.scheduler.step()
        self.step_of_epoch += 1

    def work(self) -> tuple[Tensor, Tensor]:
        """The device's part of a step: all but `begin` and `end` of the optimizer."""
        self.closure.batch(*self.dataset.batch())
        return self.optimizer.update(self.closure), self.closure.correct()

    def pause(self, seconds: float, peak_memory: int) -> None:
        """Note what the steps since the last pause took: this run's share of the seconds, and bytes of memory."""
        self.seconds += seconds
        self.peak_memory = max(self.peak_memory, peak_memory)
        weights = sum(p.numel() * p.element_size() for p in local(list(self.model.parameters())))
        self.extra_copies = max(self.extra_copies, self.optimizer.extra_bytes / weights)

    def keep(self, at_once: bool) -> None:
        """Write a checkpoint of the current step, in a thread of its own, if it is time or has to be at once.

        Call it after a pause.
        """
        if not self.settings.trainer.fsdp:
            state = self.state()
            self.ranks.on_first(lambda: self.checkpoints.offer(state, at_once))
            return
        name = self.ranks.on_first(
            lambda: (
                f"shards-{self.epoch}-{self.step_of_epoch}-{time.time_ns()}"
                if at_once or self.checkpoints.is_time
                else None
            )
        )
        if name:
            state = checkpoint.save_shards(self.settings.folder, name, self.state())

            def write() -> None:
                self.checkpoints.offer(state, at_once=True)
                self.checkpoints.wait()
                checkpoint.remove_shards(self.settings.folder, all_but=name)

            self.ranks.on_first(write)

    def shards(self) -> dict[str, Tensor]:
        """The parameters that FSDP shards, by their names in the states of model and optimizer."""
        of_model = {f"model.{name}": p for name, p in self.model.named_parameters()}
        return of_model | {f"optimizer.state.{i}": p for i, p in enumerate(self.optimizer.params())}

    def state(self) -> dict[str, Any]:
        """All that a resume needs. The tensors are those of the run, not copies."""
        started, unreadable = self.losses is not None, self.unreadable_before
        of_rank = {
            "losses": self.losses_before if self.losses is None else self.losses[: self.step_of_epoch],
            "correct": self.correct if started else self.correct_before,
            "batch_norm": self.batch_norm_statistics,
            "unreadable_images": unreadable + self.dataset.unreadable_images if started else unreadable,
        }
        return {
            "model": dict(self.model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "rows": self.rows,
            "step_of_epoch": self.step_of_epoch,
            "of_ranks": self.ranks.of_all(of_rank),
            "seconds": self.seconds,
            "peak_memory": self.peak_memory,
            "extra_copies": self.extra_copies,
            "conditions": self.conditions,
            "machine_changes": self.machine_changes,
        }

    def next_epoch(self) -> None:
        """Advance to the start of the next epoch."""
        self.epoch, self.step_of_epoch, self.losses = self.epoch + 1, 0, None
        self.losses_before, self.correct_before, self.unreadable_before = torch.empty(0), torch.zeros(()), 0
        self.seconds, self.peak_memory = 0.0, 0

    def end(self, seeds_at_once: int) -> dict[str, Any]:
        """Test, write the results of the epoch and return its row of metrics.csv. `seeds_at_once` runs shared its time.

        Raises a SettingError if the loss or a weight is no longer finite.
        """
        assert self.losses is not None
        rows, trainer = self.rows, self.settings.trainer
        self.ranks.mean([self.losses, *self.batch_norm_statistics])
        # each image is read once per epoch, so unreadable ones before and after a resume are different ones
        of_ranks = self.ranks.of_all(
            (self.correct.item(), self.unreadable_before + self.dataset.unreadable_images, self.peak_memory)
        )[: self.ranks.parts]
        corrects, unreadable, peaks = zip(*of_ranks, strict=True)
        is_last = self.epoch + 1 == trainer.epochs
        start = time.perf_counter()
        is_due = is_last or (self.epoch + 1) % trainer.test_every == 0
        tested = self.test(is_last, is_due)
        measured: dict[str, float | None] = {}
        if trainer.test_perturbation:
            measured = self.ranks.on_first(self.perturbation) if is_due else dict.fromkeys(perturbation.COLUMNS)
        test_seconds = time.perf_counter() - start
        check_finite(self.losses, self.model, tested, self.epoch * self.steps_per_epoch, self.settings, self.ranks)
        images = self.steps_per_epoch * trainer.batch_size
        row = {
            "epoch": self.epoch + 1,
            "steps": (self.epoch + 1) * self.steps_per_epoch,
            "lr": float(self.scheduler.get_last_lr()[0]),
            "train_loss": self.losses.mean().item(),
            "train_accuracy": sum(corrects) / images,
            **tested,
            **measured,
            "propagations": self.optimizer.propagations,
            "forwards": self.optimizer.forwards,
            "sharpness_aware_steps": self.optimizer.sharpness_aware_steps,
            "seconds": self.seconds + (rows[-1]["seconds"] if rows else 0.0),
            "test_seconds": test_seconds + (rows[-1]["test_seconds"] if rows else 0.0),
            "images_per_second": images / self.seconds,
            "seeds_at_once": seeds_at_once,
            "peak_memory_bytes": max(*peaks, rows[-1]["peak_memory_bytes"] if rows else 0),
            "extra_copies": self.extra_copies,
            "unreadable_images": max(sum(unreadable), rows[-1]["unreadable_images"] if rows else 0),
        }
        rows.append(row)
        self.next_epoch()
        self.keep(at_once=is_last and trainer.fsdp)
        self.ranks.on_first(self.write_row)
        return row

    def write_row(self) -> None:
        """Write `metrics.csv`, and give the newest row to the tracker."""
        results.write_metrics(self.settings.folder, self.rows)
        self.tracker.log(self.rows[-1])

    def test(self, is_last: bool, is_due: bool) -> dict[str, float | None]:
        """Loss and accuracy on the validation set and on the test set, as in a row of metrics.csv.

        With a validation set, the test set is used once, after the last epoch. What is not tested is None.
        """
        if not is_due:
            return {f"{part}_{key}": None for part in ("validation", "test") for key in ("loss", "accuracy")}
        bf16 = self.settings.trainer.precision == "bf16"
        has_validation = self.dataset.validation_size > 0
        found: dict[str, float | None] = {}
        with self.test_statistics(keep=is_last):
            for part, batches, due in (
                ("validation", self.dataset.validation, has_validation),
                ("test", self.dataset.test, is_last or not has_validation),
            ):
                loss, accuracy = evaluate(self.model, batches(), bf16, self.ranks) if due else (None, None)
                found |= {f"{part}_loss": loss, f"{part}_accuracy": accuracy}
        return found

    def perturbation(self) -> dict[str, float | None]:
        """Angle and size of the perturbation, and the loss there, on a batch of training images.

        BatchNorm normalizes by this batch, as in training; there is no dropout.
        """
        settings, size, model = self.settings, self.settings.trainer.batch_size, copy.deepcopy(self.model).eval()
        for norm in batch_norms(model):
            norm.train()
        optimizer, closure = optimizer_and_closure(settings, model, self.dataset)
        optimizer.load_state_dict(self.optimizer.state_dict())
        images, labels = self.dataset.sample(size, derived_seed("perturbation", settings.seed, self.epoch))
        # a method with a table of the training examples reads any of them
        closure.batch(images, labels, torch.arange(size, device=self.device) if self.dataset.knows_examples else None)
        return perturbation.measure(optimizer, closure)

    @contextmanager
    def test_statistics(self, keep: bool) -> Iterator[None]:
        """Context manager: BatchNorm's statistics are re-estimated, `trainer.batch_norm_epochs`.

        With `keep`, the re-estimated statistics stay; otherwise those of training are restored on exit.
        """
        if not self.batch_norm_epochs:
            yield
            return
        buffers = list(self.model.buffers())
        of_training = [buffer.clone() for buffer in buffers]
        bf16 = self.settings.trainer.precision == "bf16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bf16):
            update_bn(self.train_images(), self.model)
        self.ranks.mean(self.batch_norm_statistics)
        try:
            yield
        finally:
            if not keep:
                for buffer, value in zip(buffers, of_training, strict=True):  # in place, where a graph reads them
                    buffer.copy_(value)

    def train_images(self) -> Iterator[Tensor]:
        """The images of the epochs that BatchNorm's statistics are re-estimated from."""
        for epoch in range(self.epoch, self.epoch + self.batch_norm_epochs):
            self.dataset.start(epoch)
            for step in range(self.steps_per_epoch):
                self.dataset.fetch()
                at = epoch * self.steps_per_epoch + step
                seed = derived_seed("batch norm", self.settings.seed, at, self.ranks.part)
                for generator in self.generators:  # dropout is active
                    generator.manual_seed(seed)
                yield self.dataset.batch()[0]

    def finish(self) -> None:
        """Write the last checkpoint, then `result.json`: the last epoch, never the best one."""
        self.result = self.ranks.on_first(self.write_result)

    def write_result(self) -> dict[str, Any]:
        """Write the files of the finished run. Returns its result."""
        self.checkpoints.close()
        settings, last, steps = self.settings, self.rows[-1], self.rows[-1]["steps"]
        result: dict[str, Any] = {
            "format": results.FORMAT,
            "optimizer": settings.optimizer.name,
            "inner": settings.optimizer.inner.name if settings.optimizer.inner else None,
            "schedule": settings.optimizer.schedule.name if settings.optimizer.schedule else None,
            "dataset": settings.dataset.label,
            "model": settings.model.name,
            "experiment": settings.experiment,
            "protocol": settings.protocol,
            "tuned": settings.tuned,
            "stated": settings.stated,
            "command": settings.command,
            "seed": settings.seed,
            "epochs": self.epoch,
            "steps": steps,
            "train_images": self.dataset.train_size,
            "validation_images": self.dataset.validation_size,
            "test_images": self.dataset.test_size,
            "unreadable_images": last["unreadable_images"],
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "validation_accuracy": last["validation_accuracy"],
            "validation_loss": last["validation_loss"],
            "test_accuracy": last["test_accuracy"],
            "test_loss": last["test_loss"],
            "train_loss": last["train_loss"],
            "propagations_per_step": last["propagations"] / steps,
            "forwards_per_step": last["forwards"] / steps,
            "expected_propagations_per_step": self.optimizer.expected_propagations_per_step,
            "sharpness_aware_steps": last["sharpness_aware_steps"],
            "seconds": last["seconds"],
            "test_seconds": last["test_seconds"],
            "compile_seconds": self.compile_seconds,  # not part of `seconds`
            "images_per_second": steps * settings.trainer.batch_size / last["seconds"],
            "peak_memory_bytes": last["peak_memory_bytes"],
            "extra_copies": last["extra_copies"],
            "seeds_at_once": last["seeds_at_once"],
            "precision": settings.trainer.precision,
            "versions": results.versions(),
            "config_hash": settings.config_hash,
            "config": settings.identity(),
            "device": machine.describe(self.device, self.ranks.n),
            "ranks": self.ranks.n,
            "threads": torch.get_num_threads(),
            "machine_changes": self.machine_changes,
            "git_commit": results.git_commit(),
        }
        results.write_result(settings.folder, result)
        if settings.sharpness != "none":
            try:
                data = curvature.sample(self.dataset, settings.sharpness)
                result["sharpness"] = curvature.measure(self.model, *data, settings.sharpness)
            # an operation without a second derivative, no memory left, an image that cannot be read
            except (SettingError, RuntimeError) as error:
                print(f"warning: sharpness={settings.sharpness}: {reason(error)}; the result is kept", file=sys.stderr)
            else:
                results.write_result(settings.folder, result)
        return result

    @contextmanager
    def folder(self) -> Iterator[None]:
        """Context manager: the run folder exists and is locked, and checkpoints and tracker are open.

        Raises a SettingError if the folder cannot be made, has no space, or another process holds it.
        """
        self.ranks.on_first(self.take_folder)
        try:
            self.resume()
            self.ranks.on_first(self.open_files)
            try:
                yield
            except Exception as error:
                if self.result is None and self.ranks.is_first:
                    results.write_error(self.settings.folder, reason(error))
                raise
            finally:
                if self.ranks.is_first:
                    try:
                        self.checkpoints.close()  # after an error or an interrupt, it writes the last finished epoch
                    finally:
                        self.tracker.finish(self.result)
        finally:
            if self.ranks.is_first:
                self.lock.release()

    def take_folder(self) -> None:
        """Make and lock the run folder."""
        folder = self.settings.folder
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        # weights and up to four copies of state (AdamW's, a method's mean gradient), the old file and the new one
        need = 10 * sum(p.numel() * p.element_size() for p in self.model.parameters())
        free = shutil.disk_usage(existing).free
        if free < need:
            raise SettingError(f"{folder}: {free / 2**20:.1f} MiB free, checkpoints need {need / 2**20:.1f} MiB")
        self.lock = FileLock(folder / ".lock")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.lock.acquire(timeout=1)  # `sam_bench.status` takes it for a moment, to look
        except Timeout as error:
            raise SettingError(f"{folder}: another process is already training this run") from error
        except OSError as error:
            raise SettingError(f"{folder}: {error.strerror}") from error

    def open_files(self) -> None:
        """Write config.yaml, and open checkpoints and tracker."""
        folder, settings = self.settings.folder, self.settings
        files.replace(folder / "config.yaml", yaml.safe_dump(settings.dump(), sort_keys=False))
        last, of = folder / "last.pt", (settings.config_hash, settings.seed)
        self.checkpoints = Checkpoints(
            lambda state: checkpoint.save(last, *of, state), settings.trainer.checkpoint_minutes
        )
        self.tracker = Tracker(settings, folder)
        for row in self.rows:
            self.tracker.log(row)
        (folder / "error.txt").unlink(missing_ok=True)


def optimizer_and_closure(
    settings: Settings, model: nn.Module, dataset: Data, pair: Any = None
) -> tuple[Descent, BatchClosure]:
    """The optimizer, with gradient clipping, and the closure, with the weight decay if it is part of the loss.

    Raises a SettingError if a setting is refused, or a `pair` of ranks is to share passes that depend on each other.
    """
    trainer = settings.trainer
    params = [p for p in model.parameters() if p.requires_grad]
    # BatchNorm's parameters and biases are the ones of one dimension
    decayed = [p for p in params if trainer.decay_norm_and_bias or p.ndim > 1]
    rest = [p for p in params if not (trainer.decay_norm_and_bias or p.ndim > 1)]
    groups: list[dict[str, Any]] = [{"params": decayed}]
    if rest:
        groups.append({"params": rest, "weight_decay": 0.0})
    training = Training(
        model,
        trainer.epochs * dataset.steps_per_epoch,
        dataset.steps_per_epoch,
        settings.seed,
        dataset.train_size if dataset.knows_examples else None,
        trainer.batch_size,
        lambda n, seed: dataset.sample(n, seed),  # a lambda, so that a copy of the optimizer copies no data set
        trainer.sync_perturbation,
        pair,
    )
    optimizer, decay = create_optimizer(settings.optimizer, groups, training), 0.0
    if pair and not isinstance(optimizer, SideBySide):
        name = settings.optimizer.name
        raise SettingError(f"trainer.side_by_side=true: the passes of {name} depend on each other; choose false")
    if trainer.decay_in_loss:
        decay = optimizer.innermost.defaults.get("weight_decay", 0.0)
        for group in optimizer.param_groups:
            group["weight_decay"] = 0.0
    if trainer.clip is not None:
        limit = trainer.clip

        def clip(*_: Any) -> None:
            nn.utils.clip_grad_norm_(params, limit)

        # a hook of the base sees the final gradient, for every method
        optimizer.innermost.register_step_pre_hook(clip)
    closure = BatchClosure(
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
    """The learning rate at a step relative to its maximum: linear warm-up, then a half cosine down to 0."""

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        return (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps))) / 2

    return factor


def part_of(of_ranks: list[dict[str, Any]], ranks: Ranks) -> dict[str, Any]:
    """What a checkpoint has of this rank. If it has another number of ranks, each gets the mean."""
    if len(of_ranks) == ranks.n:
        return of_ranks[ranks.rank]
    return {
        "losses": torch.stack([each["losses"] for each in of_ranks]).mean(0),
        "correct": torch.stack([each["correct"] for each in of_ranks]).sum(0) / ranks.parts,
        "batch_norm": [
            torch.stack(same).mean(0) for same in zip(*(each["batch_norm"] for each in of_ranks), strict=True)
        ],
        "unreadable_images": sum(each["unreadable_images"] for each in of_ranks) if ranks.is_first else 0,
    }


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[Batch], bf16: bool, ranks: Ranks | None = None) -> tuple[float, float]:
    """Mean cross-entropy and accuracy over the batches, those of all ranks together."""
    model.eval()
    totals = torch.zeros(3, device=next(model.parameters()).device)
    for images, labels in batches:
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=bf16):
            logits = model(images).float()
        loss = F.cross_entropy(logits, labels, reduction="sum")
        totals = totals + torch.stack([loss, (logits.argmax(1) == labels).sum(), loss.new_tensor(len(labels))])
    loss_sum, correct, count = (ranks.sum(totals) if ranks else totals).tolist()
    return loss_sum / count, correct / count


def check_finite(
    losses: Tensor,
    model: nn.Module,
    tested: dict[str, float | None],
    first_step: int,
    settings: Settings,
    ranks: Ranks,
) -> None:
    """Raise a SettingError if the loss of a step of the epoch, a weight or buffer or a tested loss is not finite.

    Weights are checked too, since BatchNorm can hide overflowed ones from the loss.
    """
    values = [t.float() for t in local(list(model.state_dict().values()))]
    known = losses.new_tensor([value for value in tested.values() if value is not None])
    finite = torch.cat([losses, nn.utils.get_total_norm(values).reshape(1), known]).isfinite()
    finite = ranks.sum(1 - finite.float()) == 0  # on all ranks
    if not finite.all():
        step = first_step + min(int((~finite).nonzero()[0]), len(losses))
        last = settings.folder / "last.pt"
        kept = f"{last} has the last state that was saved" if first_step or last.exists() else "nothing was saved"
        sizes = {f"base.{name}": value for name, value in settings.optimizer.base.arguments.items()}
        sizes |= settings.optimizer.arguments
        if settings.optimizer.inner:
            sizes |= {f"inner.{name}": value for name, value in settings.optimizer.inner.arguments.items()}
        suspects = ", ".join(
            f"optimizer.{name}={size}" for name, size in sizes.items() if name.endswith(STEP_SIZES) and size
        )
        raise SettingError(
            f"the loss or a weight is not finite at step {step}: {kept}; one of {suspects} may be too large"
        )
