"""The pages of docs/integrations/: their code runs as it stands in the real library, and steps as a plain loop does."""

import logging
import re
from pathlib import Path

import accelerate
import lightning
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from sam_bench.optim import RST, SAM, Linear

PAGES = Path(__file__).parent.parent / "docs" / "integrations"
EPOCHS, STEPS = 2, 20

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries
for name in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(name).setLevel(logging.ERROR)


def blocks(page):
    return re.findall(r"```python\n(.*?)```", (PAGES / page).read_text(), re.DOTALL)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))


def loader(*more):
    draw = torch.Generator().manual_seed(1)
    images = torch.randn(160, 1, 8, 8, generator=draw)
    labels = torch.randint(10, (160,), generator=draw)
    return DataLoader(TensorDataset(images, labels, *more), batch_size=16)


def ours(clip=False, bf16=False):
    """The net after 20 steps of our own loop, and the losses of their first passes."""
    model = net()
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer = RST(SAM(base, rho=0.05, model=model), Linear(0, 1), total_steps=STEPS, seed=0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS)
    losses = []
    for _ in range(EPOCHS):
        for images, labels in loader():

            def closure():
                optimizer.zero_grad()
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
                    loss = cross_entropy(model(images), labels)  # noqa: B023
                loss.backward()
                if clip:
                    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                return loss

            losses.append(optimizer.step(closure))
            scheduler.step()
    assert optimizer.sharpness_aware_steps == optimizer.propagations - STEPS > 0
    return model, losses


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# ------------------------------------------------------------------------------------------------------- a plain loop


def test_every_block_of_the_page_of_the_loop_runs(tmp_path):
    names = {"model": net(), "loader": loader(), "epochs": EPOCHS, "path": tmp_path / "last.pt"}
    names["indexed_loader"] = loader(torch.arange(160))
    first, checkpoint, *variants, samplewise = blocks("loop.md")
    exec(first, names)
    before = {key: value.clone() for key, value in names["model"].state_dict().items()}
    exec(checkpoint, names)
    assert all(torch.equal(value, before[key]) for key, value in names["model"].state_dict().items())
    assert len(variants) == 3
    for variant in variants:  # other closures, and a hook
        exec(variant, names)
        assert names["optimizer"].step(names["closure"]).isfinite()
    exec(samplewise, names)
    assert names["loss"].isfinite()
    assert names["optimizer"].forwards == 10


# ---------------------------------------------------------------------------------------------------------- Lightning


@pytest.fixture
def lightning_page(tmp_path, monkeypatch):
    """The names of the page after its training, which writes its checkpoints to a folder of the test."""
    monkeypatch.chdir(tmp_path)
    names = {"net": net(), "loader": loader()}
    (block,) = blocks("lightning.md")
    exec(block, names)
    return names


def trainer(tmp_path, epochs=EPOCHS, **settings):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return lightning.Trainer(max_epochs=epochs, default_root_dir=tmp_path, **quiet, **settings)


def test_lightning_steps_as_our_loop_does(lightning_page):
    model, losses = ours(clip=True)
    assert same(lightning_page["model"].net, model)
    assert lightning_page["trainer"].callback_metrics["train_loss"] == losses[-1]  # of the first pass


def test_lightning_resumes_as_if_undisturbed(lightning_page, tmp_path):
    model, _ = ours(clip=True)
    half = lightning_page["Classifier"](net())
    first = trainer(tmp_path, 1, gradient_clip_val=1.0)
    # the length of the training is known from the start, not the part of it that is trained now
    half.configure_optimizers = lambda: steps_of(20, half, lightning_page["Classifier"])
    first.fit(half, loader())
    first.save_checkpoint(tmp_path / "half.ckpt")
    resumed = lightning_page["Classifier"](net())
    trainer(tmp_path, gradient_clip_val=1.0).fit(resumed, loader(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert same(resumed.net, model)


def steps_of(steps, module, cls):
    """What `configure_optimizers` of the page returns for a training of so many steps."""

    class Whole:
        estimated_stepping_batches = steps

    now, module._trainer = module._trainer, Whole()
    try:
        return cls.configure_optimizers(module)
    finally:
        module._trainer = now


def test_lightning_in_bf16(lightning_page, tmp_path):
    model, _ = ours(bf16=True)
    module = lightning_page["Classifier"](net())
    trainer(tmp_path, precision="bf16-mixed").fit(module, loader())
    assert same(module.net, model)


def test_lightning_accumulation_is_refused(lightning_page, tmp_path):
    with pytest.raises(RuntimeError, match="the closure added to gradients that were there before"):
        trainer(tmp_path, accumulate_grad_batches=2).fit(lightning_page["Classifier"](net()), loader())


def test_what_training_step_logs_is_of_the_last_pass(lightning_page, tmp_path):
    """Why the page logs elsewhere."""
    _, losses = ours()

    class Logs(lightning_page["Classifier"]):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.log("logged", loss)
            return loss

    fit = trainer(tmp_path)
    fit.fit(Logs(net()), loader())
    assert fit.callback_metrics["train_loss"] == losses[-1]
    assert fit.callback_metrics["logged"] > losses[-1]  # at θ + ε: the last step of 0 → 1 is sharpness-aware


# --------------------------------------------------------------------------------------------------------- Accelerate


def accelerate_page(folder, begin=0, state=None):
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    names = {"model": net(), "loader": loader(), "epochs": EPOCHS, "folder": folder}
    (block,) = blocks("accelerate.md")
    block = block.replace("Accelerator()", "Accelerator(cpu=True)")
    setup, training = block.split("for epoch in range(epochs):")
    names["begin"] = begin
    exec(setup, names)
    if state:
        names["accelerator"].load_state(state)
    exec("for epoch in range(begin, epochs):" + training, names)
    return names


def test_accelerate_steps_as_our_loop_does(tmp_path):
    model, losses = ours(clip=True)
    names = accelerate_page(tmp_path)
    assert same(names["accelerator"].unwrap_model(names["model"]), model)
    assert names["loss"] == losses[-1]


def test_accelerate_resumes_as_if_undisturbed(tmp_path):
    model, _ = ours(clip=True)
    accelerate_page(tmp_path)
    names = accelerate_page(tmp_path / "again", begin=1, state=tmp_path / "0")
    assert same(names["accelerator"].unwrap_model(names["model"]), model)


# --------------------------------------------------------------------------------------------------------------- timm


def test_timm_schedules_and_averages():
    names = {"model": net(), "loader": loader(), "epochs": EPOCHS}
    (block,) = blocks("timm.md")
    exec(block, names)
    assert names["loss"].isfinite()
    rates = [names["scheduler"]._get_lr(step)[0] for step in (0, 3, 5, 20)]
    assert rates[0] < rates[1] < rates[2] > rates[3]
    assert names["optimizer"].param_groups[0]["lr"] == pytest.approx(rates[3])
    assert not same(names["ema"].module, names["model"])
