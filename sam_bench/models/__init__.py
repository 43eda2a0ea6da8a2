"""Networks: every name that timm knows, and the CIFAR ones that it lacks, registered with it under `cifar_*`."""

import difflib
from typing import Any

import timm
from torch import nn

from sam_bench.errors import SettingError, reason
from sam_bench.models import pyramidnet, resnet, vgg, vit, wide_resnet
from sam_bench.settings import ModelSettings

__all__ = ["create", "pyramidnet", "resnet", "vgg", "vit", "wide_resnet"]


def create(settings: ModelSettings, classes: int, channels: int, image_size: int) -> nn.Module:
    """The network for images of (channels, image_size, image_size), freshly initialised from torch's global generator.

    Raises:
        SettingError: timm does not know the architecture, or it does not take the arguments or the image size.

    """
    name = settings.architecture
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=5) or ["none; timm.list_models() has all"]
        raise SettingError(f"model.architecture={name}: timm does not know it; near names: {', '.join(near)}")
    arguments: dict[str, Any] = {"num_classes": classes, "in_chans": channels, **settings.kwargs}
    try:
        try:  # the weights of a transformer have shapes that follow the image's
            return timm.create_model(name, img_size=image_size, **arguments)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            return timm.create_model(name, **arguments)
    except Exception as error:  # whatever a network of others raises, the settings are the reason
        raise SettingError(f"model.architecture={name}, model.kwargs={settings.kwargs}: {reason(error)}") from error
