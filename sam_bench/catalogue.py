"""The page of the methods, from the classes and the files in conf/optimizer/: `make docs` writes docs/methods.md."""

import re
import sys
from functools import cache
from itertools import dropwhile, takewhile
from textwrap import dedent
from typing import Any

import torch
from torch import nn

from sam_bench.build import Training
from sam_bench.conf_files import CONF, optimizer_files, own_settings, wraps_a_method
from sam_bench.optim import SAM, Descent
from sam_bench.settings import Target, for_dataset, leaves

INTRODUCTION = """\
# The methods

A *propagation* is one forward and backward pass over the whole batch. A pass over a share of the batch counts as that
share. Forward passes without a backward pass are counted separately, as *forwards*. The *counted cost* is propagations
plus a third of the forwards. *Memory* is what a method keeps in addition to the weights, the gradients and the state of
the base optimizer, in copies of the weights. *Single samples*: the method needs
[per-sample losses](integrations/loop.md#methods-that-need-per-sample-losses). *Under RST*: RST can schedule it, as
`optimizer=rst optimizer/inner=NAME`.

The defaults are those of the command line. They hold for CIFAR-10 and for every data set except CIFAR-100, whose values
are in parentheses. A value on the command line replaces them. The Python constructors may have other defaults, see
[the API](api/index.md). A setting `x_epochs` is the argument `x_steps` of the constructor, counted in steps. The base
optimizer has settings of its own, `optimizer.base.lr` and the like, in `conf/optimizer/base/`.

In the formulas, θ are the weights, L_B is the mean loss of the batch B, g = ∇L_B(θ), ε is the perturbation, ρ its
radius, gₛ = ∇L_B(θ + ε), ⊙ is the elementwise product, and t is the current one of T steps. The inner method is the
one that RST, G-RST, late SAM and S²-SAM wrap.

`make docs` writes this page from the classes and the files in `conf/optimizer/`."""
HEAD = "`optimizer=` | propagations per step | memory | single samples | under RST | paper"
ARGUMENT = re.compile(r"^ {8}(\w+): (.*?)(?=^ {0,8}\S|\Z)", re.MULTILINE | re.DOTALL)
OWN_PAPER = re.compile(r"\(([^()]*arXiv [\d.]+)\)")  # in the header of a variant
SETTING = re.compile(r"(\w+): .*?  # (.*)")


def build(name: str, base: torch.optim.Optimizer, training: Training, **settings: Any) -> Descent:
    """A method as its file in conf/optimizer/ describes it, around a base; a method that wraps another one, around SAM.

    Args:
        name: of the file.
        base: the base optimizer.
        training: what the method may ask to know.
        settings: override those of the file.
    """
    file = optimizer_files(CONF)[name]
    own = own_settings(file)
    own |= for_dataset(own, "cifar10") | {"name": name} | settings
    if not wraps_a_method(file):
        return training.method("optimizer", Target.model_validate(own), base)
    if own.get("schedule") == "${schedule}":  # the chosen one of conf/schedule/
        own["schedule"] = {"_target_": "sam_bench.schedules.Constant", "p": 0.5}
    return training.method("optimizer", Target.model_validate(own), SAM(base, model=training.model))


@cache
def with_defaults(name: str) -> Descent:
    """The method with its defaults, on a small problem."""
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sample = torch.ones(1, 4), torch.zeros(1)
    return build(name, base, Training(model, 100_000, 100, 0, 6400, 64, lambda n, seed: sample))


def row(name: str) -> str:
    """A method's line of the table."""
    optimizer, file = with_defaults(name), optimizer_files(CONF)[name]
    cells = [
        f"[`{name}`](#{name})",
        optimizer.cost,
        str(optimizer.memory_copies),
        "yes" if optimizer.samplewise else "",
        "" if optimizer.unschedulable or "base" in file else "yes",
        linked(optimizer.paper if is_own(name) else "".join(OWN_PAPER.findall(header_of(name))[:1])),
    ]
    return f"| {' | '.join(cells)} |"


