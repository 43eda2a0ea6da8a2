"""The code of the documents runs as it stands there."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from sam_bench import optim

DOCS = Path(__file__).parent.parent / "docs"
PYTHON = [
    (page.name, block)
    for page in sorted(DOCS.glob("*.md"))
    if page.name in ("migrating.md", "contract.md")
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
]
HERE = re.findall(r"^\| `[^|]*\| `([A-Z]\w+\([^`]*\))`", (DOCS / "migrating.md").read_text(), re.MULTILINE)


def names() -> dict:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 5))
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    return {
        **vars(optim),
        **{"torch": torch, "SGD": torch.optim.SGD, "model": model, "base": base, "k": 3},
        **{"criterion": nn.functional.cross_entropy, "images": torch.randn(4, 1, 8, 8), "labels": torch.arange(4)},
        "factory": lambda model: optim.SAM(torch.optim.SGD(model.parameters(), lr=0.1), model=model),
    }


@pytest.mark.parametrize(("page", "block"), PYTHON, ids=lambda x: x[:30])
def test_a_block_of_code_runs(page, block):
    exec(block, names())


def test_there_are_calls_in_the_tables():
    assert len(HERE) >= 6


@pytest.mark.parametrize("call", HERE)
def test_a_call_of_the_tables_makes_an_optimizer(call):
    assert isinstance(eval(call, names()), torch.optim.Optimizer)


def test_the_error_for_the_old_call_is_the_one_shown():
    page = (DOCS / "migrating.md").read_text()
    (call, message) = re.search(r">>> (.*)\nTypeError: (.*)", page).groups()
    with pytest.raises(TypeError) as raised:
        eval(call, names())
    assert str(raised.value) == message
