"""The code of the documents runs as it stands there; so do their commands, the long ones shortened as stated here."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from benchmarks import devices
from sam_bench import choose, curvature, dashboard, optim, sharpness, status
from sam_bench import command as entry_point
from sam_bench.curvature import Effort
from sam_bench.report import __main__ as report
from sam_bench.testing import __main__ as testing
from tests.command import TINY
from tests.processes import on_ranks

REPOSITORY = Path(__file__).parent.parent
DOCS = REPOSITORY / "docs"
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
PAGES = [page for page in PAGES if "_build" not in page.parts and page != DOCS / "api" / "methods.md"]  # made by Sphinx
# these have tests of their own: test_integrations.py and test_plugins.py
ELSEWHERE = {"loop.md", "ddp.md", "lightning.md", "accelerate.md", "timm.md", "extending.md"}
PYTHON = [
    (page.name, block)
    for page in PAGES
    if page.name not in ELSEWHERE
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
        **{
            "steps": 2,
            "closure": lambda: [model.zero_grad(), model(torch.randn(4, 1, 8, 8)).sum().backward(), torch.zeros(())][2],
        },
        **{"loader": [(0, 0)] * 2, "scheduler": SimpleNamespace(step=lambda: None)},
        **{"criterion": nn.functional.cross_entropy, "images": torch.randn(4, 1, 8, 8), "labels": torch.arange(4)},
        "factory": lambda model: optim.SAM(torch.optim.SGD(model.parameters(), lr=0.1), model=model),
    }


@pytest.mark.parametrize(("page", "block"), PYTHON, ids=lambda x: x[:30])
def test_a_block_of_code_runs(page, block):
    exec(block, names())


def test_the_page_of_the_files_has_every_key(command):
    command(*TINY, "trainer.test_perturbation=true", "sharpness=cheap", "optimizer=sam")
    (folder,) = command.folders()
    columns = (folder / "metrics.csv").read_text().partition("\n")[0].split(",")
    keys = list(json.loads((folder / "result.json").read_text()))
    _, of_metrics, of_result = (DOCS / "files.md").read_text().split("\n## ")
    for page, expected in ((of_metrics, columns), (of_result, keys)):
        first_cells = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
        assert sorted(re.findall(r"`(\w+)`", "".join(first_cells))) == sorted(expected)


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


def test_the_site_builds_without_warnings(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", DOCS, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "experiments" / "index.html").exists()
    api = (tmp_path / "api" / "methods.html").read_text()
    assert all(f'id="{name}"' in api for name in ("sam", "rst", "ssamf"))


# ------------------------------------------------------------------------------------------------------------ commands

# what replaces the same settings of a command
SHORT = {
    **{"dataset": "digits", "dataset.subset": "160", "model": "small_resnet", "logger": "none", "seed": "0"},
    **{"trainer": "short", "trainer.epochs": "1", "trainer.batch_size": "32"},
}
GONE = ("dataset.root", "model.architecture", "trainer.seeds")  # settings that are left out
MODULES = {
    "sam_bench.report": report,
    "sam_bench.choose": choose,
    "sam_bench.sharpness": sharpness,
    "sam_bench.dashboard": dashboard,
    "sam_bench.testing": testing,
    "benchmarks.devices": devices,
}


def commands_of(page):
    """The lines of its blocks without a language."""
    lines, language = [], None  # None: outside of a block
    for line in page.read_text().splitlines():
        if line.startswith("```"):
            language = line[3:] if language is None else None
        elif language == "" and line.strip():
            lines.append(line)
    return lines


def shortened(words):
    """The settings of a run or sweep, so that it takes seconds."""
    if any(word.startswith("+experiment=") and not word.endswith("rst_cifar10") for word in words):
        kept = [word.replace("protocol=cpu", "protocol=smoke") for word in words if not word.startswith("+tuned=")]
        return [*kept, "seed=0", "optimizer=sgd"]
    words = [
        word.replace("submitit_slurm", "submitit_local") for word in words if not word.startswith("hydra.launcher.")
    ]
    kept = [word for word in words if word.partition("=")[0] not in {*SHORT, *GONE}]
    return [*kept, *(f"{name}={value}" for name, value in SHORT.items())]


def run_line(line, monkeypatch):
    """Run a command of a page in this process; `make` only says what it would do."""
    words = [word for word in shlex.split(line, comments=True) if word != "&" and "DEVICES=" not in word]
    if words[0] == "make":
        subprocess.run(["make", "-n", *words[1:]], cwd=REPOSITORY, check=True, capture_output=True)
        return
    if words[0] == "torchrun":
        n = int(next(word for word in words if word.startswith("--nproc-per-node=")).partition("=")[2])
        status_, _, err = on_ranks(n, Path("printed"), *shortened(words[words.index("sam_bench") + 1 :]))
        assert status_ == 0, err
        return
    assert words[:2] == ["python", "-m"], line
    module, words = words[2], words[3:]
    if module == "sam_bench" and "GROUP=CHOICE" not in words and "--config-dir" not in words:
        settings = shortened([word for word in words if word != "-m"])
        monkeypatch.setattr(sys, "argv", ["sam_bench", *(["-m"] if "-m" in words else []), *settings])
        entry_point.main()
    elif module == "sam_bench.status":
        status.main(shortened(words))
    elif module in MODULES:
        words = [word.replace("experiments/tuning", "runs/smoke/tuning") for word in words]
        words = [str(path) for word in words for path in (sorted(Path().glob(word)) if "*" in word else [word])]
        words = [str(REPOSITORY / word) if word.startswith("benchmarks/") else word for word in words]
        words = [word.replace("my_package.MySAM", "sam_bench.optim.SAM") for word in words]
        words += ["--json"] * (module == "sam_bench.dashboard")  # saving needs an account
        words += ["runs/smoke/tuning"] * (module == "sam_bench.choose" and not words)
        monkeypatch.setattr(sys, "argv", [module, *words])
        MODULES[module].main(*([words] if MODULES[module] not in (testing, devices) else []))


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if commands_of(page) and page.name not in ELSEWHERE],
    ids=lambda page: str(page.relative_to(REPOSITORY)),
)
def test_every_command_of_a_page_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(curvature.EFFORTS, "full", Effort(64, 1, 1e-1, 2, line=5, plane=3, surface_images=32))
    lines = commands_of(page)
    if page.name == "experiments.md":  # which measures the sharpness of runs that others made
        run_line("python -m sam_bench optimizer=sam", monkeypatch)
    for line in lines:
        status_ = 0
        try:
            run_line(line, monkeypatch)
        except SystemExit as stop:
            status_ = stop.code
        assert not status_, f"{line}: {capsys.readouterr().err}"
