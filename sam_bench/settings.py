"""The settings of a run: checked once, at the door, typed from then on, and turned into the run's identity.

The defaults stand in conf/ alone; here stands what a value may be. Nothing here imports torch.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, Self

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from sam_bench.errors import SettingError, reason
from sam_bench.methods import BASES, METHODS, NonNegative
from sam_bench.schedules import SCHEDULES

# settings without a default
EXAMPLES = {
    "optimizer.base.opt": "lamb (timm.optim.list_optimizers() has all)",
    "model.architecture": "convnext_atto (timm.list_models() has all)",
}


class Strict(BaseModel):
    """A group whose settings are all known."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Open(BaseModel):
    """A group whose further settings go to a class or function of its own."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str

    def arguments(self) -> dict[str, Any]:
        """The settings beside those that every member of the group has."""
        return dict(self.__pydantic_extra__ or {})


class DatasetSettings(Strict):
    """conf/dataset/."""

    name: str
    root: Path | None = None
    subset: PositiveInt | None = None
    padding: int = Field(default=0, ge=0, le=1024)
    flip: bool = False
    cutout: int = Field(default=0, ge=0, le=1024)
    image_size: PositiveInt | None = None
    workers: NonNegativeInt = 0

    @property
    def label(self) -> str:
        """The name under which results are compared: of a folder of images, the folder's."""
        return self.root.resolve().name if self.name == "imagefolder" and self.root else self.name


