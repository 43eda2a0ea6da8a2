import pytest
import timm
import torch

from sam_bench import models
from sam_bench.errors import SettingError
from sam_bench.settings import ModelSettings
from tests.command import settings

# parameters for 10 classes; the literature quotes 11.17 M for ResNet-18 and 36.5 M for WRN-28-10
COUNTS = {
    "small_resnet": 77_850,
    "resnet18": 11_173_962,
    "resnet50": 23_520_842,
    "wrn16_4": 2_748_890,
    "wrn28_10": 36_479_194,
    "pyramidnet110": 28_485_477,
    "vgg11_bn": 9_231_114,
    "vit_tiny": 5_362_762,
    "vit_small": 21_342_346,
}


def test_every_choice_of_the_group_is_counted_here():
    assert {*COUNTS, "timm"} == {path.stem for path in (settings_folder() / "model").glob("*.yaml")}


def settings_folder():
    from sam_bench.__main__ import CONF

    return CONF


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_and_output(name):
    model = models.create(settings(f"model={name}").model, classes=10, channels=3, image_size=32)
    assert sum(p.numel() for p in model.parameters()) == COUNTS[name]
    assert model.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("name", ["small_resnet", "wrn16_4", "resnet18", "vit_tiny"])
def test_other_images_and_classes(name):
    model = models.create(settings(f"model={name}").model, classes=7, channels=1, image_size=8)
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 7)


def test_first_layers_keep_the_resolution():
    model = timm.create_model("cifar_resnet18", num_classes=10)
    assert model.maxpool(model.conv1(torch.zeros(1, 3, 32, 32))).shape == (1, 64, 32, 32)


def test_any_name_of_timm_and_its_arguments():
    chosen = ModelSettings(name="x", architecture="test_resnet", kwargs={"drop_rate": 0.5})
    model = models.create(chosen, classes=3, channels=3, image_size=32)
    assert model.drop_rate == 0.5
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 3)


@pytest.mark.parametrize(
    ("architecture", "kwargs", "message"),
    [
        ("wrn28_10", {}, "near names: .*cifar_wrn28_10"),
        ("cifar_wrn28_10", {"dropout": 1}, "unexpected keyword argument 'dropout'"),
        ("cifar_small_resnet", {"pretrained": True}, "no pretrained weights"),
    ],
)
def test_wrong_models(architecture, kwargs, message):
    with pytest.raises(SettingError, match=message):
        models.create(ModelSettings(name="x", architecture=architecture, kwargs=kwargs), 10, 3, 32)
