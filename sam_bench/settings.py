"""The settings of a run: checked once, typed from then on, and turned into the run's identity. Imports no torch.

A group that names a class (`_target_`) is checked by that class, when it is built: see `sam_bench.build`.
"""

import hashlib
import json
import math
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from sam_bench.conf_files import choices_in, wrapping_methods
from sam_bench.data.listing import list_images
from sam_bench.errors import SettingError, did_you_mean, reason

# settings without a default
EXAMPLES = {
    "optimizer.base.opt": "lamb (see timm.optim.list_optimizers())",
    "model.architecture": "convnext_atto (see timm.list_models())",
}
SEEDS = 2**31  # their number
IMAGE_FOLDER = "sam_bench.data.imagefolder.ImageFolder"


class Strict(BaseModel):
    """A group whose settings are all known here."""

    # strict: `true` is not the number 1, and 1 is not `true`
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Target(BaseModel):
    """A group that names a class or function, `_target_`. Its other settings are the arguments.

    `name` is what results are compared under: the file of conf/ that was chosen, unless that file says otherwise.
    """

    model_config = ConfigDict(extra="allow", frozen=True, populate_by_name=True)

    name: str = Field(min_length=1)
    target: str = Field(alias="_target_")
    _group: str = PrivateAttr("")  # where it is set on the command line, if not in its place

    @property
    def arguments(self) -> dict[str, Any]:
        """The settings that `_target_` is called with."""
        return dict(self.__pydantic_extra__ or {})


class DatasetSettings(Target):
    """conf/dataset/. `_target_` gets those that it takes; `root` may come from the environment."""

    root: Path | None = None
    contents: str | None = None  # of a folder of images: a hash, see `sam_bench.data.listing`

    @property
    def arguments(self) -> dict[str, Any]:
        """The settings that `_target_` is called with."""
        return ({"root": self.root} if "root" in self.model_fields_set else {}) | super().arguments

    @property
    def label(self) -> str:
        """The name under which results are compared. For a folder of images, the folder's name."""
        return dataset_label(self.name, self.target, self.root)


class OptimizerSettings(Target):
    """conf/optimizer/."""

    base: Target
    inner: Target | None = None
    schedule: Target | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """The settings that `_target_` is called with, beside the optimizer that it wraps."""
        return super().arguments | ({"schedule": self.schedule} if self.schedule else {})


class TrainerSettings(Strict):
    """conf/trainer/."""

    epochs: int = Field(gt=0, le=1_000_000)
    batch_size: PositiveInt
    accumulate: PositiveInt
    warmup_epochs: NonNegativeInt
    label_smoothing: FiniteFloat = Field(ge=0, lt=1)
    clip: FiniteFloat | None = Field(gt=0)
    decay_in_loss: bool
    decay_norm_and_bias: bool
    batch_norm_epochs: Literal["auto"] | int
    precision: Literal["fp32", "bf16"]
    channels_last: bool
    device: str
    deterministic: bool
    compile: Literal["auto"] | bool
    cuda_graphs: Literal["auto"] | bool
    seeds: int = Field(gt=0, le=256)
    checkpoint_minutes: NonNegativeFloat
    sync_perturbation: bool = False
    fsdp: bool = False
    side_by_side: bool = False
    test_every: PositiveInt = 1  # runs of earlier versions do not say
    test_perturbation: bool = False

    @field_validator("compile", "cuda_graphs", mode="before")
    @classmethod
    def _auto_or_bool(cls, value: Any) -> Any:
        if value != "auto" and not isinstance(value, bool):
            raise ValueError("should be auto, true or false")
        return value

    @field_validator("precision", mode="before")
    @classmethod
    def _no_fp16(cls, value: Any) -> Any:
        if value in ("fp16", "16", 16, "float16", "half"):
            raise ValueError("fp16 needs a gradient scaler, which does not support closures; choose 'bf16' or 'fp32'")
        return value

    @field_validator("batch_norm_epochs", mode="before")
    @classmethod
    def _auto_or_few(cls, value: Any) -> Any:
        if value != "auto" and (not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 100):
            raise ValueError("should be auto or an integer from 0 to 100")
        return value

    @field_validator("device", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        if not isinstance(value, str) or not re.fullmatch(r"auto|cpu|cuda(:\d{1,4})?", value):
            raise ValueError("should be auto, cpu, cuda or cuda:N")
        return value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"trainer.accumulate={self.accumulate}: should divide trainer.batch_size={self.batch_size}"
            )
        if self.fsdp and not self.sync_perturbation:
            why = "since FSDP reduces the gradient of every pass"
            raise ValueError(f"trainer.fsdp=true: needs trainer.sync_perturbation=true, {why}")
        if self.warmup_epochs > self.epochs:
            raise ValueError(
                f"trainer.warmup_epochs={self.warmup_epochs}: should be at most trainer.epochs={self.epochs}"
            )
        return self


