"""Wide residual networks of pre-activation blocks, and the small default ResNet, which is the narrowest of them.

Zagoruyko & Komodakis: Wide Residual Networks, arXiv 1605.07146: depth 6n + 4 with n blocks in each of three stages of
16k, 32k and 64k channels.
"""

from itertools import pairwise

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


class PreActBlock(nn.Module):
    """BN, ReLU, 3 x 3 convolution, twice; where the shape changes, a 1 x 1 convolution of the activated input."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        change = stride != 1 or channels_in != channels
        self.shortcut = nn.Conv2d(channels_in, channels, 1, stride, bias=False) if change else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels_in, H, W) to (N, channels, H/stride, W/stride)."""
        activated = F.relu(self.bn1(x), inplace=True)
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        return self.conv2(F.relu(self.bn2(self.conv1(activated)), inplace=True)) + shortcut


class WideResNet(nn.Module):
    """WRN-depth-widen for small images of any size."""

    def __init__(self, depth: int, widen: int, num_classes: int = 10, in_chans: int = 3) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        if rest or blocks < 1:
            raise ValueError(f"depth={depth}: should be 6n + 4, such as 10, 16 or 28")
        widths = [16, 16 * widen, 32 * widen, 64 * widen]
        self.conv1 = nn.Conv2d(in_chans, widths[0], 3, 1, 1, bias=False)
        stages = []
        for i, (channels_in, channels) in enumerate(pairwise(widths)):
            stages.append(PreActBlock(channels_in, channels, stride=1 if i == 0 else 2))
            stages.extend(PreActBlock(channels, channels, stride=1) for _ in range(blocks - 1))
        self.blocks = nn.Sequential(*stages)
        self.bn = nn.BatchNorm2d(widths[-1])
        self.fc = nn.Linear(widths[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, num_classes)."""
        x = F.relu(self.bn(self.blocks(self.conv1(x))), inplace=True)
        return self.fc(x.mean((2, 3)))


def small_resnet(num_classes: int = 10, in_chans: int = 3) -> WideResNet:
    """The default: ten layers of 16, 32 and 64 channels, 78 k parameters; trains on a CPU in seconds."""
    return WideResNet(10, 1, num_classes, in_chans)


def wrn10_2_stride2(num_classes: int = 10, in_chans: int = 3) -> WideResNet:
    """WRN-10-2 whose first convolution has stride 2, 304 k parameters for 10 classes.

    Four times the parameters of `small_resnet` in half its time on a CPU.
    """
    model = WideResNet(10, 2, num_classes, in_chans)
    model.conv1.stride = (2, 2)
    return model


def wrn16_4(num_classes: int = 10, in_chans: int = 3) -> WideResNet:
    """WRN-16-4, 2.7 M parameters for 10 classes."""
    return WideResNet(16, 4, num_classes, in_chans)


def wrn28_10(num_classes: int = 10, in_chans: int = 3) -> WideResNet:
    """WRN-28-10, 36.5 M parameters for 10 classes."""
    return WideResNet(28, 10, num_classes, in_chans)
