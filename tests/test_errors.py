"""Wrong inputs: one clear line on standard error that names the setting, exit status 2, and nothing written."""

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sam_bench import checkpoint
from tests.command import TINY
from tests.processes import in_a_process, train, wait_for

REPOSITORY = Path(__file__).parent.parent
GROUPS = {
    "optimizer": "sam",
    "model": "resnet18",
    "dataset": "digits",
    "trainer": "short",
    "logger": "none",
    "schedule": "linear",
    "optimizer/base": "sgd",
    "optimizer/inner": "sam",
}
NUMBERS = (
    *("seed", "trainer.epochs", "trainer.batch_size", "trainer.seeds", "trainer.clip", "trainer.label_smoothing"),
    *("optimizer.warmup_epochs", "optimizer.base.lr", "schedule.start", "dataset.padding", "dataset.validation"),
)
BOOLEANS = ("trainer.decay_in_loss", "trainer.channels_last", "dataset.flip", "optimizer.base.nesterov")
WRONG: list[tuple[list[str], int, list[str]]] = [
    # what Hydra itself refuses
    (["optimizer=smart"], 2, ["optimizer=smart: no such choice", "choose adamw, adasam"]),
    (["schedule=cubic"], 2, ["schedule=cubic: no such choice", "choose constant, linear, piecewise, trigonometric"]),
    (["optimizer/inner=smart"], 2, ["optimizer/inner=smart: no such choice", "sam"]),
    (
        ["trainer.epoch=3"],
        2,
        ["trainer.epoch: no such setting, did you mean epochs?", "trainer has epochs, batch_size"],
    ),
    (["optimizer=sam", "optimizer.roh=0.1"], 2, ["optimizer.roh: no such setting, did you mean rho?", "base.lr"]),
    (["no_such_setting=1"], 2, ["no_such_setting: no such setting"]),
    # values out of range
    (["optimizer=sam", "optimizer.rho=-0.1"], 2, ["optimizer.rho=-0.1", "a number in [0, ∞)"]),
    (["optimizer=sam", "optimizer.rho=nan"], 2, ["optimizer.rho=nan", "finite number"]),
    (["optimizer=sam", "optimizer.rho=big"], 2, ["optimizer.rho=big", "number"]),
    (["optimizer.inner.rho=-1"], 2, ["optimizer.inner.rho=-1", "a number in [0, ∞)"]),
    (["schedule=constant", "schedule.p=1.5"], 2, ["schedule.p=1.5", "[0, 1]"]),
    (["schedule=linear", "schedule.end=1.01"], 2, ["schedule.end=1.01", "[0, 1]"]),
    (["schedule=piecewise", "schedule.a=-0.1"], 2, ["schedule.a=-0.1", "[0, 1]"]),
    (["schedule=trigonometric", "schedule.start=2"], 2, ["schedule.start=2", "[0, 1]"]),
    (["trainer.epochs=0"], 2, ["trainer.epochs=0", "greater than 0"]),
    (["trainer.epochs=2.5"], 2, ["trainer.epochs=2.5", "integer"]),
    (["trainer.epochs=many"], 2, ["trainer.epochs=many", "integer"]),
    (["trainer.batch_size=0"], 2, ["trainer.batch_size=0", "greater than 0"]),
    (["trainer.label_smoothing=1"], 2, ["trainer.label_smoothing=1", "less than 1"]),
    (["trainer.clip=0"], 2, ["trainer.clip=0", "greater than 0"]),
    (["trainer.precision=fp16"], 2, ["trainer.precision=fp16", "'bf16' or 'fp32'"]),
    (["trainer.precision=fp8"], 2, ["trainer.precision=fp8", "'fp32' or 'bf16'"]),
    (["trainer.device=tpu"], 2, ["trainer.device=tpu"]),
    (["trainer.compile=maybe"], 2, ["trainer.compile=maybe", "auto, true or false"]),
    (["trainer.cuda_graphs=1"], 2, ["trainer.cuda_graphs=1", "auto, true or false"]),
    (
        ["trainer.cuda_graphs=true", "trainer.device=cpu"],
        2,
        ["trainer.cuda_graphs=true", "not cpu"],
    ),
    (["trainer.seeds=0"], 2, ["trainer.seeds=0", "greater than 0"]),
    (["seed=-1"], 2, ["seed=-1", "greater than or equal to 0"]),
    (["optimizer.base.lr=-0.1"], 2, ["optimizer/base=sgd", "Invalid learning rate: -0.1"]),
    (["optimizer.base.weight_decay=-1"], 2, ["optimizer/base=sgd", "Invalid weight_decay value: -1"]),
    (["optimizer.base.momentum=-1"], 2, ["optimizer/base=sgd", "Invalid momentum value: -1"]),
    (["optimizer.base.momentum=nan"], 2, ["optimizer.base.momentum=nan", "finite"]),
    (["optimizer.base.nesterov=maybe"], 2, ["optimizer.base.nesterov=maybe", "boolean"]),
    (["optimizer/base=adamw", "optimizer.base.betas=[0.9]"], 2, ["optimizer.base.betas=[0.9]"]),
    (["optimizer.base._target_=torch.optim.Adagard"], 2, ["optimizer.base._target_=torch.optim.Adagard", "imported"]),
    (["+optimizer.base.lrr=1"], 2, ["optimizer.base.lrr", "sgd has no such setting", "momentum"]),
    (["+optimizer.base.differentiable=true"], 2, ["optimizer/base=sgd", "differentiable"]),
    (["dataset.cutout=99999999999999999999"], 2, ["dataset.cutout=", "more than the 8 pixels"]),
    (["trainer.device=mps"], 2, ["trainer.device=mps", "auto, cpu, cuda"]),
    (["dataset.subset=0"], 2, ["dataset.subset=0", "an integer of at least 1"]),
    (["dataset.subset=2000"], 2, ["dataset.subset=2000", "1437 images"]),
    (["dataset.padding=-1"], 2, ["dataset.padding=-1"]),
    (["logger=wandb", "logger.mode=sometimes"], 2, ["logger.mode=sometimes", "'offline' or 'online'"]),
    (["+trainer.speed=fast"], 2, ["trainer.speed: no such setting, did you mean seeds?; trainer has epochs"]),
    (["+schedule.p=1"], 2, ["schedule.p: linear has no such setting; it has start, end"]),
    (["+optimizer.rho=1"], 2, ["optimizer.rho: rst has no such setting; it has", "optimizer.inner.rho is that of sam"]),
    (["optimizer=timm"], 2, ["optimizer.base.opt: has no default", "lamb", "timm.optim.list_optimizers()"]),
    (["model=timm"], 2, ["model.architecture: has no default", "timm.list_models()"]),
    (["+optimizer.sparsity=0.5"], 2, ["optimizer.sparsity", "rst has no such setting", "warmup_epochs"]),
    # the settings of the methods
    (["optimizer=ssam_f", "optimizer.sparsity=1.5"], 2, ["optimizer.sparsity=1.5", "a number in [0, 1)"]),
    (["optimizer=ssam_d", "optimizer.sparsity=-0.1"], 2, ["optimizer.sparsity=-0.1", "a number in [0, 1)"]),
    (["optimizer=ssam_f", "optimizer.pattern=n:m", "optimizer.n=5"], 2, ["optimizer.n=5", "at most m, which is 4"]),
    (
        ["optimizer=ssam_f", "optimizer.pattern=blocks"],
        2,
        ["optimizer.pattern=blocks", "one of unstructured, tensor, channel, n:m"],
    ),
    (["optimizer=ssam_f", "optimizer.form=implicit"], 2, ["optimizer.form=implicit", "emulated"]),
    (
        ["optimizer=ssam_f", "optimizer.form=implicit", "trainer.precision=bf16"],
        2,
        ["optimizer.form=implicit", "pattern n:m with 2:4"],
    ),
    (["optimizer=ssam_f", "optimizer.pattern=n:m", "optimizer.m=7"], 2, ["optimizer.m=7", "divides"]),
    (["optimizer=saf", "trainer.epochs=5"], 2, ["optimizer.start_epochs=5", "an earlier start: this is step"]),
    (["optimizer=vsam", "trainer.epochs=2"], 2, ["optimizer.sam_epochs=3", "an earlier start: this is step"]),
    (
        ["optimizer=rst", "optimizer/inner=ausam", "optimizer.inner.full_epochs=20"],
        2,
        ["optimizer.inner.full_epochs=20", "an earlier start: this is step"],
    ),
    (["optimizer=gsam", "optimizer.rho_min=0.01", "optimizer.base.lr=0"], 2, ["optimizer=gsam", "lr: 0"]),
    (
        [
            "optimizer=ssam_f",
            "optimizer.form=implicit",
            "optimizer.pattern=n:m",
            "trainer.device=cpu",
            "trainer.precision=bf16",
        ],
        2,
        ["optimizer.form=implicit", "this is cpu", "compute capability 8.0 or newer"],
    ),
    (["optimizer=ssam_d", "optimizer.drop=luck"], 2, ["optimizer.drop=luck", "one of gradient, weight, random"]),
    (["optimizer=esam", "optimizer.beta=0"], 2, ["optimizer.beta=0", "a number in (0, 1]"]),
    (["optimizer=esam", "optimizer.gamma=1.1"], 2, ["optimizer.gamma=1.1", "a number in (0, 1]"]),
    (["optimizer=looksam", "optimizer.k=0"], 2, ["optimizer.k=0", "an integer of at least 1"]),
    (["optimizer=looksam", "optimizer.k=2.5"], 2, ["optimizer.k=2.5", "integer"]),
    (["optimizer=saf", "optimizer.start_epochs=1.5"], 2, ["optimizer.start_epochs=1.5", "integer"]),
    (["optimizer=saf", "optimizer.tau_squared=3"], 2, ["optimizer.tau_squared=3", "boolean"]),
    (["optimizer=sam", "optimizer.rho=true"], 2, ["optimizer.rho=true", "number"]),
    (["optimizer=sam", "+optimizer.total_steps=3"], 2, ["optimizer.total_steps: sam has no such setting"]),
    (["optimizer=sam", "+optimizer.model=3"], 2, ["optimizer.model: sam has no such setting"]),
    (["optimizer=sam", "+optimizer/inner=asam"], 2, ["optimizer.inner: sam has no such setting"]),
    (["optimizer._target_=sam_bench.optim.SMA"], 2, ["optimizer._target_=sam_bench.optim.SMA", "cannot be imported"]),
    (["optimizer=sgd", "optimizer._target_=torch.optim.SGD"], 2, ["optimizer=sgd"]),
    (["optimizer=sam", "optimizer.base._target_=builtins.dict"], 2, ["optimizer/base=sgd"]),
    (["+dataset.image_size=8"], 2, ["dataset.image_size: digits has no such setting; it has", "subset", "cutout"]),
    (["trainer.decay_in_loss=true", "optimizer.base.weight_decay=-1"], 2, ["Invalid weight_decay value: -1"]),
    (["trainer.checkpoint_minutes=-1"], 2, ["trainer.checkpoint_minutes=-1", "greater than or equal to 0"]),
    (["optimizer=ksam", "optimizer.share=0"], 2, ["optimizer.share=0", "a number in (0, 1]"]),
    (["optimizer=sam", "optimizer.ascent_share=0"], 2, ["optimizer.ascent_share=0", "a number in (0, 1]"]),
    (["optimizer=gsam", "optimizer.rho_min=1"], 2, ["optimizer.rho_min=1", "at most rho_max, which is 0.05"]),
    (["optimizer=ausam", "optimizer.f_min=1"], 2, ["optimizer.f_min=1", "at most f_max, which is 0.5"]),
    (["optimizer=fsam", "optimizer.lam=2"], 2, ["optimizer.lam=2", "a number in [0, 1]"]),
    (["optimizer=mesa", "optimizer.decay=1"], 2, ["optimizer.decay=1", "a number in [0, 1)"]),
    (["optimizer=saf", "optimizer.tau=0"], 2, ["optimizer.tau=0", "a number in (0, 1000000.0]"]),
    (["optimizer=vsam", "optimizer.window=0"], 2, ["optimizer.window=0", "an integer from 1 to 10000"]),
    (
        ["optimizer=msam", "optimizer.base.momentum=0", "optimizer.base.nesterov=false"],
        2,
        ["optimizer/base=sgd", "momentum 0"],
    ),
    (["optimizer=late_sam", "optimizer.schedule=linear"], 2, ["optimizer.schedule=linear", "_target_"]),
    (
        ["optimizer=vsam", "optimizer.quota_max=0.01"],
        2,
        ["optimizer.window=50: should be at least 1/quota_max, which is 100"],
    ),
    (["optimizer=late_sam", "optimizer.schedule.b=2"], 2, ["optimizer.schedule.b=2", "[0, 1]"]),
    *(
        ([f"optimizer={outer}", f"optimizer/inner={inner}"], 2, [f"optimizer/inner={inner}", why, "such as SAM"])
        for outer in ("rst", "grst")
        for inner, why in {
            "msam": "only one pass",
            "saf": "only one pass",
            "mesa": "only one pass",
            "vsam": "itself",
            "aesam": "itself",
            "aelooksam": "itself",
        }.items()
    ),
    (["optimizer=grst", "optimizer/inner=esam"], 2, ["optimizer/inner=esam", "beta=1"]),
    (["optimizer=esam", "trainer.compile=true"], 2, ["trainer.compile=true", "esam"]),
    # combinations that cannot work
    (["trainer.batch_size=2000"], 2, ["trainer.batch_size=2000", "1437 training images"]),
    (["trainer.accumulate=3"], 2, ["trainer", "accumulate=3", "batch_size=64"]),
    (["trainer.warmup_epochs=21"], 2, ["warmup_epochs=21", "epochs=20"]),
    (["optimizer.warmup_epochs=20"], 2, ["optimizer.warmup_epochs=20", "an earlier start: this is step"]),
    (["optimizer=grst", "optimizer.weight=1"], 2, ["optimizer=grst", "gamma and weight: 2.0 and 1", "null"]),
    (["optimizer=grst", "optimizer.gamma=null"], 2, ["optimizer=grst", "gamma and weight: None and None"]),
    (["optimizer/inner=adasam"], 2, ["optimizer/inner=adasam: no such choice", "sam"]),
    (["optimizer/inner=rst"], 2, ["optimizer/inner=rst: no such choice", "sam"]),
    (["dataset._target_=mnist"], 2, ["dataset._target_=mnist", "cannot be imported"]),
    (["model=vgg11_bn"], 2, ["model=vgg11_bn, dataset=digits"]),
    (["model=timm", "model.architecture=resnt18"], 2, ["model.architecture=resnt18", "resnet18"]),
    (["+model.depth=3"], 2, ["model.depth: small_resnet has no such setting"]),
    (["+model.num_classes=5"], 2, ["model.num_classes: small_resnet has no such setting"]),
    (["model=timm", "model.architecture=test_resnet", "+model.kwargs.features_only=true"], 2, ["model=test_resnet"]),
    (["optimizer=timm", "optimizer.base.opt=adahessian"], 2, ["optimizer=adahessian"]),
    (["optimizer=timm", "optimizer.base.opt=bnbadam"], 2, ["optimizer/base=timm"]),
    (["optimizer=timm", "optimizer.base.opt=kron"], 2, ["optimizer.base.opt=kron", "except kron"]),
    (["dataset=cifar10", "dataset.root=null"], 2, ["dataset.root=null", "cifar10"]),
    (["optimizer.base=3"], 2, ["optimizer.base=3", "optimizer/base=NAME"]),
    (["optimizer.base.momentum=0"], 2, ["optimizer/base=sgd", "Nesterov momentum requires a momentum"]),
    (["dataset.padding=9"], 2, ["dataset.padding=9", "8 pixels"]),
    (["dataset.cutout=9"], 2, ["dataset.cutout=9", "8 pixels"]),
    (["optimizer=timm", "optimizer.base.opt=lambada"], 2, ["optimizer.base.opt=lambada", "lamb"]),
    # groups and names that there are not
    *(([f"{group}=null"], 2, [f"{group}=null: should be a file of conf/{group}/"]) for group in GROUPS),
    *(([f"{group}=3"], 2, [f"{group}=3: should be a file of conf/{group}/"]) for group in GROUPS),
    *(([f"+{group}={name}"], 2, [f"{group}: is already chosen; give one choice"]) for group, name in GROUPS.items()),
    *(([f"{group}={name}x"], 2, [f"{group}={name}x: no such choice, did you mean"]) for group, name in GROUPS.items()),
    *(
        ([f"~{group}"], 2, [f"{group}=null: should be a file"])
        for group in ("optimizer", "model", "dataset", "trainer")
    ),
    (["~schedule"], 2, ["schedule=null: optimizer=rst needs one; choose constant, linear"]),
    (["optimizer=sam,sgd"], 2, ["optimizer=sam,sgd: several values need -m"]),
    (["trainer.epochs=1,2"], 2, ["trainer.epochs=1,2: several values need -m"]),
    (["optimizer=[sam,sgd]"], 2, ["optimizer/base"]),
    (
        ["optimizer=sam", "optimizer/inner=asam"],
        2,
        ["optimizer/inner: this optimizer wraps no other method; grst, late_sam, rst, rst_s2sam, s2sam do"],
    ),
    (["dataset/inner=asam"], 2, ["dataset/inner"]),
    (["foo/bar=x"], 2, ["foo/bar: no such setting"]),
    (["+foo/bar=x"], 2, ["foo/bar"]),
    (["+experiment=nope"], 2, ["experiment=nope: no such choice", "rst_cifar10"]),
    (["hydra/launcher=nope"], 2, ["hydra/launcher=nope: no such choice"]),
    (["hydra.mode=nope"], 2, ["hydra.mode: Invalid value 'nope'", "RUN, MULTIRUN"]),
    # what is not NAME=VALUE
    *(
        ([text], 2, [f"{text}: is not NAME=VALUE"])
        for text in ("foo", "a=b=c", "trainer..epochs=3", "'", "seed=[1", "a.=1")
    ),
    (["=3"], 2, ["Config group override must be a string"]),
    (["--nope"], 2, ["--nope: no such flag"]),
    (["--multirun=3"], 2, ["--multirun"]),
    (["--config-name=nope"], 2, ["error: Cannot find primary config 'nope'.\n"]),
    (["--config-dir=/no/such/folder"], 2, ["/no/such/folder"]),
    (["--config-dir"], 2, ["config directory", "not found"]),
    # settings without effect
    (["optimizer=sam", "+optimizer.inner.rho=0.1"], 2, ["optimizer.inner: optimizer=sam wraps no other method"]),
    (["optimizer=sam", "+optimizer.inner.nonsense=1"], 2, ["optimizer.inner: optimizer=sam wraps no other method"]),
    (["optimizer=sam", "++optimizer.inner.rho=0.1"], 2, ["optimizer.inner: optimizer=sam wraps no other method"]),
    (["optimizer=sgd", "++optimizer.rho=0.1"], 2, ["optimizer.rho: sgd has no such setting"]),
    (["optimizer=sgd", "+optimizer.rho=0.1"], 2, ["optimizer.rho: sgd has no such setting"]),
    (
        ["optimizer=sgd", "optimizer.rho=0.1"],
        2,
        ["optimizer.rho: no such setting", "in a sweep, ++optimizer.rho=VALUES"],
    ),
    (["+optimizer.inner.inner.x=3"], 2, ["optimizer.inner.inner: sam has no such setting"]),
    (["+optimizer.inner.base=3"], 2, ["optimizer.inner.base: sam has no such setting"]),
    (["+optimizer.inner.nonsense=3"], 2, ["optimizer.inner.nonsense: sam has no such setting"]),
    (["+optimizer.base.params=3"], 2, ["optimizer.base.params: sgd has no such setting"]),
    (["+optimizer.group=x"], 2, ["optimizer.group: rst has no such setting"]),
    (["+schedule.group=x"], 2, ["schedule.group: linear has no such setting"]),
    (["+dataset.group=x"], 2, ["dataset.group: digits has no such setting"]),
    (["+dataset.contents=x"], 2, ["dataset.contents: is computed from the images"]),
    (["+dataset.workers=2"], 2, ["dataset.workers: digits has no such setting"]),
    (["+dataset.root=/tmp"], 2, ["dataset.root: digits has no such setting"]),
    (["dataset.root=/tmp"], 2, ["dataset.root: no such setting"]),
    (["+logger.project=mine"], 2, ["logger.project: has no effect with logger=none"]),
    (["+logger.mode=online"], 2, ["logger.mode: has no effect with logger=none"]),
    (["optimizer=sam", "schedule=linear"], 2, ["schedule=linear: has no effect, optimizer=sam does not take it"]),
    (["optimizer=late_sam", "schedule.end=0.5"], 2, ["schedule.end=0.5: has no effect"]),
    (["optimizer=ssam_f", "optimizer.n=1"], 2, ["optimizer.n=1: should be null with pattern unstructured"]),
    (
        ["optimizer=ssam_d", "optimizer.pattern=tensor", "optimizer.m=8"],
        2,
        ["optimizer.m=8: should be null with pattern"],
    ),
    (
        ["optimizer=ssam_f", "optimizer.pattern=n:m", "optimizer.sparsity=0.3"],
        2,
        ["optimizer.sparsity=0.3: should be null"],
    ),
    (["optimizer=grst", "optimizer.gamma_max=3"], 2, ["optimizer.gamma_max=3: should be null with a fixed gamma"]),
    (["optimizer.schedule=null"], 2, ["optimizer=rst: missing 1 required positional argument: 'schedule'"]),
    (["optimizer.inner=null"], 2, ["optimizer=rst: needs an inner method"]),
    (["optimizer.base=null"], 2, ["optimizer.base=null: an optimizer needs one; choose optimizer/base=adamw, sgd"]),
    (["optimizer._target_=null"], 2, ["optimizer._target_=null: should be the dotted name"]),
    (["optimizer._target_=3"], 2, ["optimizer._target_=3: should be the dotted name"]),
    (["model._target_=os.getcwd"], 2, ["model._target_=os.getcwd: returned a str, not a torch.nn.Module"]),
    (["dataset._target_=os.getcwd"], 2, ["dataset=digits: returned a str, not Arrays"]),
    (["~trainer.epochs"], 2, ["trainer.epochs: is missing"]),
    (["~nope"], 2, ["'nope' does not exist"]),
    (["+trainer.epochs=3"], 2, ["trainer.epochs: is already a setting; drop the +"]),
    # numbers that are none, and the other way round
    *(([f"{name}=true"], 2, [f"{name}=true: should be"]) for name in NUMBERS),
    *(([f"{name}=many"], 2, [f"{name}=many: should be"]) for name in NUMBERS),
    *(([f"{name}=[1,2]"], 2, [f"{name}=[1, 2]: should be"]) for name in NUMBERS),
    *(([f"{name}=1"], 2, [f"{name}=1: should be a valid boolean"]) for name in BOOLEANS),
    *(([f"{name}=maybe"], 2, [f"{name}=maybe: should be a valid boolean"]) for name in BOOLEANS),
    (["runs=5"], 2, ["runs=5: is not a valid path"]),
    (["runs=${nope}"], 2, ["runs: Interpolation key 'nope' not found"]),
    (["runs=${runs}"], 2, ["runs: Recursive interpolation"]),
    (["runs=${"], 2, ["runs=${: is not NAME=VALUE"]),
    (["optimizer.base.lr=${nope}"], 2, ["optimizer.base.lr: Interpolation key 'nope' not found"]),
    (["optimizer=sam", "optimizer.rho=[1,2]"], 2, ["optimizer.rho: Cannot merge DictConfig with ListConfig"]),
    (["seed=${oc.env:NO_SUCH_VARIABLE}"], 2, ["seed:", "NO_SUCH_VARIABLE"]),
    (["seed={a:1}"], 2, ["seed: should be a valid integer"]),
    (["trainer=[]"], 2, ["trainer=null: should be a file of conf/trainer/"]),
    (["+optimizer.name=''"], 2, ["optimizer.name=: String should have at least 1 character"]),
    (["trainer.device=0"], 2, ["trainer.device=0: should be auto, cpu, cuda or cuda:N"]),
    (["trainer.device=cuda:99999999999"], 2, ["trainer.device=cuda:99999999999: should be"]),
    # absurd numbers
    (["trainer.seeds=257"], 2, ["trainer.seeds=257: should be less than or equal to 256"]),
    (["trainer.seeds=1000000"], 2, ["trainer.seeds=1000000: should be less"]),
    (["trainer.seeds=2147483648"], 2, ["trainer.seeds=2147483648: should be less"]),
    (["seed=2147483647", "trainer.seeds=2"], 2, ["error: seed=2147483647: with trainer.seeds=2 the last"]),
    (["seed=2147483648"], 2, ["seed=2147483648: should be less than"]),
    (["trainer.epochs=1000001"], 2, ["trainer.epochs=1000001: should be less"]),
    (["trainer.epochs=1000000000"], 2, ["trainer.epochs=1000000000: should be less"]),
    (["trainer.batch_size=99999999999"], 2, ["trainer.batch_size=99999999999"]),
    (["trainer.batch_norm_epochs=101"], 2, ["trainer.batch_norm_epochs=101: should be auto or an integer"]),
    (["trainer.batch_norm_epochs=-1"], 2, ["trainer.batch_norm_epochs=-1: should be auto"]),
    (["optimizer=vsam", "optimizer.window=100000000"], 2, ["optimizer.window=100000000", "from 1 to 10000"]),
    (
        ["optimizer=vsam", "optimizer.window=1"],
        2,
        ["optimizer.window=1: should be at least 1/quota_max, which is 1.25"],
    ),
    (["optimizer=saf", "optimizer.tau=1e300"], 2, ["optimizer.tau=1e+300: should be a number in (0, 1000000.0]"]),
    (["optimizer=mesa", "optimizer.tau=1e300"], 2, ["optimizer.tau=1e+300: should be a number in (0, 1000000.0]"]),
    (["optimizer=saf", "optimizer.lag_epochs=100000"], 2, ["optimizer.lag_epochs=100000", "from 1 to 1000"]),
    (
        ["optimizer=ssam_f", "optimizer.samples=100000000"],
        2,
        ["optimizer.samples=100000000: should be at most the 1437 training images"],
    ),
    (["optimizer=grst", "optimizer.gamma=-1"], 2, ["optimizer.gamma=-1: should be a number in [0, ∞)"]),
    (["dataset.subset=5"], 2, ["dataset.subset=5: is fewer than the 10 classes"]),
    (["trainer.batch_norm_epochs=1", "model=vit_tiny"], 2, ["has no effect, model=vit_tiny has no BatchNorm"]),
    (["optimizer=sam", "optimizer.rho.cifar100=1"], 2, ["optimizer.rho.cifar100=1: has no effect, dataset=digits has"]),
    (["optimizer.inner.rho.cifar100=-3"], 2, ["optimizer.inner.rho.cifar100=-3: has no effect"]),
    (["seed=1", "dataset=3"], 2, ["error: dataset=3: should be a file of conf/dataset/"]),
    (["seed=1", "trainer.epochs=2", "model=null"], 2, ["error: model=null: should be a file of conf/model/"]),
    (["dataset.validation=1"], 2, ["dataset.validation=1: should be a number in [0, 1)"]),
    (["dataset.validation=-0.1"], 2, ["dataset.validation=-0.1: should be a number in [0, 1)"]),
    (["dataset.validation=0.001"], 2, ["dataset.validation=0.001: holds out 1 of 1437 images of 10 classes"]),
    (["dataset.validation=0.9999"], 2, ["dataset.validation=0.9999: holds out 1437 of 1437 images"]),
    (
        ["dataset.subset=100", "dataset.validation=0.5"],
        2,
        ["trainer.batch_size=64: is more than the 50 training images"],
    ),
]


