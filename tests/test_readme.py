"""What the README says is so."""

import re
import shlex
from pathlib import Path

import pytest

from sam_bench import report
from tests.command import settings

REPOSITORY = Path(__file__).parent.parent
README = (REPOSITORY / "README.md").read_text()
COMMANDS = re.findall(r"^python -m sam_bench (?!\.)(.+)$", README, re.MULTILINE)


@pytest.mark.parametrize("arguments", COMMANDS)
def test_every_command_is_a_valid_one(arguments):
    words = [word for word in shlex.split(arguments, comments=True) if word != "-m"]
    choices = [re.sub(r"=([^\[]*?),.*", r"=\1", word) for word in words]  # the first of a sweep's
    assert settings(*choices).config_hash


def test_the_measured_table_is_the_report_of_the_committed_results():
    table = report.table(report.collect([REPOSITORY / "experiments" / "cifar10_5000"]))
    assert table in README
    assert table in (REPOSITORY / "experiments" / "cifar10_5000" / "README.md").read_text()


def test_every_registered_method_is_in_the_table():
    from sam_bench.methods import METHODS

    for name in METHODS:
        assert f"`{name}`" in README
