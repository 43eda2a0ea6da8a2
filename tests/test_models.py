import pytest
import torch

from sam_bench.build import create_model
from sam_bench.conf_files import CONF
from sam_bench.errors import SettingError
from sam_bench.models import wide_resnet
from sam_bench.models.resnet import resnet18
from sam_bench.settings import Target
from tests.command import TINY, settings

# parameters for 10 classes; the literature quotes 11.17 M for ResNet-18 and 36.5 M for WRN-28-10
COUNTS = {
    "small_resnet": 77_850,
    "resnet18": 11_173_962,
    "resnet50": 23_520_842,
    "wrn10_2_stride2": 303_706,
    "wrn16_4": 2_748_890,
    "wrn28_10": 36_479_194,
    "pyramidnet110": 28_485_477,
    "vgg11_bn": 9_231_114,
    "vit_tiny": 5_362_762,
    "vit_small": 21_342_346,
}


def test_every_choice_of_the_group_is_counted_here():
    assert {*COUNTS, "timm"} == {path.stem for path in (CONF / "model").glob("*.yaml")}


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_and_output(name):
    model = create_model(settings(f"model={name}").model, classes=10, channels=3, image_size=32)
    assert sum(p.numel() for p in model.parameters()) == COUNTS[name]
    assert model.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("name", ["small_resnet", "wrn16_4", "resnet18", "vit_tiny"])
def test_other_images_and_classes(name):
    model = create_model(settings(f"model={name}").model, classes=7, channels=1, image_size=8)
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 7)


def test_first_layers_keep_the_resolution():
    model = resnet18()
    assert model.maxpool(model.conv1(torch.zeros(1, 3, 32, 32))).shape == (1, 64, 32, 32)


def test_any_name_of_timm_and_its_arguments():
    chosen = settings("model=timm", "model.architecture=test_resnet", "+model.kwargs.drop_rate=0.5").model
    model = create_model(chosen, classes=3, channels=3, image_size=32)
    assert model.drop_rate == 0.5
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 3)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=timm", "model.architecture=wide_resnet50"], "close matches: .*wide_resnet50_2"),
        (["model=wrn28_10", "+model.dropout=1"], "model.dropout: wrn28_10 has no such setting; it has none of its own"),
        (["model=wrn28_10", "+model.num_classes=5"], "model.num_classes: wrn28_10 has no such setting"),
        (["model=vit_tiny", "+model.depth=1"], "model=vit_tiny: .* multiple values for keyword argument 'depth'"),
        (["model=timm", "model.architecture=test_resnet", "+model.kwargs.in_chans=1"], "in_chans=1: follows from the"),
    ],
)
def test_wrong_models(overrides, message):
    with pytest.raises(SettingError, match=message):
        create_model(settings(*overrides).model, 10, 3, 32)


def test_a_target_that_is_no_network():
    wrong = Target.model_validate({"name": "x", "_target_": "builtins.dict"})
    with pytest.raises(SettingError, match=r"model._target_=builtins.dict: returned a dict, not a torch.nn.Module"):
        create_model(wrong, 10, 3, 32)


def test_a_network_with_other_outputs_than_classes_is_refused(command, monkeypatch):
    wide = wide_resnet.small_resnet
    monkeypatch.setattr(wide_resnet, "small_resnet", lambda num_classes, in_chans: wide(num_classes + 3, in_chans))
    status, _, err = command(*TINY)
    assert status == 2
    assert err == "error: model=small_resnet: gave outputs of shape (32, 13), not (images, 10)\n"
