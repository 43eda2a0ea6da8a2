"""Any optimizer of timm's, as a base."""

import difflib
from typing import Any

import torch
from timm.optim import create_optimizer_v2, list_optimizers

from sam_bench.errors import SettingError

NO_EXACT_RESUME = ("kron", "kronw")  # they draw from a generator that their state_dict leaves out


def timm_optimizer(params: list[dict[str, Any]], opt: str, lr: float, **further: Any) -> torch.optim.Optimizer:
    """`timm.optim.create_optimizer_v2` by its name there.

    Args:
        params: parameter groups.
        opt: any of `timm.optim.list_optimizers()` whose state can be resumed exactly.
        lr: the learning rate.
        further: arguments of that optimizer.

    Raises:
        SettingError: timm does not know the name, or its state cannot be resumed.

    """
    names = [name for name in list_optimizers() if name not in NO_EXACT_RESUME]
    if opt not in names:
        near = difflib.get_close_matches(str(opt), names, n=5) or ["none"]
        raise SettingError(
            f"optimizer.base.opt={opt}: near names are {', '.join(near)}; "
            f"all but {', '.join(NO_EXACT_RESUME)} of timm.optim.list_optimizers() are choices"
        )
    return create_optimizer_v2(params, opt=opt, lr=lr, **further)