class LoggerSettings(Strict):
    """conf/logger/."""

    name: Literal["wandb", "none"]
    project: str | None = None
    entity: str | None = None
    mode: Literal["offline", "online"] = "offline"
    tags: list[str] = []

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        if self.name == "none" and (ignored := sorted(self.model_fields_set - {"name"})):
            raise ValueError(f"logger.{ignored[0]}: has no effect with logger=none; choose logger=wandb")
        return self


class Settings(Strict):
    """Everything that defines a run."""

    seed: NonNegativeInt = Field(lt=SEEDS)
    runs: Path = Field(strict=False)
    dataset: DatasetSettings
    model: Target
    optimizer: OptimizerSettings
    trainer: TrainerSettings
    logger: LoggerSettings
    sharpness: Literal["none", "cheap", "full"] = "none"
    experiment: str | None = None  # the chosen file, for tables and dashboards alone
    protocol: str | None = None
    tuned: str | None = None  # where the method's settings come from, see `sam_bench.tuning`
    stated: list[str] = []  # the overrides of the method's own settings
    command: str = ""  # that trains this run

    @model_validator(mode="after")
    def _last_seed(self) -> Self:
        if self.seed + self.trainer.seeds > SEEDS:
            raise ValueError(f"seed={self.seed}: with trainer.seeds={self.trainer.seeds} the last is not below 2**31")
        return self

    @classmethod
    def of(cls, config: DictConfig, choices: Mapping[str, Any]) -> "Settings":
        """Check a composed configuration. Raises a SettingError for the first setting that is wrong.

        `choices` are the files chosen in each group, `hydra.runtime.choices`.
        """
        unresolved: Any = OmegaConf.to_container(config, resolve=False)  # a name may refer to a missing setting
        if missing := sorted(name for name, value in leaves(unresolved) if value == "???"):
            example = EXAMPLES.get(missing[0], "VALUE")
            raise SettingError(f"{missing[0]}: has no default; set it, for example {missing[0]}={example}")
        for group in ("dataset", "model", "optimizer", "trainer", "logger"):
            if not isinstance(given := unresolved.get(group), dict):
                raise SettingError(f"{group}={shown(given)}: should be a file of conf/{group}/ (--help lists them)")
        takes_schedule = str(unresolved["optimizer"].get("schedule")) == "${schedule}"
        if takes_schedule and not unresolved.get("schedule"):
            name = choices.get("optimizer")
            raise SettingError(f"schedule=null: optimizer={name} needs one; choose {choices_in('schedule')}")
        try:
            values: Any = OmegaConf.to_container(config, resolve=True)
        except (OmegaConfBaseException, RecursionError) as error:
            name = getattr(error, "full_key", None) or "a setting"
            raise SettingError(f"{name}: {reason(error)}") from error
        for name, value in leaves(values):
            if isinstance(value, float) and not math.isfinite(value):
                raise SettingError(f"{name}={value}: should be a finite number")
        values.pop("schedule", None)
        values |= {"experiment": choices.get("experiment"), "protocol": choices.get("protocol")}
        for group in ("dataset", "model", "optimizer", "optimizer.base", "optimizer.inner", "optimizer.schedule"):
            _name(values, group, choices)
        for method in (values["optimizer"], values["optimizer"].get("inner")):
            if method:
                method |= for_dataset(method, values["dataset"]["name"])
        if "contents" in values["dataset"]:
            raise SettingError("dataset.contents: is computed from the images of the folder and cannot be set")
        try:
            settings = cls.model_validate(values)
        except ValidationError as error:
            raise SettingError(_first_line(error, values)) from error
        if takes_schedule and settings.optimizer.schedule:
            settings.optimizer.schedule._group = "schedule"
        settings._check_files()
        if settings.dataset.target != IMAGE_FOLDER:
            return settings
        contents = list_images(settings.dataset.root).contents
        return settings.model_copy(update={"dataset": settings.dataset.model_copy(update={"contents": contents})})

    def _check_files(self) -> None:
        root, runs = self.dataset.root, self.runs
        try:
            if root is not None and root.exists() and not root.is_dir():
                raise SettingError(f"dataset.root={root}: is a file; give the folder that holds the data set")
            existing = next(path for path in (self.folder, *self.folder.parents) if path.exists())
        except OSError as error:  # a name too long, a folder that may not be searched
            raise SettingError(f"dataset.root={root}, runs={runs}: {error.strerror}") from error
        if not existing.is_dir():
            raise SettingError(f"runs={runs}: {existing} is a file; give a folder for the run folders")

    def each_seed(self) -> list["Settings"]:
        """These settings for each of `trainer.seeds` seeds from `seed` on, with the command that trains it alone."""
        words = [each for each in shlex.split(self.command) if not each.startswith(("seed=", "trainer.seeds="))]
        return [
            self.model_copy(update={"seed": seed, "command": shlex.join([*words, f"seed={seed}"])})
            for seed in range(self.seed, self.seed + self.trainer.seeds)
        ]

    def dump(self) -> dict[str, Any]:
        """What was set, as plain values, for config.yaml; `model_validate` reads it."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)

    def identity(self) -> dict[str, Any]:
        """What defines a run except its seed: not locations, logging or settings that do not affect its result."""
        identity = self.model_dump(mode="json", by_alias=True)
        for elsewhere in ("seed", "runs", "logger", "sharpness", "experiment", "protocol", "stated", "command"):
            del identity[elsewhere]
        if self.tuned is None:
            del identity["tuned"]
        for way in ("seeds", "checkpoint_minutes", "test_every", "test_perturbation"):
            del identity["trainer"][way]
        del identity["trainer"]["fsdp"], identity["trainer"]["side_by_side"]
        if not self.trainer.sync_perturbation:  # as in runs of earlier versions
            del identity["trainer"]["sync_perturbation"]
        identity["trainer"]["device"] = self.trainer.device.split(":")[0]  # not which of several GPUs
        dataset = identity["dataset"]
        if self.dataset.contents:
            for elsewhere in ("root", "workers"):
                dataset.pop(elsewhere, None)
            dataset["folder"] = self.dataset.label
        else:
            del dataset["contents"]
            if self.dataset.root is None or self.dataset.target.startswith("sam_bench.data.cifar."):
                del dataset["root"]
            else:  # of which only the path is known
                dataset["root"] = str(self.dataset.root.resolve())
        return _plain(identity)

    @property
    def config_hash(self) -> str:
        """Ten hexadecimal digits of the identity."""
        return hash_of(self.identity())

    @property
    def cell(self) -> str:
        """The name that all seeds of one setting share: a cell of a table."""
        parts = [self.dataset.label, self.model.name, self.optimizer.name]
        if self.optimizer.schedule:
            parts.append(self.optimizer.schedule.name)
        return "-".join([*parts, self.config_hash]).replace("/", "_")

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.runs / self.cell / f"seed-{self.seed}"


def hash_of(identity: dict[str, Any]) -> str:
    """Ten hexadecimal digits."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]


