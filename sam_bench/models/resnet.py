"""ResNet-18 and ResNet-50 for 32 x 32 images: a 3 x 3 first convolution of stride 1, and no pooling after it.

He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, arXiv 1512.03385; the CIFAR form is the one that the
sharpness-aware literature trains.
"""

from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn


def _cifar_stem(model: ResNet, in_chans: int) -> ResNet:
    model.conv1 = nn.Conv2d(in_chans, 64, kernel_size=3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return model


def resnet18(num_classes: int = 10, in_chans: int = 3) -> ResNet:
    """ResNet-18, 11.17 M parameters for 10 classes."""
    return _cifar_stem(ResNet(BasicBlock, (2, 2, 2, 2), num_classes=num_classes, in_chans=in_chans), in_chans)


def resnet50(num_classes: int = 10, in_chans: int = 3) -> ResNet:
    """ResNet-50, 23.52 M parameters for 10 classes."""
    return _cifar_stem(ResNet(Bottleneck, (3, 4, 6, 3), num_classes=num_classes, in_chans=in_chans), in_chans)
