"""`+tuned=NAME` applies what `python -m sam_bench.choose` chose on a validation set. Imports no torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from omegaconf import DictConfig, OmegaConf, open_dict
from pydantic import BaseModel, Field, FiniteFloat, ValidationError

from sam_bench.errors import SettingError, did_you_mean, reason
from sam_bench.settings import dataset_label, for_dataset, what_is_wrong

AUTO = "auto"  # +tuned=auto: that of this data set and model
HERE = Path(__file__).resolve().parent
FOLDER = Path("experiments", "tuning")  # here, or where the package has its experiments


def apply(config: DictConfig, choices: Mapping[str, Any], overrides: list[str]) -> list[str]:
    """Set what the tuning that `config.tuned` names chose for this optimizer.

    Settings that are overridden stay: the best trial that has their values is applied. If there is none, the best trial
    of the inner method, and if there is none either, the run is not tuned.

    Returns:
        One line if the run is not tuned, or only its inner method is.

    Raises:
        SettingError: there is no such tuning, or it has no settings for the optimizer.
    """
    if config.tuned == AUTO:
        dataset = config.dataset
        label = dataset_label(choices["dataset"], dataset.get("_target_"), dataset.get("root"))
        config.tuned = f"{label}-{choices['model']}"
    name = str(config.tuned)
    methods = read(name)
    optimizer, inner = choices.get("optimizer"), choices.get("optimizer/inner")
    method = method_name(optimizer, inner)
    # RST over ASAM: as ASAM itself was tuned
    candidates = {each: moved for each, moved in ((method, ""), (str(inner), "inner.")) if each in methods}
    if not candidates:
        raise SettingError(f"tuned={name}: has no settings for {method}; it has {', '.join(methods)}")
    overridden = [override.lstrip("+~").partition("=")[0] for override in overrides]

    def is_overridden(key: str) -> bool:
        return any(each == key or each.startswith(f"{key}.") for each in overridden)

    def value_of(key: str) -> Any:
        """The value of a setting, for this data set if it has one for each."""
        value = OmegaConf.select(config, key)
        if isinstance(value, DictConfig):
            return for_dataset({key: OmegaConf.to_container(value)}, choices["dataset"]).get(key)
        return value

    skipped = ""
    for candidate, moved in candidates.items():
        tuned_with, base = methods[candidate]["base"], choices.get("optimizer/base")
        if base != tuned_with:
            raise SettingError(f"tuned={name}: {candidate} was tuned with optimizer/base={tuned_with}, not {base}")
        trials = [trial for trial in methods[candidate]["trials"] if not trial["failed"]]
        for trial in sorted(trials, key=lambda trial: -trial["validation_accuracy"]):
            found = {key.replace("optimizer.", f"optimizer.{moved}", 1): v for key, v in trial["settings"].items()}
            if any(value_of(key) != value for key, value in found.items() if is_overridden(key)):
                continue
            for setting, value in found.items():
                with open_dict(config):
                    OmegaConf.update(config, setting, value)
            return [f"tuned={name}: {skipped}; the best trial of {candidate} is applied"] if skipped else []
        skipped = skipped or f"no trial of {candidate} has the settings of this run"
    with open_dict(config):
        del config["tuned"]
    return [f"tuned={name} is ignored: {skipped}"]


class Trial(BaseModel):
    """A trial in the file of a tuning."""

    settings: dict[Annotated[str, Field(pattern=r"^optimizer(\.\w+)+$")], int | float | bool | str | None]
    validation_accuracy: FiniteFloat
    failed: bool = False  # it ended with an error, such as a loss that is not finite


class Method(BaseModel):
    """A method in the file of a tuning."""

    base: str
    trials: list[Trial] = Field(min_length=1)


class Tuning(BaseModel):
    """What `apply` needs of the file of a tuning."""

    methods: dict[str, Method]


def method_name(optimizer: str | None, inner: str | None) -> str:
    """The name of a method in a tuning: RST over SAM is `rst`, over ASAM `rst/asam`."""
    return f"{optimizer}/{inner}" if inner not in (None, "sam") else str(optimizer)


def read(name: str) -> dict[str, dict[str, Any]]:
    """The methods of a tuning, by its name or the path of its file. Raises a SettingError if there is none."""
    folders = [FOLDER, HERE / "experiments" / "tuning", HERE.parent / FOLDER]
    named = Path(name) if name.endswith(".yaml") else None
    paths = [named] if named else [folder / f"{name}.yaml" for folder in folders]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        known = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
        choice = f"choose {', '.join(known)}" if known else "python -m sam_bench.choose writes one"
        raise SettingError(f"tuned={name}: no such tuning{did_you_mean(name, known)}; {choice}")
    try:
        return Tuning.model_validate(yaml.safe_load(path.read_text())).model_dump()["methods"]
    except ValidationError as error:
        where = ".".join(map(str, error.errors(include_url=False)[0]["loc"]))
        raise SettingError(f"tuned={name}: is not a tuning ({where}: {what_is_wrong(error)})") from error
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise SettingError(f"tuned={name}: is not a tuning ({reason(error)})") from error
