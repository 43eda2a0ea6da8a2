"""The settings of a run: checked once, at the door, typed from then on, and turned into the run's identity.

The defaults stand in conf/ alone; here stands what a value may be. Nothing here imports torch.
"""

import hashlib
import json
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

from sam_bench.errors import SettingError
from sam_bench.methods import METHODS, NonNegative
from sam_bench.schedules import SCHEDULES


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
    padding: NonNegativeInt = 0
    flip: bool = False
    cutout: NonNegativeInt = 0
    image_size: PositiveInt | None = None
    workers: NonNegativeInt = 0

    @property
    def label(self) -> str:
        """The name under which results are compared: of a folder of images, the folder's."""
        return self.root.resolve().name if self.name == "imagefolder" and self.root else self.name


class ModelSettings(Strict):
    """conf/model/."""

    name: str
    architecture: str
    kwargs: dict[str, Any]


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
    device: str = Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    deterministic: bool

    @field_validator("precision", mode="before")
    @classmethod
    def _no_fp16(cls, value: Any) -> Any:
        if value in ("fp16", "16", 16, "float16", "half"):
            raise ValueError("fp16 needs a gradient scaler, which does not work with closures: 'bf16' or 'fp32'")
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

    @classmethod
    def of(cls, config: DictConfig) -> "Settings":
        """Check a composed configuration.

        Raises:
            SettingError: the first setting that is wrong, in one line.

        """
        try:
            values: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        except OmegaConfBaseException as error:
            reason = str(error).splitlines()[0]
            raise SettingError(f"{error.full_key}: {reason}; give it as {error.full_key}=VALUE") from error
        name = str((values.get("optimizer") or {}).get("name"))
        method = METHODS.get(name)
        if method is None:
            raise SettingError(f"optimizer={name}: registered are {', '.join(METHODS)}")
        # what a run does not use is not part of what it is
        if method.kind != "scheduled":
            values["schedule"] = None
        try:
            settings = cls.model_validate(values)
        except ValidationError as error:
            raise SettingError(_first_line(error, values)) from error
        settings._check_method("optimizer", method.settings, settings.optimizer)
        if method.kind == "scheduled":
            settings._check_scheduled()
        settings._check_files()
        return settings

    def _check_method(self, where: str, kinds: dict[str, Any], group: Open) -> None:
        given = group.arguments()
        if unknown := sorted(set(given) - set(kinds)):
            raise SettingError(f"{where}.{unknown[0]}: {group.name} has no such setting, it has {', '.join(kinds)}")
        for key, kind in kinds.items():
            if key not in given:
                raise SettingError(f"{where}.{key}: {group.name} needs it")
            try:
                value = TypeAdapter(kind).validate_python(given[key])
            except ValidationError as error:
                raise SettingError(f"{where}.{key}={given[key]}: {_reason(error)}") from error
            assert group.__pydantic_extra__ is not None
            group.__pydantic_extra__[key] = value

    def _check_scheduled(self) -> None:
        optimizer, inner, schedule = self.optimizer, self.optimizer.inner, self.schedule
        choices = ", ".join(name for name, method in METHODS.items() if method.kind == "inner")
        if inner is None or inner.name not in METHODS or METHODS[inner.name].kind != "inner":
            name = inner.name if inner else "null"
            raise SettingError(f"optimizer/inner={name}: {optimizer.name} schedules one of {choices}")
        self._check_method("optimizer.inner", METHODS[inner.name].settings, inner)
        if schedule is None or schedule.name not in SCHEDULES:
            name = schedule.name if schedule else "null"
            raise SettingError(f"schedule={name}: {optimizer.name} takes one of {', '.join(SCHEDULES)}")
        try:
            SCHEDULES[schedule.name](**schedule.arguments())
        except ValueError as error:
            raise SettingError(f"schedule={schedule.name}: {error}") from error
        except TypeError as error:
            raise SettingError(
                f"schedule={schedule.name}: {str(error).replace('__init__()', schedule.name)}"
            ) from error
        extra = optimizer.arguments()
        if optimizer.name == "grst" and (extra["gamma"] is None) == (extra["weight"] is None):
            raise SettingError(
                f"optimizer.gamma={extra['gamma']}, optimizer.weight={extra['weight']}: "
                "give a number for one of them and null for the other"
            )
        if extra["warmup_epochs"] >= self.trainer.epochs:
            raise SettingError(
                f"optimizer.warmup_epochs={extra['warmup_epochs']}: leaves no sharpness-aware step "
                f"in trainer.epochs={self.trainer.epochs}"
            )

    def _check_files(self) -> None:
        root, runs = self.dataset.root, self.runs
        if root is not None and root.exists() and not root.is_dir():
            raise SettingError(f"dataset.root={root}: is a file; give the folder that holds the data set")
        for path in (runs, *runs.parents):
            if path.exists():
                if not path.is_dir():
                    raise SettingError(f"runs={runs}: {path} is a file; give a folder for the run folders")
                break

    # -------------------------------------------------------------------------------------------- identity

    def identity(self) -> dict[str, Any]:
        """What makes two runs the same but for their seed: not where data and results lie, nor who watches."""
        elsewhere: dict[str, Any] = {"seed": True, "runs": True, "logger": True, "dataset": {"root", "workers"}}
        identity = self.model_dump(mode="json", exclude=elsewhere)
        identity["dataset"]["label"] = self.dataset.label
        return _plain(identity)

    @property
    def config_hash(self) -> str:
        """Ten hexadecimal digits of the identity."""
        text = json.dumps(self.identity(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    @property
    def cell(self) -> str:
        """The name of what several seeds of one setting have in common: a cell of a table."""
        parts = [self.dataset.label, self.model.name, self.optimizer.label]
        if self.schedule:
            parts.append(self.schedule.name)
        return "-".join([*parts, self.config_hash]).replace("/", "_")

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.runs / self.cell / f"seed-{self.seed}"


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
