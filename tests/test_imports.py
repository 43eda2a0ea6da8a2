"""What imports what: the optimizers need torch alone, the modules form no cycle, and a run loads only what it needs."""

import ast
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent

STANDALONE = """
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import packages_distributions

needed = {"torch", *NEEDED}
installed = packages_distributions()
allowed = {name for name, of in installed.items() if needed & {d.lower().replace("_", "-") for d in of}}

class Blocker(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        own = name == "sam_bench" or name.startswith(("sam_bench.optim", "sam_bench.schedules", "sam_bench.testing"))
        if own or top in allowed or (top not in installed and top != "sam_bench"):
            return None
        return ModuleSpec(name, self)  # found, as torch's compiler looks for some, but not to be imported

    def create_module(self, spec):
        raise ModuleNotFoundError(f"blocked: {spec.name}", name=spec.name)

    def exec_module(self, module):
        raise NotImplementedError

sys.meta_path.insert(0, Blocker())
try:
    import pydantic
except ImportError as error:
    assert "blocked" in str(error)
else:
    raise AssertionError("nothing is blocked")
import torch
from sam_bench.optim import RST, SAM
from sam_bench.schedules import Linear
from sam_bench.testing import CHECKS

torch.manual_seed(0)
model = torch.nn.Linear(4, 2)
x, y = torch.randn(64, 4), torch.randint(2, (64,))
sam = SAM(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), rho=0.05, model=model)
rst = RST(sam, Linear(0, 1), total_steps=40, seed=0)
for optimizer in (sam, rst):
    def closure():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss
    losses = [optimizer.step(closure).item() for _ in range(40)]
    assert losses[-1] < losses[0]
assert 40 < rst.propagations - 80 < 80
loaded = {name.partition(".")[0] for name in sys.modules}
assert not loaded & {"pydantic", "hydra", "omegaconf", "wandb", "timm", "torchvision", "sklearn", "yaml", "tqdm"}
print("trained")
"""


def test_the_optimizers_need_torch_alone():
    """With every other third-party package blocked they import, and SAM and RST train."""
    names = {name.split(";")[0] for name in requires("torch")}
    needed = {part for name in names for part in [name.strip().split("=")[0].split("<")[0].split(">")[0].split("[")[0]]}
    needed |= {"numpy", "mpmath", "markupsafe"}  # optional, or what those need
    code = STANDALONE.replace("NEEDED", repr(sorted(needed)))
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "trained\n"), done.stderr


def imports() -> dict[str, set[str]]:
    """The modules of the package that each of them imports, also inside functions."""
    files = {
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): path
        for path in (REPOSITORY / "sam_bench").rglob("*.py")
    }
    graph: dict[str, set[str]] = {}
    for name, path in files.items():
        found = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                assert not node.level, f"{name}: a relative import"
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= {each if each in files else node.module for each in inner}
        graph[name] = found & files.keys()
    return graph


def cycle_in(graph: dict[str, set[str]]) -> list[str]:
    """The modules of a cycle, or none."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        for other in () if name in done else sorted(graph[name]):
            if found := visit(other, [*path, name]):
                return found
        done.add(name)
        return []

    return next(filter(None, (visit(name, []) for name in graph)), [])


def test_no_modules_import_each_other():
    graph = imports()
    assert len(graph) > 50
    assert cycle_in(graph) == []
    assert cycle_in(graph | {"sam_bench.errors": {"sam_bench.train"}}), "a cycle is not found"


@pytest.mark.parametrize("below", ["sam_bench.optim", "sam_bench.testing"])
def test_the_optimizers_import_nothing_of_the_application(below):
    for name, others in imports().items():
        if name.startswith(below):
            assert all(other.startswith(("sam_bench.optim", below)) for other in others), name


def test_a_run_loads_only_what_it_needs(tmp_path):
    """The default run: no compiler, no network or data of others."""
    code = (
        "import sys; from sam_bench.command import main; main(); "
        "print([name for name in ('torch._dynamo', 'timm', 'torchvision', 'sklearn', 'wandb') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, "logger=none", "trainer.epochs=1", f"runs={tmp_path / 'runs'}"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