def change_checkpoint(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change what a checkpoint holds; its checksum is right."""
    state = torch.load(path, weights_only=True)
    change(state)
    checkpoint.save(path, state["config_hash"], state["seed"], state)


def one_line(err: str) -> str:
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "status", "words"), WRONG, ids=lambda x: " ".join(x) if isinstance(x, list) else ""
)
def test_wrong_setting(command, arguments, status, words):
    got, _, err = command("logger=none", *arguments)
    assert got == status
    message = one_line(err)
    assert err == f"{message}\n"
    for word in words:
        assert word in f"{message}\n"
    assert not command.runs.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_cuda_asked_for_and_absent(command, device):
    status, _, err = command(f"trainer.device={device}")
    assert (status, one_line(err)) == (
        2,
        f"error: trainer.device={device}: torch sees no CUDA device; choose cpu or auto",
    )


def test_data_root_is_a_file(command, tmp_path):
    (tmp_path / "data").write_text("")
    status, _, err = command("dataset=cifar10", f"dataset.root={tmp_path / 'data'}")
    assert status == 2
    assert "dataset.root=" in one_line(err)
    assert "is a file" in err


def test_a_name_that_no_file_system_takes(command):
    command.runs = command.runs / ("x" * 300)
    status, _, err = command()
    assert status == 2
    assert "File name too long" in one_line(err)


def test_runs_is_a_file(command):
    command.runs.write_text("")
    status, _, err = command()
    assert status == 2
    assert "runs=" in one_line(err)


def test_a_missing_data_set_without_network(command, tmp_path, monkeypatch):
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens there
    status, _, err = command("dataset=cifar100", f"dataset.root={tmp_path / 'data'}")
    assert status == 2
    message = one_line(err)
    assert "no cifar-100-python there, and the download failed" in message
    assert "SAM_BENCH_DATA" in message
    assert not (tmp_path / "data").exists()
    assert not command.runs.exists()


def test_a_corrupt_cifar_file(command, tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "data_batch_3").write_bytes(b"torn")
    status, _, err = command("dataset=cifar10", f"dataset.root={tmp_path}")
    assert status == 2
    assert "data_batch_3 is broken" in one_line(err)
    assert "delete" not in err
    assert (folder / "data_batch_3").exists()


def test_a_missing_cifar_file_is_named_alone(command, tmp_path, monkeypatch, cifar_root):
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens there
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for path in (Path(cifar_root) / folder.name).iterdir():
        if path.name != "data_batch_3":
            (folder / path.name).symlink_to(path.resolve())
    status, _, err = command("dataset=cifar10", f"dataset.root={tmp_path}")
    assert status == 2
    assert f"{folder} lacks data_batch_3, and the download failed" in one_line(err)


def test_a_loss_that_is_not_finite_is_named_with_its_step(command):
    status, _, err = command(*TINY, "optimizer.base.lr=1e20", "trainer.warmup_epochs=0")
    assert status == 2
    assert "the loss or a weight is not finite at step" in one_line(err)
    assert "nothing was saved" in err


def test_a_test_loss_that_is_not_finite_is_a_divergence(command):
    """The loss of the only step is that of the first weights."""
    one_step = ["dataset.subset=32", "trainer.batch_size=32", "trainer.epochs=1", "trainer.warmup_epochs=0"]
    status, _, err = command("logger=none", "optimizer=sgd", "optimizer.base.lr=1e5", *one_step)
    assert status == 2
    assert "the loss or a weight is not finite at step 1" in one_line(err)
    assert not command.folders()


@pytest.mark.parametrize(
    ("arguments", "suspects"),
    [
        (["optimizer=sam", "optimizer.rho=1e30"], "optimizer.base.weight_decay=0.0005, optimizer.rho=1e+30 may be"),
        (["optimizer=sgd", "optimizer.base.weight_decay=1e30"], "optimizer.base.weight_decay=1e+30 may be too large"),
        (
            ["optimizer=grst", "optimizer.gamma=1e30"],
            "optimizer.gamma=1e+30, optimizer.inner.rho=0.05 may be too large",
        ),
    ],
)
def test_a_divergence_names_what_may_have_caused_it(command, arguments, suspects):
    status, _, err = command(*TINY, *arguments)
    assert status == 2
    assert suspects in one_line(err)


def test_a_diverging_run_keeps_its_last_good_checkpoint(command):
    """A decay of 10 at a learning rate that rises to 2 multiplies the weights by up to -19 a step."""
    base = {"lr": 2, "weight_decay": 10, "momentum": 0, "nesterov": False}
    arguments = [f"optimizer.base.{key}={value}" for key, value in base.items()]
    status, _, err = command(*TINY, "optimizer=sgd", "trainer.warmup_epochs=3", *arguments)
    assert status == 2
    (last,) = command.runs.glob("*/*/last.pt")
    assert f"{last} has the last state that was saved" in one_line(err)
    state = torch.load(last, weights_only=True)
    assert len(state["rows"]) == 1
    assert all(tensor.isfinite().all() for tensor in state["model"].values())


@pytest.mark.parametrize("content", [b"", b"torn", b"PK\x03\x04"])
def test_a_torn_checkpoint_is_named_and_kept(command, content):
    assert command(*TINY)[0] == 0
    (folder,) = command.folders()
    (folder / "result.json").unlink()
    (folder / "last.pt").write_bytes(content)
    status, _, err = command(*TINY)
    assert status == 2
    assert f"{folder / 'last.pt'}: is damaged" in one_line(err)
    assert (folder / "last.pt").read_bytes() == content


def test_a_foreign_checkpoint_is_named_and_kept(command):
    command(*TINY, "seed=1")
    (other,) = command.folders()
    command(*TINY, "seed=0")
    mine = other.with_name("seed-0")
    (mine / "result.json").unlink()
    (mine / "last.pt").write_bytes((other / "last.pt").read_bytes())
    status, _, err = command(*TINY, "seed=0")
    assert status == 2
    assert "is the checkpoint of another run" in one_line(err)


def test_a_checkpoint_of_another_model_is_named_and_kept(command):
    command(*TINY)
    (folder,) = command.folders()
    (folder / "result.json").unlink()
    change_checkpoint(folder / "last.pt", lambda state: state["model"].pop("fc.weight"))
    before = {path: path.read_bytes() for path in folder.iterdir()}
    status, _, err = command(*TINY)
    assert status == 2
    assert f"{folder / 'last.pt'}: does not fit this run" in one_line(err)
    assert before == {path: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("content", ["{", "{}", "[]"])
def test_a_broken_result_is_named(command, content):
    command(*TINY)
    (folder,) = command.folders()
    (folder / "result.json").write_text(content)
    status, _, err = command(*TINY)
    assert status == 2
    assert "result.json: is not a valid result" in one_line(err)


def limited(arguments: list[str]) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # smaller than the checkpoint
    train(arguments)


def test_a_write_that_fails_keeps_the_last_good_checkpoint(tmp_path):
    arguments = [*TINY, f"runs={tmp_path}", "trainer.epochs=200", "trainer.checkpoint_minutes=0"]
    process = in_a_process(train, arguments)
    wait_for(lambda: list(tmp_path.glob("*/*/last.pt")), process.is_alive)
    process.kill()
    process.join()
    (last,) = tmp_path.glob("*/*/last.pt")
    good = last.read_bytes()
    code = "import sys; from tests.test_errors import limited; limited(sys.argv[1:])"
    process = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=REPOSITORY)
    assert process.returncode == 2
    assert f"{last}: cannot be written (File too large); its previous content is kept" in one_line(process.stderr)
    assert last.read_bytes() == good
    assert not list(last.parent.glob("*.partial"))


def test_no_space_is_said_before_training(command, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("only root may mount a disk of 1 MiB")
    try:
        command.runs = disk / "runs"
        status, _, err = command(*TINY)
        assert status == 2
        assert "1.0 MiB free, checkpoints need 3.0 MiB" in one_line(err)
        assert not command.runs.exists()
    finally:
        subprocess.run(["umount", disk], check=True)


def test_exit_status_and_silence_of_the_real_command(tmp_path):
    command = [sys.executable, "-m", "sam_bench", "trainer.epochs=0"]
    environment = {"PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: trainer.epochs=0: should be greater than 0\n"
    assert not list(tmp_path.iterdir())