def linked(paper: str) -> str:
    """A paper with links to arXiv."""
    return re.sub(r"\b(\d{4}\.\d{5})\b", r"[\1](https://arxiv.org/abs/\1)", paper)


def comment_of(name: str) -> list[str]:
    """The lines of the comment at the head of a method's file."""
    lines = (CONF / "optimizer" / f"{name}.yaml").read_text().splitlines()
    return [line.removeprefix("#").removeprefix(" ") for line in takewhile(lambda line: line.startswith("#"), lines)]


def header_of(name: str) -> str:
    """The comment at the head of a method's file, without its formula."""
    return " ".join(line for line in comment_of(name) if not line.startswith("    ")).strip()


def is_own(name: str) -> bool:
    """Whether a method has a class of its own, and is not a variant of another method."""
    return type(with_defaults(name)).__name__.lower() == name.replace("_", "")


def section(name: str) -> str:
    """What the files of a method say of it: its name, header, formula and state, and a table of its settings."""
    optimizer = with_defaults(name)
    lead = (sys.modules[type(optimizer).__module__].__doc__ or "").partition("\n")[0]
    parts = [f"## `{name}`", *([lead] if is_own(name) else []), linked(header_of(name))]
    own = "\n".join(line.strip() for line in comment_of(name) if line.startswith("    "))
    if formula := own or formula_of(type(optimizer)):
        parts.append(f"```text\n{formula}\n```")
    if optimizer.state_contents:
        parts.append(f"A checkpoint also holds {optimizer.state_contents}.")
    if optimizer.waits:
        parts.append(f"It synchronizes with the GPU {optimizer.waits}.")
    if settings := settings_of(name):
        rows = [f"| `{key}` | {default} | {meaning} |" for key, default, meaning in settings]
        parts.append("\n".join(["| setting | default | meaning |", "| --- | --- | --- |", *rows]))
    return "\n\n".join(parts)


def formula_of(method: type[Descent]) -> str:
    """The indented blocks of the header of a method's file, up to the next paragraph about something else."""
    lines = (sys.modules[method.__module__].__doc__ or "").splitlines()
    indented = dropwhile(lambda line: not line.startswith("    "), lines)
    block = takewhile(lambda line: not line.strip() or line.startswith("    "), indented)
    return "" if method is Descent else dedent("\n".join(block)).strip()


def meanings(name: str) -> dict[str, str]:
    """What each setting means: its comment in the file of the method, or else the docstring of the class."""
    found: dict[str, str] = {}
    for cls in reversed(type(with_defaults(name)).__mro__):
        for key, text in ARGUMENT.findall(cls.__doc__ or ""):
            found[key] = " ".join(text.split()).rstrip(".")
    return found | dict(SETTING.findall((CONF / "optimizer" / f"{name}.yaml").read_text()))


def settings_of(name: str) -> list[tuple[str, str, str]]:
    """The settings of a method: name, default and meaning."""
    own = own_settings(optimizer_files(CONF)[name])
    known = meanings(name)
    on_cifar100 = for_dataset(own, "cifar100")
    found = []
    for key, value in leaves(own | for_dataset(own, "cifar10")):
        if value == "${schedule}" or "_target_" in key:
            continue
        default = f"`{'null' if value is None else str(value).lower()}`"
        if key in on_cifar100:
            default += f" (CIFAR-100: `{on_cifar100[key]}`)"
        found.append((key, default, known.get(key.rpartition(".")[2], "").replace("|", "\\|")))
    return found


def catalogue() -> str:
    """The whole page."""
    names = list(optimizer_files(CONF))
    table = "\n".join([f"| {HEAD} |", "|" + " --- |" * len(HEAD.split(" | ")), *map(row, names)])
    return "\n\n".join([INTRODUCTION, table, *map(section, names)])


if __name__ == "__main__":
    print(catalogue())
