"""The training steps that are timed: ours, as in `sam_bench.train`, and those of others for comparison."""

import subprocess
import sys
from functools import cache
from typing import Any, Protocol

import torch

from sam_bench import machine
from sam_bench.configuration import compose_settings
from sam_bench.data import Arrays
from sam_bench.run import Run
from sam_bench.settings import Settings
from sam_bench.train import should_capture

NOISE = ["dataset=cifar10", "dataset._target_=benchmarks.contenders.noise"]
COMMON = ["schedule=constant", "trainer=paper", "logger=none"]


@cache  # every contender trains on it
def noise(root: Any = None) -> Arrays:
    """A data set of CIFAR-10's shape and size without its files: no time depends on a pixel's value."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(256, (60_000, 32, 32, 3), dtype=torch.uint8, generator=draw)
    labels = torch.randint(10, (60_000,), generator=draw)
    return Arrays(images[:50_000], labels[:50_000], images[50_000:], labels[50_000:], classes=10)


def settings_of(*overrides: str) -> Settings:
    """The settings that the command line would give; without a `dataset=`, on noise of CIFAR's shape."""
    chosen = [] if any(word.startswith("dataset=") for word in overrides) else NOISE
    return compose_settings(*chosen, *COMMON, *overrides)


class Contender(Protocol):
    """Something that trains."""

    untimed: int  # steps before each timing: threads wake up, caches fill, and a loader's waiting batches are used up

    def go(self, steps: int) -> float:
        """Run the steps and wait for the device. Returns their counted cost: propagations + forwards / 3."""
        ...


class Ours:
    """A run of ours, step after step."""

    untimed = 1

    def __init__(self, *overrides: str) -> None:
        settings = settings_of(*overrides)
        trainer = settings.trainer
        self.device = machine.pick_device(trainer.device)
        machine.set_determinism(trainer.deterministic)
        machine.keep_freed_memory()
        self.run = Run(settings, self.device)
        self.captured = should_capture(settings, self.run)
        self.compiled = trainer.compile is True  # auto is for whole trainings
        self.run.prepare(self.compiled, self.captured, 0.0)
        with self.run.on_stream():
            self.run.start()

    def launch(self) -> None:
        """One step, without waiting for it."""
        with self.run.on_stream():
            if self.run.step_of_epoch == self.run.steps_per_epoch:
                self.run.next_epoch()
                self.run.start()
            self.run.step()

    def go(self, steps: int) -> float:
        """So many steps."""
        before = self.counted()
        for _ in range(steps):
            self.launch()
        machine.wait_for(self.device)
        return self.counted() - before

    def counted(self) -> float:
        """What was spent so far."""
        return self.run.optimizer.propagations + self.run.optimizer.forwards / 3

    def extra_copies(self) -> float:
        """What the method keeps beside its base, in copies of the weights."""
        weights = sum(p.numel() * p.element_size() for p in self.run.model.parameters())
        return self.run.optimizer.extra_bytes / weights


class PytorchOptimizerSAM(Ours):
    """SAM of the package pytorch_optimizer, in our loop; as its users call it, without care for BatchNorm."""

    def __init__(self, *overrides: str) -> None:
        from pytorch_optimizer import SAM

        super().__init__("optimizer=sam", "trainer.cuda_graphs=false", *overrides)
        base: Any = self.run.settings.optimizer.base.arguments
        self.sam: Any = SAM(self.run.model.parameters(), torch.optim.SGD, rho=0.05, **base)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.sam, self.run.steps)
        self.run.closure.optimizer = self.sam
        self.run.model.train()

    def launch(self) -> None:
        """One step: the first pass is the caller's, the second is the optimizer's."""
        run = self.run
        with run.on_stream():
            if run.step_of_epoch == run.steps_per_epoch:
                run.next_epoch()
                run.start()
            run.dataset.fetch()
            torch.manual_seed(run.step_of_epoch)
            run.closure.batch(*run.dataset.batch())
            loss = run.closure()
            self.sam.step(run.closure)
            assert run.losses is not None
            run.losses[run.step_of_epoch] = loss
            run.correct += run.closure.correct()
            self.scheduler.step()
            run.step_of_epoch += 1

    def go(self, steps: int) -> float:
        """So many steps, of two passes each."""
        super().go(steps)
        return 2.0 * steps


class Plain:
    """The loop of `benchmarks.plain` in a process of its own, which steps when it is told to."""

    def __init__(self, *options: str, workers: int = 0) -> None:
        self.untimed = 1 + 2 * workers
        options = (*options, "--workers", str(workers))
        command = [sys.executable, "-m", "benchmarks.plain", *options]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer()

    def go(self, steps: int) -> float:
        """So many steps of SGD."""
        assert self.process.stdin
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> float:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{' '.join(self.process.args)} ended")  # type: ignore[arg-type]
        return float(line)
