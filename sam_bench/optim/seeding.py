"""Seeds that follow from a purpose, the run's seed and a step, so that no generator state needs to be saved."""

import hashlib


def derived_seed(purpose: str, seed: int, moment: int = 0, rank: int = 0) -> int:
    """A 48-bit seed for one purpose (`"dropout"`, `"augmentation"`, ...) at one epoch or step.

    Equal arguments give equal seeds, on every rank and after every resume; different ones give independent seeds. Give
    the rank for what should differ between ranks.
    """
    text = f"{purpose} {seed} {moment}" + (f" {rank}" if rank else "")
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6])
