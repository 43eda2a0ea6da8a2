"""The method that the recipe of docs/extending.md adds: it is there, trains, and is in the catalogue."""

import json
import os
from pathlib import Path

import pytest

from tests.command import TINY
from tests.optim.methods import NAMES
from tests.recipe import files_of_the_recipe

REPOSITORY = Path(__file__).parent.parent
followed = pytest.mark.skipif("SAM_BENCH_RECIPE" not in os.environ, reason="make test follows the recipe in a copy")


def test_it_writes_two_files():
    assert list(files_of_the_recipe()) == ["sam_bench/optim/signsam.py", "conf/optimizer/signsam.yaml"]


@followed
@pytest.mark.parametrize(
    ("arguments", "label"), [(["optimizer=signsam"], "signsam"), (["optimizer=rst", "optimizer/inner=signsam"], "rst")]
)
def test_it_trains(arguments, label, command):
    status, _, err = command(*TINY, *arguments)
    assert status == 0, err
    (folder,) = command.folders()
    result = json.loads((folder / "result.json").read_text())
    assert (result["optimizer"], result["config"]["optimizer"]["_target_"].count("SignSAM")) == (
        label,
        label == "signsam",
    )
    assert result["sharpness_aware_steps"] > 0


@followed
def test_it_is_in_the_battery_and_the_catalogue():
    assert "signsam" in NAMES
    page = (REPOSITORY / "docs" / "methods.md").read_text()
    assert "| [`signsam`](#signsam) | 1 + ascent_share | 1 |" in page
