"""PyramidNet: residual blocks whose width grows by the same step in every block.

Han, Kim, Kim: Deep Pyramidal Residual Networks, arXiv 1610.02915. Basic blocks: depth 6n + 2, widths from 16 to 16 + α.
The shortcut pools where the image shrinks and pads the new channels with zeros.
"""

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


class PyramidBlock(nn.Module):
    """BN, convolution, BN, ReLU, convolution, BN, with a shortcut that has no weights."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.new_channels, self.stride = channels - channels_in, stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels_in, H, W) to (N, channels, H/stride, W/stride)."""
        out = self.bn3(self.conv2(F.relu(self.bn2(self.conv1(self.bn1(x))))))
        shortcut = x if self.stride == 1 else F.avg_pool2d(x, 2, 2, ceil_mode=True)
        return out + F.pad(shortcut, (0, 0, 0, 0, 0, self.new_channels))


class PyramidNet(nn.Module):
    """PyramidNet of basic blocks for small images of any size."""

    def __init__(self, depth: int, alpha: int, num_classes: int = 10, in_chans: int = 3) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ValueError(f"depth={depth}: should be 6n + 2, such as 20 or 110")
        total = 3 * blocks
        widths = [16 + round(alpha * i / total) for i in range(total + 1)]
        self.conv1 = nn.Conv2d(in_chans, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(
            *(
                PyramidBlock(widths[i], widths[i + 1], stride=2 if i in (blocks, 2 * blocks) else 1)
                for i in range(total)
            )
        )
        self.bn = nn.BatchNorm2d(widths[-1])
        self.fc = nn.Linear(widths[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, num_classes)."""
        x = F.relu(self.bn(self.blocks(self.bn1(self.conv1(x)))))
        return self.fc(x.mean((2, 3)))


def pyramidnet110(num_classes: int = 10, in_chans: int = 3) -> PyramidNet:
    """PyramidNet-110 with α = 270, 28.5 M parameters for 10 classes."""
    return PyramidNet(110, 270, num_classes, in_chans)
