"""Which steps vSAM samples: windows of K steps, each with a quota that follows the PSF (arXiv 2403.08821).

    A step is sampled with probability m/K until ⌊m⌋ steps of its window are sampled. If only as many steps are left as
    are needed to reach ⌊m⌋, all of them are sampled. From the sampled steps so far, a = ‖PSF‖ and b = ‖PSF‖/‖g‖:
        v_i = mean variance of 5 blocks of the last K values of a up to the i-th, sorted
        r₁, r₂ = mean relative change between successive values of the last K b, of the last K v, clipped to [-1, 1]
    After each window m ← m(1 + α₁r₁ + α₂r₂), clipped to [1, quota_max·K].

Deviations: if fewer steps were sampled, the available ones are used, and r = 0 if there are too few (the authors' lists
start with zeros, which they divide by).
"""

import math
import random
import statistics
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from sam_bench.optim.checks import ArgumentError, require_integer, require_number

BLOCKS = 5
MAX_WINDOW = 10_000  # the statistics at its end take time in proportion to its square


class Window:
    """The current window of K steps, from 1 to 10,000. a and b of the last 2K sampled steps stay on the device.

    `quota` is m of the first window, `quota_max` its maximum as a share of K, `alphas` are α₁ and α₂ ≥ 0.
    """

    def __init__(
        self,
        K: int,  # noqa: N803
        quota: float,
        quota_max: float,
        alphas: tuple[float, float],
        seed: int,
        device: torch.device,
    ) -> None:
        require_integer("window", K, low=1, high=MAX_WINDOW)
        require_number("quota_max", quota_max, above=0, high=1)
        if quota_max * K < 1:
            allowed = f"at least 1/quota_max, which is {1 / quota_max:g}, so that one step of a window is sampled"
            raise ArgumentError("window", K, allowed)
        self.K, self.m, self.m_max = K, float(quota), float(max(1, int(quota_max * K)))
        require_number("quota", quota, low=1, high=self.m_max)
        require_number("alpha_1", alphas[0], low=0)
        require_number("alpha_2", alphas[1], low=0)
        require_integer("seed", seed, low=0)
        self.alphas, self.seed = alphas, seed
        self.done = 0  # sampled in this window
        self.n = 0  # sampled in all
        self.norms = torch.zeros(2, 2 * K, device=device, dtype=torch.float32)
        self.at = torch.zeros(1, dtype=torch.int64, device=device)  # where the next a and b go

    def begin(self, t: int, place: int) -> bool:
        """Whether step t, which has this position in its window, is sampled."""
        self.at.fill_(self.n % (2 * self.K))
        u, lacking = random.Random((self.seed << 64) + t).random(), int(self.m) - self.done
        return lacking > 0 and (u < self.m / self.K or self.K - place <= lacking)

    def note(self, a: Tensor, b: Tensor) -> None:
        """Keep the norms of a sampled step, on the device."""
        self.norms.index_copy_(1, self.at, torch.stack([a, b])[:, None].to(self.norms.dtype))

    def close(self) -> None:
        """Set a new quota. Waits for the device."""
        n = min(self.n, 2 * self.K)
        a, b = self.norms.roll(-(self.n % (2 * self.K)), 1)[:, -n:].tolist() if n else ([], [])
        last = [a[max(0, i - self.K) : i] for i in range(1, n + 1)]
        v = [block_variance(values) for values in last if len(values) >= 2 * BLOCKS]
        r = relative_change(b[-self.K :]), relative_change(v[-self.K :])
        m = self.m * (1 + self.alphas[0] * r[0] + self.alphas[1] * r[1])
        self.m, self.done = min(max(m, 1.0), self.m_max), 0

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"m": self.m, "done": self.done, "n": self.n, "norms": self.norms}

    def load(self, state: dict[str, Any]) -> None:
        """Load what `state` returned."""
        self.m, self.done, self.n = state["m"], state["done"], state["n"]
        self.norms.copy_(state["norms"])


def block_variance(values: list[float]) -> float:
    """Mean of the unbiased variances of five blocks of the sorted values, of which there are at least ten."""
    values = sorted(values)
    size = len(values) / BLOCKS
    blocks = [values[round(i * size) : round((i + 1) * size)] for i in range(BLOCKS)]
    return statistics.fmean(statistics.variance(block) for block in blocks)


def relative_change(values: list[float]) -> float:
    """Mean of the relative changes between successive values, clipped to [-1, 1]; 0 if there is none."""
    # leaves out those of a loss that is no longer finite, which the trainer reports at the end of the epoch
    changes = [change for old, new in pairwise(values) if old and math.isfinite(change := (new - old) / old)]
    return min(max(statistics.fmean(changes), -1.0), 1.0) if changes else 0.0
