"""Signals that end a job: the training saves its state after the current step before it obeys."""

import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

from sam_bench import ranks

# what Slurm, submitit, Kubernetes, cloud machines and Ctrl-C send
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
REPEAT = 75  # exit status EX_TEMPFAIL of sysexits.h: the same command will continue


class StopSignal:
    """Context manager: a signal is noted in `received`, and has its effect when `obey` is called.

    A second Ctrl-C interrupts at once. Signals that the process ignores are not noted. In a thread other than the main
    one nothing is noted, since Python has signal handlers only there.

    Args:
        also: called when a signal is received.
    """

    def __init__(self, also: Callable[[], None] = lambda: None) -> None:
        self.also = also
        self.received: int | None = None
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:
                    self.before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == number:
            raise KeyboardInterrupt
        self.received = number
        self.also()

    def obey(self, number: int) -> None:
        """Do what a signal does without this class: call its handler, interrupt, or exit with status `REPEAT`.

        A handler may return, as submitit's does for SIGTERM. Training then goes on.
        """
        self.received = None
        handler = self.before.get(number)
        if callable(handler):
            handler(number, None)
        else:
            if ranks.RANK == 0:
                name = signal.Signals(number).name
                print(f"\nstopped by {name}; the same command continues from the last step", file=sys.stderr)
            sys.exit(REPEAT)
