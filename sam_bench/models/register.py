"""Our networks under timm's `create_model`."""

import functools
from collections.abc import Callable
from typing import Any

import timm
from torch import nn


def register(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Make timm know `build` by its name; `build` takes num_classes, in_chans and what else is its own."""

    @functools.wraps(build)
    def entry(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: Any = None,
        cache_dir: Any = None,
        **kwargs: Any,
    ) -> nn.Module:
        if pretrained:
            raise ValueError(f"Invalid pretrained: {build.__name__} has no pretrained weights")
        return build(**kwargs)

    return timm.models.register_model(entry)