def leaves(values: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting that is not a group, with its dotted name as on the command line."""
    if isinstance(values, dict):
        for key, value in values.items():
            yield from leaves(value, f"{name}.{key}" if name else str(key))
    else:
        yield name, values


def is_base_alone(target: str) -> bool:
    """Whether the class of a method is `Descent`, which adds nothing to the base optimizer."""
    return target.endswith(".Descent")


def dataset_label(name: str, target: str, root: str | Path | None) -> str:
    """The name of a data set in results: that of its folder for a folder of images."""
    return Path(root).resolve().name if target == IMAGE_FOLDER and root else name


def for_dataset(method: dict[str, Any], dataset: str) -> dict[str, Any]:
    """The settings of a method that have a value per data set, such as `rho: {cifar10: 0.05, cifar100: 0.1}`.

    A data set that is not named has the value of cifar10.
    """
    return {
        key: value.get(dataset, value["cifar10"])
        for key, value in method.items()
        if isinstance(value, dict) and "cifar10" in value
    }


def _name(values: dict[str, Any], group: str, choices: Mapping[str, Any]) -> None:
    """Give a group its name: that of the chosen file or, for a schedule, of its class."""
    *path, key = group.split(".")
    for outer in path:
        values = values[outer]
    file = group.replace(".", "/")
    if (chosen := values.get(key)) is None:
        if key == "base":
            raise SettingError(f"{group}=null: an optimizer needs one; choose {file}={choices_in(file)}")
        return
    if not isinstance(chosen, dict) or "_target_" not in chosen:
        if group == "optimizer.inner" and choices.get(file) is None:
            optimizer = choices.get("optimizer")
            raise SettingError(f"optimizer.inner: optimizer={optimizer} wraps no other method; {wrapping_methods()} do")
        raise SettingError(f"{group}={chosen}: should be a group with a _target_; choose a file with {file}=NAME")
    if not isinstance(target := chosen["_target_"], str):
        raise SettingError(f"{group}._target_={shown(target)}: should be the dotted name of a class or function")
    of_class = target.rpartition(".")[2].lower()
    if is_base_alone(target):
        file = f"{file}/base"
    chosen.setdefault("name", of_class if key == "schedule" else choices.get(file, of_class))


def _plain(value: Any) -> Any:
    """The same with whole floats as integers: rho=1 and rho=1.0 are one setting."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _first_line(error: ValidationError, values: dict[str, Any]) -> str:
    first = error.errors(include_url=False)[0]
    value: Any = values
    group: type[BaseModel] = Settings
    for key in first["loc"]:
        value = value.get(key) if isinstance(value, dict) else value
        inner = group.model_fields[str(key)].annotation if key in group.model_fields else None
        group = inner if isinstance(inner, type) and issubclass(inner, BaseModel) else group
    name = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        where, _, setting = name.rpartition(".")
        known = list(group.model_fields)
        return f"{name}: no such setting{did_you_mean(setting, known)}; {where or 'there'} has {', '.join(known)}"
    what = what_is_wrong(error)
    if not name or what.startswith(f"{name}."):
        return what
    if first["type"] == "missing":
        return f"{name}: is missing"
    return f"{name}: {what}" if isinstance(value, dict) else f"{name}={shown(value)}: {what}"


def shown(value: Any) -> Any:
    """A value as on the command line."""
    return {True: "true", False: "false", None: "null"}[value] if value is None or isinstance(value, bool) else value


def what_is_wrong(error: ValidationError) -> str:
    """The first thing that pydantic found, without its preamble."""
    message = error.errors(include_url=False)[0]["msg"]
    message = message.partition(" for <class")[0]
    return message.removeprefix("Value error, ").replace("Input should be", "should be").replace("Input is", "is")
