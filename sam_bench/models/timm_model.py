"""Any network of timm's."""

import difflib
from typing import Any

import timm
from torch import nn

from sam_bench.errors import SettingError


def timm_model(
    architecture: str, kwargs: dict[str, Any], *, num_classes: int, in_chans: int, img_size: int
) -> nn.Module:
    """`timm.create_model` by its name there, without pretrained weights.

    Args:
        architecture: any of `timm.list_models()`.
        kwargs: further arguments.
        num_classes: number of classes of the data set.
        in_chans: number of channels of its images.
        img_size: their side in pixels.

    Raises:
        SettingError: timm does not know the name, or an argument follows from the data set.

    """
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=5) or ["none; timm.list_models() has all"]
        raise SettingError(f"model.architecture={architecture}: timm does not know it; near names: {', '.join(near)}")
    if taken := sorted({"num_classes", "in_chans", "img_size"} & set(kwargs)):
        raise SettingError(f"model.kwargs.{taken[0]}={kwargs[taken[0]]}: follows from the data set")
    arguments = {"num_classes": num_classes, "in_chans": in_chans, **kwargs}
    try:  # the weights of a transformer have shapes that depend on the image's
        return timm.create_model(architecture, img_size=img_size, **arguments)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        return timm.create_model(architecture, **arguments)
