"""Every method, as its file in conf/ has it, trains digits and spends what it says."""

import json

import pytest

from tests.optim.methods import NAMES

STEPS = 10 * 22  # ten epochs

# propagations and forwards a step, in this training; a range where it depends on the gradients
SPENDS = {
    "sgd": (1, 0),
    "adamw": (1, 0),
    "sam": (2, 0),
    "asam": (2, 0),
    "gsam": (2, 0),
    "esam": (1.5, 1),
    "looksam": (1.2, 0),
    "periodic_sam": (1.2, 0),
    "aesam": ((1.2, 1.8), 0),
    "aelooksam": ((1.2, 1.8), 0),
    "fsam": (2, 0),
    "vasso": (2, 0),
    "adasam": (2, 0),
    "ausam": (1.1, 0),  # whole batches in the first of ten epochs
    "ksam": (2 * 22 / 64, 1),  # 0.35 of 64 samples
    "msam": (1, 0),
    "saf": (1, 0),
    "mesa": (1, 0.5),  # from the sixth of ten epochs on
    "ssam_f": (2 + 1 / 4 / 22, 0),  # in each epoch of 22 steps a mask from 16 examples, a quarter of a batch
    "ssam_d": (2, 0),
    "vsam": ((1.3 + 3 / STEPS, 1.3 + 0.7 * 0.8), 0),  # three epochs of SAM, then windows of one step at least
    "rst": ((1.35, 1.65), 0),
    "rst_s2sam": ((1.35, 1.65), 0),
    "grst": ((1.35, 1.65), 0),
    "late_sam": (1 + 21 / STEPS, 0),  # the last tenth, but for the step at its very border
}


# a method that is not listed spends what it expects; timm needs the name of an optimizer
@pytest.mark.parametrize("name", [name for name in NAMES if name != "timm"])
def test_digits(name, command):
    status, _, err = command(f"optimizer={name}", "logger=none", "trainer.epochs=10")
    assert status == 0, err
    (folder,) = command.folders()
    result = json.loads((folder / "result.json").read_text())
    propagations, forwards = SPENDS.get(name, (result["expected_propagations_per_step"], 0))
    assert result["steps"] == STEPS
    assert result["test_accuracy"] >= 0.95
    assert result["forwards_per_step"] == pytest.approx(forwards)
    if isinstance(propagations, tuple):
        assert propagations[0] <= result["propagations_per_step"] <= propagations[1]
    else:
        assert result["propagations_per_step"] == pytest.approx(propagations)
    assert result["sharpness_aware_steps"] > 0 or name in ("sgd", "adamw")
