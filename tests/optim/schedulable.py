"""The methods that RST can wrap. Importing this module builds each of them."""

from torch import nn

from sam_bench.conf_files import wraps_a_method
from tests.optim.methods import FILES, NAMES, build, sgd


def is_schedulable(name: str) -> bool:
    """Whether `optimizer/inner=NAME` is a choice that RST accepts."""
    if wraps_a_method(FILES[name]) or "base" in FILES[name]:
        return False
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    return not build(name, model, sgd(model)).unschedulable


# the coin over every method that it can have, so that steps of both variants come in turn
SCHEDULABLE = [name for name in NAMES if is_schedulable(name)]
UNDER_RST = [f"rst over {name}" for name in SCHEDULABLE]
