import math

import pytest

from sam_bench.conf_files import CONF
from sam_bench.schedules import Constant, Linear, Piecewise, Trigonometric

GRID = [i / 1000 for i in range(1001)]
EXAMPLES = [
    Constant(0.37),
    Piecewise(0, 0.5),
    Piecewise(1, 0.3),
    Piecewise(0.2, 0.5),
    Linear(0, 1),
    Linear(0.9, 0.1),
    Trigonometric(1, 0),
    Trigonometric(0.1, 0.8),
]


def test_every_family_has_an_example():
    files = {path.stem for path in (CONF / "schedule").glob("*.yaml")}
    assert {type(e).__name__.lower() for e in EXAMPLES} == files


@pytest.mark.parametrize("p", EXAMPLES, ids=str)
def test_stays_within_the_unit_interval(p):
    assert all(0 <= p(s) <= 1 for s in GRID)


def test_values():
    assert Constant(0.5)(0.9) == 0.5
    assert [Piecewise(0, 0.5)(s) for s in (0, 0.5, 0.51, 1)] == [0, 0, 1, 1]
    assert [Linear(0.2, 0.6)(s) for s in (0, 0.5, 1)] == pytest.approx([0.2, 0.4, 0.6])
    falling = Trigonometric(1, 0)
    assert [falling(s) for s in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])
    assert falling(1 / 3) == pytest.approx((1 + math.cos(math.pi / 3)) / 2)


@pytest.mark.parametrize("family", [Constant, lambda x: Piecewise(x, 0.5), lambda x: Piecewise(0.5, x)])
@pytest.mark.parametrize("value", [-0.01, 1.01, math.nan, math.inf, "0.5", True, None])
def test_what_leaves_the_unit_interval_is_refused(family, value):
    with pytest.raises(ValueError, match=r"Invalid \w+: .*in \[0, 1\]"):
        family(value)


@pytest.mark.parametrize("family", [Linear, Trigonometric])
@pytest.mark.parametrize("ends", [(-0.1, 1), (0, 1.1)])
def test_ends_outside_are_refused(family, ends):
    with pytest.raises(ValueError, match="Invalid"):
        family(*ends)
