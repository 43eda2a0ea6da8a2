"""The files of a run beside its checkpoint: `config.yaml`, `metrics.csv`, `result.json`; and the table it prints."""

import csv
import io
import json
import platform
import subprocess
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)

from sam_bench import files
from sam_bench.errors import SettingError, reason
from sam_bench.settings import Settings, hash_of, leaves, what_is_wrong

FORMAT = 1  # of result.json; results without one are of format 0, which lacks some of the keys
PACKAGES = ("torch", "torchvision", "timm", "hydra-core", "wandb")


Loss = Annotated[FiniteFloat, Field(gt=-1e30, lt=1e30)]  # what can be drawn


class Sharpness(BaseModel):
    """The measures of `sam_bench.curvature`; there may be more."""

    model_config = ConfigDict(extra="allow", strict=True)

    kind: str
    lambda_max: FiniteFloat
    trace: FiniteFloat
    loss_rise: FiniteFloat
    m_sharpness: FiniteFloat
    adaptive_sharpness: FiniteFloat
    line: "Line | None" = None
    plane: "Plane | None" = None


class Line(BaseModel):
    """A loss surface of one dimension; None where the loss overflowed."""

    distance: list[FiniteFloat] = Field(min_length=2, max_length=1000)
    loss: list[FiniteFloat | None]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(self.loss) != len(self.distance):
            raise ValueError("loss should have one number for each distance")
        return self


class Plane(BaseModel):
    """A loss surface of two dimensions."""

    distance: list[FiniteFloat] = Field(min_length=2, max_length=1000)
    loss: list[list[FiniteFloat | None]]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        side = len(self.distance)
        if len(self.loss) != side or any(len(row) != side for row in self.loss):
            raise ValueError("loss should have one row and column for each distance")
        return self


class Result(BaseModel):
    """What `result.json` must hold for the tables; it holds more."""

    model_config = ConfigDict(extra="allow", strict=True)

    format: int = Field(ge=0, le=FORMAT)
    optimizer: str
    schedule: str | None
    dataset: str
    model: str
    seed: int = Field(ge=0, lt=2**31)
    epochs: PositiveInt
    steps: int = Field(gt=0, lt=10**15)
    train_images: int = Field(gt=0, lt=10**15)
    test_accuracy: FiniteFloat = Field(ge=0, le=1)
    test_loss: Loss
    train_loss: Loss
    propagations_per_step: FiniteFloat = Field(ge=0, le=1000)
    forwards_per_step: FiniteFloat = Field(ge=0, le=1000)
    expected_propagations_per_step: FiniteFloat = Field(ge=0, le=1000)
    sharpness_aware_steps: NonNegativeInt
    seconds: FiniteFloat = Field(gt=0, lt=1e12)
    images_per_second: FiniteFloat = Field(gt=0, lt=1e12)
    peak_memory_bytes: NonNegativeInt
    extra_copies: FiniteFloat | None = None
    validation_accuracy: FiniteFloat | None = Field(default=None, ge=0, le=1)
    validation_images: NonNegativeInt = 0
    unreadable_images: NonNegativeInt = 0
    parameters: NonNegativeInt | None = None
    test_seconds: FiniteFloat = 0.0
    sharpness: Sharpness | None = None
    inner: str | None = None
    experiment: str | None = None
    protocol: str | None = None
    tuned: str | None = None
    stated: list[str] | None = None  # results of earlier versions do not say
    git_commit: str | None = None
    versions: dict[str, str] = {}
    device: str
    precision: str
    config_hash: str
    config: dict[str, Any]


def read(folder: Path) -> dict[str, Any] | None:
    """The result of a finished run; None if it is not finished.

    Raises a SettingError if there is a result, but it is broken.
    """
    path = folder / "result.json"
    try:
        result = json.loads(path.read_text())
        Result.model_validate({"format": 0, **result} if isinstance(result, dict) else result)
        list(leaves(result["config"]))  # no deeper than tables can follow
        if result.get("format") and hash_of(result["config"]) != result["config_hash"]:
            raise ValueError("its config_hash is not that of its config")
    except FileNotFoundError:
        return None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        what = f"{'.'.join(map(str, first['loc'])) or 'result'}: {what_is_wrong(error)}"
        raise SettingError(f"{path}: is not a valid result ({what}); move it away to train again") from error
    except (OSError, ValueError, RecursionError) as error:
        raise SettingError(f"{path}: is not a valid result ({reason(error)}); move it away to train again") from error
    return result


def read_of(settings: Settings) -> dict[str, Any] | None:
    """The result of this run if it is finished. Raises a SettingError if the one in its folder is not its own."""
    result = read(settings.folder)
    if result and (result["config_hash"], result["seed"]) != (settings.config_hash, settings.seed):
        whose = f"config_hash {result['config_hash']}, seed {result['seed']}"
        raise SettingError(
            f"{settings.folder / 'result.json'}: is the result of another run ({whose}); give another runs=FOLDER"
        )
    return result


