"""VGG-11 with BatchNorm for 32 x 32 images: the convolutions of VGG-11 and one linear layer.

Simonyan & Zisserman: Very Deep Convolutional Networks for Large-Scale Image Recognition, arXiv 1409.1556.
"""

from torch import nn


def vgg11_bn(num_classes: int = 10, in_chans: int = 3) -> nn.Sequential:
    """VGG-11-BN, 9.23 M parameters for 10 classes; the image's side must be 32 or more."""
    layers: list[nn.Module] = []
    channels = in_chans
    for width in (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool", 512, 512, "pool"):
        if isinstance(width, str):
            layers.append(nn.MaxPool2d(2))
        else:
            conv = nn.Conv2d(channels, width, 3, padding=1)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            layers += [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, num_classes))