class ModelSettings(Strict):
    """conf/model/."""

    name: str | None = None
    architecture: str
    kwargs: dict[str, Any]

    @property
    def label(self) -> str:
        """The name under which results are compared."""
        return self.name or self.architecture

    @field_validator("kwargs")
    @classmethod
    def _not_the_data_sets(cls, value: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted({"num_classes", "in_chans", "img_size"} & set(value)):
            raise ValueError(f"{taken[0]} follows from the data set")
        return value


class BaseSettings(Open):
    """conf/optimizer/base/."""

    lr: NonNegative
    weight_decay: NonNegative

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of the base optimizer."""
        return {"lr": self.lr, "weight_decay": self.weight_decay, **super().arguments()}


class InnerSettings(Open):
    """conf/optimizer/inner/."""


class OptimizerSettings(Open):
    """conf/optimizer/."""

    base: BaseSettings
    inner: InnerSettings | None = None

    @property
    def label(self) -> str:
        """The name under which results are compared."""
        return str(self.base.arguments()["opt"]) if self.name == "timm" else self.name


class ScheduleSettings(Open):
    """conf/schedule/."""


class TrainerSettings(Strict):
    """conf/trainer/."""

    epochs: PositiveInt
    batch_size: PositiveInt
    accumulate: PositiveInt
    warmup_epochs: NonNegativeInt
    label_smoothing: FiniteFloat = Field(ge=0, lt=1)
    clip: FiniteFloat | None = Field(gt=0)
    decay_in_loss: bool
    decay_norm_and_bias: bool
    precision: Literal["fp32", "bf16"]
    channels_last: bool
    device: str
    deterministic: bool
    compile: Literal["auto"] | bool
    cuda_graphs: Literal["auto"] | bool
    seeds: PositiveInt

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
            raise ValueError("fp16 needs a gradient scaler, which does not work with closures: 'bf16' or 'fp32'")
        return value

    @field_validator("device")
    @classmethod
    def _known(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
            raise ValueError("should be auto, cpu, cuda or cuda:N")
        return value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate={self.accumulate} does not divide batch_size={self.batch_size}")
        if self.warmup_epochs > self.epochs:
            raise ValueError(f"warmup_epochs={self.warmup_epochs} is more than epochs={self.epochs}")
        return self


class LoggerSettings(Strict):
    """conf/logger/."""

    name: Literal["wandb", "none"]
    project: str | None = None
    entity: str | None = None
    mode: Literal["offline", "online"] = "offline"
    tags: list[str] = []


class Settings(Strict):
    """Everything that a run is."""

    seed: NonNegativeInt = Field(lt=2**31)
    runs: Path
    dataset: DatasetSettings
    model: ModelSettings
    optimizer: OptimizerSettings
    schedule: ScheduleSettings | None
    trainer: TrainerSettings
    logger: LoggerSettings

    @model_validator(mode="after")
    def _last_seed(self) -> Self:
        if self.seed + self.trainer.seeds > 2**31:
            raise ValueError(f"seed={self.seed}: with trainer.seeds={self.trainer.seeds} the last is not below 2**31")
        return self

    @classmethod
    def of(cls, config: DictConfig) -> "Settings":
        """Check a composed configuration.

        Raises:
            SettingError: the first setting that is wrong, in one line.

        """
        if missing := sorted(OmegaConf.missing_keys(config)):
            example = EXAMPLES.get(missing[0], "VALUE")
            raise SettingError(f"{missing[0]}: has no default; give it, as {missing[0]}={example}")
        try:
            values: Any = OmegaConf.to_container(config, resolve=True)
        except OmegaConfBaseException as error:
            raise SettingError(f"{error.full_key}: {reason(error)}") from error
        _check_optimizer(values)
        try:
            settings = cls.model_validate(values)
        except ValidationError as error:
            raise SettingError(_first_line(error, values)) from error
        settings._check_files()
        return settings

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
        """These settings for each of `trainer.seeds` seeds from `seed` on."""
        return [self.model_copy(update={"seed": self.seed + i}) for i in range(self.trainer.seeds)]

    # -------------------------------------------------------------------------------------------- identity

    def identity(self) -> dict[str, Any]:
        """What makes two runs the same but for their seed: not where data and results lie, nor who watches."""
        identity = self.model_dump(mode="json", exclude={"seed", "runs", "logger"})
        del identity["trainer"]["seeds"]
        identity["trainer"]["device"] = self.trainer.device.split(":")[0]  # not which of several GPUs
        if self.dataset.name != "imagefolder":  # there the root says which data set it is, and workers draw
            del identity["dataset"]["root"], identity["dataset"]["workers"]
        elif self.dataset.root:
            identity["dataset"]["root"] = str(self.dataset.root.resolve())
        optimizer = identity["optimizer"]
        if optimizer["name"] == "grst" and optimizer["gamma"] is not None:
            del optimizer["gamma_max"]  # the cap of the other knob
        for method in (optimizer, optimizer["inner"] or {}):
            if "pattern" in method:
                for idle in ("sparsity",) if method["pattern"] == "n:m" else ("n", "m"):
                    del method[idle]
        return _plain(identity)

    @property
    def config_hash(self) -> str:
        """Ten hexadecimal digits of the identity."""
        text = json.dumps(self.identity(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    @property
    def cell(self) -> str:
        """The name of what several seeds of one setting have in common: a cell of a table."""
        parts = [self.dataset.label, self.model.label, self.optimizer.label]
        if self.schedule:
            parts.append(self.schedule.name)
        return "-".join([*parts, self.config_hash]).replace("/", "_")

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.runs / self.cell / f"seed-{self.seed}"


def _check_optimizer(values: dict[str, Any]) -> None:
    """Give the settings of the optimizer and its parts, which depend on their names, their types.

    What a run does not use is taken out, since it is no part of what the run is.
    """
    optimizer = _group(values, "optimizer", METHODS)
    method, trainer = METHODS[optimizer["name"]], values.get("trainer")
    trainer = trainer if isinstance(trainer, dict) else {}
    base = _group(optimizer, "base", BASES, "optimizer.base")
    if kinds := BASES[base["name"]]:
        _check_group("optimizer.base", base, kinds, ("lr", "weight_decay"))
    if base.get("nesterov") and not base["momentum"]:
        raise SettingError("optimizer.base.momentum=0: Nesterov momentum needs one; add optimizer.base.nesterov=false")
    if method.kind != "scheduled":
        values["schedule"] = None
        optimizer.pop("inner", None)
    elif "schedule" in optimizer:  # a method that is RST under one schedule has its own
        values["schedule"] = own = optimizer.pop("schedule")
        if not isinstance(own, dict) or (own.get("name"), own.get("a")) != ("piecewise", 0) or own.get("b") == 1:
            raise SettingError(
                f"optimizer.schedule={own}: late SAM's is piecewise with a=0, and its one choice is "
                "optimizer.schedule.b below 1, the share of the steps before SAM; optimizer=rst has all schedules"
            )
    _check_group("optimizer", optimizer, method.settings, ("base", "inner"))
    if method.kind != "scheduled":
        _check_method("optimizer", optimizer, trainer)
        return

    inners = [name for name, each in METHODS.items() if each.kind == "inner"]
    group = optimizer.get("inner")
    if isinstance(group, dict) and (unfit := METHODS.get(str(group.get("name")))) and unfit.alone:
        raise SettingError(f"optimizer/inner={group['name']}: {unfit.alone}; the choices are {', '.join(inners)}")
    inner = _group(optimizer, "inner", inners, "optimizer/inner")
    _check_group("optimizer.inner", inner, METHODS[inner["name"]].settings)
    _check_method("optimizer.inner", inner, trainer)
    if optimizer["name"] == "grst" and inner.get("beta", 1) < 1:
        raise SettingError(f"optimizer.inner.beta={inner['beta']}: G-RST mixes the gradients of all tensors; choose 1")
    schedule = _group(values, "schedule", SCHEDULES)
    family = SCHEDULES[schedule["name"]]
    _check_group("schedule", schedule, dict.fromkeys((field.name for field in fields(family)), Any))
    try:
        family(**{key: value for key, value in schedule.items() if key != "name"})
    except ValueError as error:
        raise SettingError(f"schedule={schedule['name']}: {error}") from error
    if optimizer["name"] == "grst" and (optimizer["gamma"] is None) == (optimizer["weight"] is None):
        raise SettingError(
            f"optimizer.gamma={optimizer['gamma']}, optimizer.weight={optimizer['weight']}: "
            "give a number for one of them and null for the other"
        )
    epochs = trainer.get("epochs")
    if isinstance(epochs, int) and 0 < epochs <= optimizer["warmup_epochs"]:
        raise SettingError(
            f"optimizer.warmup_epochs={optimizer['warmup_epochs']}: leaves no sharpness-aware step "
            f"in trainer.epochs={epochs}"
        )


def _check_method(where: str, group: dict[str, Any], trainer: dict[str, Any]) -> None:
    """What holds between the settings of a method and of the training."""
    epochs = trainer.get("epochs")
    for key in ("start_epochs", "full_epochs", "sam_epochs", "lag_epochs"):
        if key in group and isinstance(epochs, int) and 0 < epochs <= group[key]:
            raise SettingError(
                f"{where}.{key}={group[key]}: {group['name']} begins after trainer.epochs={epochs}; "
                f"choose less than {epochs}, or more epochs"
            )
    if group.get("form") == "implicit" and trainer.get("precision") != "bf16":
        raise SettingError(f"{where}.form=implicit: needs trainer.precision=bf16, in which there is a sparse product")
    for low, high in (("rho_min", "rho_max"), ("f_min", "f_max"), ("n", "m")):
        if low in group and group[low] > group[high] and group.get("pattern", "n:m") == "n:m":
            raise SettingError(f"{where}.{low}={group[low]}: is more than {where}.{high}={group[high]}")
    if group.get("form") == "implicit" and (group["pattern"], group["n"], group["m"]) != ("n:m", 2, 4):
        raise SettingError(
            f"{where}.form=implicit: needs {where}.pattern=n:m with n=2, m=4, the one sparse product there is; "
            "emulated takes any pattern, with dense products"
        )


def _group(values: dict[str, Any], key: str, choices: Iterable[str], where: str = "") -> dict[str, Any]:
    """The group of settings under `key`, whose name is one of the choices."""
    group = values.get(key)
    name = str(group.get("name") if isinstance(group, dict) else group)
    if not isinstance(group, dict) or name not in choices:
        raise SettingError(f"{where or key}={name}: the choices are {', '.join(choices)}")
    return group


def _check_group(where: str, group: dict[str, Any], kinds: dict[str, Any], beside: tuple[str, ...] = ()) -> None:
    """Check the settings of one method and give them their types, in place."""
    if unknown := sorted(set(group) - set(kinds) - {"name", *beside}):
        has = ", ".join([*kinds, *(key for key in beside if key not in ("base", "inner"))]) or "none of its own"
        if unknown[0] in (inner := group.get("inner") or {}):
            has += f"; {where}.inner.{unknown[0]} is that of {inner['name']}"
        raise SettingError(f"{where}.{unknown[0]}: {group['name']} has no such setting; it has {has}")
    for key, kind in kinds.items():
        if key not in group:
            raise SettingError(f"{where}.{key}: {group['name']} needs it")
        try:
            group[key] = TypeAdapter(kind).validate_python(group[key])
        except ValidationError as error:
            raise SettingError(f"{where}.{key}={group[key]}: {_reason(error)}") from error


def _plain(value: Any) -> Any:
    """The same with whole floats as integers: rho=1 and rho=1.0 are one setting."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _reason(error: ValidationError) -> str:
    message = error.errors(include_url=False)[0]["msg"]
    return message.removeprefix("Value error, ").replace("Input should be", "should be")


def _first_line(error: ValidationError, values: dict[str, Any]) -> str:
    where = error.errors(include_url=False)[0]["loc"]
    value: Any = values
    for key in where:
        value = value.get(key) if isinstance(value, dict) else value
    name = ".".join(map(str, where))
    return f"{name}: {_reason(error)}" if isinstance(value, dict) else f"{name}={value}: {_reason(error)}"