def is_finished(settings: Settings) -> bool:
    """Whether this run has its result, with the sharpness that the settings ask for."""
    try:
        result = read_of(settings)
    except SettingError:
        return False
    return result is not None and has_sharpness(result, settings.sharpness)


def write_metrics(folder: Path, rows: list[dict[str, Any]]) -> None:
    """`metrics.csv`, one row per epoch."""
    text = io.StringIO()
    columns = list(dict.fromkeys(name for row in rows for name in row))  # some may be new since a resume
    writer = csv.DictWriter(text, fieldnames=columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files.replace(folder / "metrics.csv", text.getvalue())


def write_result(folder: Path, result: dict[str, Any]) -> None:
    """`result.json`, the last file of a run: its presence means that the run is finished."""
    files.replace(folder / "result.json", json.dumps(result, indent=2) + "\n")


def counted_cost(result: dict[str, Any]) -> float:
    """Counted cost per step: propagations plus a third of the forwards. SGD's is 1."""
    return result["propagations_per_step"] + result["forwards_per_step"] / 3


def has_sharpness(result: dict[str, Any], kind: str) -> bool:
    """Whether the result has this kind of sharpness; `none` asks for nothing."""
    return kind in ("none", *kinds_of_sharpness(result))


def kinds_of_sharpness(result: dict[str, Any]) -> tuple[str, ...]:
    """The kinds that need not be measured any more: `full` is more than `cheap`."""
    kind = (result.get("sharpness") or {}).get("kind")
    return ("cheap", "full") if kind == "full" else (kind,) if kind else ()


def finished_epochs(folder: Path) -> int:
    """The number of epochs in `metrics.csv`; 0 without one."""
    try:
        return max(0, len((folder / "metrics.csv").read_bytes().splitlines()) - 1)
    except OSError:
        return 0


def write_error(folder: Path, error: str) -> None:
    """`error.txt`, the line that a run ended with. The next attempt removes it."""
    with suppress(SettingError):  # a full disk is what is being reported
        files.replace(folder / "error.txt", f"{error}\n")


def read_error(folder: Path) -> str:
    """The line that a run ended with, or nothing."""
    try:
        return (folder / "error.txt").read_bytes().decode(errors="replace").strip()
    except OSError:
        return ""


@cache
def versions() -> dict[str, str]:
    """Python and the installed packages that results may depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):  # not every run needs every one
            found[name] = version(name)
    return found


@cache
def git_commit() -> str | None:
    """The commit of this source tree, with `-dirty` if its code differs from it; None outside a checkout.

    It is the one at the first call, soon after the code is imported: the files may change during training.
    """
    here = Path(__file__).parent

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, check=False)

    try:
        if git("ls-files", "--error-unmatch", "results.py").returncode:  # installed, perhaps inside another project
            return None
        commit = git("rev-parse", "--verify", "HEAD").stdout.strip()
        if not commit:
            return None
        return f"{commit}-dirty" if git("diff", "--quiet", "HEAD", "--", ".", "../conf").returncode else commit
    except OSError:  # no git
        return None


def by_other_code(result: dict[str, Any]) -> str:
    """A note if a finished run may come from other code: its folder is named by its settings alone."""
    then, now = result.get("git_commit"), git_commit()
    if then == now and not str(now).endswith("-dirty"):
        return ""
    return f" at commit {then or 'unknown'}, now {now or 'unknown'}; to train it again, set another runs=FOLDER"


def table(result: dict[str, Any]) -> str:
    """A short table of one run."""
    validation, unreadable = result.get("validation_accuracy"), result.get("unreadable_images")
    rows = [
        ("test accuracy (last epoch)", f"{result['test_accuracy']:.2%}"),
        *([("validation accuracy", f"{validation:.2%}")] if validation is not None else []),
        *([("unreadable training images", f"{unreadable:,} of {result['train_images']:,}")] if unreadable else []),
        ("test loss, train loss", f"{result['test_loss']:.4f}, {result['train_loss']:.4f}"),
        ("propagations per step", f"{result['propagations_per_step']:.4f}"),
        ("  expected", f"{result['expected_propagations_per_step']:.4f}"),
        ("sharpness-aware steps", f"{result['sharpness_aware_steps']} of {result['steps']}"),
        ("training alone", f"{result['seconds']:.1f} s, {result['images_per_second']:,.0f} images/s"),
        *([("largest eigenvalue of ∇²L", f"{found['lambda_max']:.4g}")] if (found := result.get("sharpness")) else []),
        ("peak memory", f"{result['peak_memory_bytes'] / 2**20:,.0f} MiB on {result['device']}"),
    ]
    width = max(len(name) for name, _ in rows)
    names = [result["dataset"], result["model"], result["optimizer"], result["schedule"], f"seed {result['seed']}"]
    return "\n".join([" ".join(filter(None, names)), *(f"  {name:<{width}}  {value}" for name, value in rows)])
