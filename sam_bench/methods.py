"""The registry: what `optimizer=NAME` means, what its settings may be, what it costs.

An entry gives a method the whole test battery, and a row in the catalogue: `python -m sam_bench.methods`. Nothing here
imports torch, so that a wrong setting is answered at once.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, FiniteFloat, NonNegativeInt, PositiveInt

NonNegative = Annotated[FiniteFloat, Field(ge=0)]
Positive = Annotated[FiniteFloat, Field(gt=0)]
Share = Annotated[FiniteFloat, Field(ge=0, lt=1)]
Closed = Annotated[FiniteFloat, Field(ge=0, le=1)]
Part = Annotated[FiniteFloat, Field(gt=0, le=1)]


@dataclass(frozen=True)
class Method:
    """One optimizer. Its defaults stand in conf/optimizer/NAME.yaml.

    Attributes:
        cls: its class, as `file.Class` of `sam_bench.optim`.
        paper: where it comes from.
        kind: `plain` (a base optimizer alone), `inner` (a sharpness-aware step, alone or under a schedule), `alone`
            (one that no schedule can have) or `scheduled` (takes an inner method and a schedule).
        settings: its own settings and what each may be, as pydantic reads a type. One that ends in `_epochs` reaches
            the class as `_steps`.
        cost: propagations a step, and extra forward passes, each a third of one.
        memory: what it keeps beside weights, gradients and the state of its base, in copies of the weights.
        state: what of that a checkpoint holds.
        single_samples: whether it needs a closure that tells samples apart.
        defaults: whose they are.
        alone: why no schedule can have it.

    """

    cls: str
    paper: str
    kind: Literal["plain", "inner", "alone", "scheduled"]
    settings: dict[str, Any] = field(default_factory=dict)
    cost: str = "1"
    memory: str = "0"
    state: str = ""
    single_samples: bool = False
    defaults: str = ""
    alone: str = ""


SAM = {"rho": NonNegative, "ascent_share": Part}
SPARSE = {
    **SAM,
    "sparsity": Share,
    "pattern": Literal["unstructured", "tensor", "channel", "n:m"],
    "n": PositiveInt,
    "m": PositiveInt,
    "form": Literal["explicit", "implicit", "emulated"],
    "update_epochs": PositiveInt,
}
RST = {"warmup_epochs": NonNegativeInt}

METHODS: dict[str, Method] = {
    "sgd": Method("descent.Descent", "stochastic gradient descent with momentum", "plain"),
    "adamw": Method("descent.Descent", "Loshchilov & Hutter, arXiv 1711.05101", "plain"),
    "timm": Method("descent.Descent", "any optimizer of timm's factory", "plain"),
    "sam": Method(
        "sam.SAM",
        "Foret et al., arXiv 2010.01412",
        "inner",
        SAM,
        cost="2",
        memory="1",
        defaults="the paper's, CIFAR-10",
    ),
    "asam": Method(
        "asam.ASAM",
        "Kwon et al., arXiv 2102.11600",
        "inner",
        {**SAM, "eta": NonNegative},
        cost="2",
        memory="1",
        defaults="the paper's, CIFAR-10",
    ),
    "gsam": Method(
        "gsam.GSAM",
        "Zhuang et al., arXiv 2203.08065",
        "inner",
        {"rho_min": NonNegative, "rho_max": NonNegative, "alpha": NonNegative, "ascent_share": Part},
        cost="2",
        memory="2",
        defaults="α: the authors' example; ρ: SAM's, constant as in that example",
    ),
    "esam": Method(
        "esam.ESAM",
        "Du et al., arXiv 2110.03141",
        "inner",
        {**SAM, "beta": Part, "gamma": Part},
        cost="1 + γ, + 1 forward where γ < 1",
        memory="1",
        single_samples=True,
        defaults="the authors' script, ResNet-18",
    ),
    "looksam": Method(
        "looksam.LookSAM",
        "Liu et al., arXiv 2203.02714",
        "inner",
        {**SAM, "k": PositiveInt, "alpha": NonNegative},
        cost="1 + 1/k",
        memory="3",
        state="1 (the component of gₛ across g)",
        defaults="k, α: the paper's; ρ: SAM's",
    ),
    "periodic_sam": Method(
        "looksam.LookSAM",
        "SAM at each k-th step: LookSAM with α = 0",
        "inner",
        {**SAM, "k": PositiveInt, "alpha": Literal[0]},
        cost="1 + 1/k",
        memory="1",
        defaults="k: LookSAM's; ρ: SAM's",
    ),
    "aesam": Method(
        "aesam.AESAM",
        "Jiang et al., arXiv 2304.14647",
        "alone",
        {"rho": NonNegative, "lambda_1": FiniteFloat, "lambda_2": FiniteFloat, "delta": Share},
        cost="1 to 2, about 1.5",
        memory="1",
        state="mean and variance of ‖g‖²",
        defaults="second-hand: δ 0.9, λ₁ -1, λ₂ 1; ρ: SAM's",
        alone="it chooses itself, from ‖g‖, which steps are sharpness-aware",
    ),
    "aelooksam": Method(
        "aelooksam.AELookSAM",
        "Jiang et al., arXiv 2304.14647",
        "alone",
        {
            "rho": NonNegative,
            "lambda_1": FiniteFloat,
            "lambda_2": FiniteFloat,
            "delta": Share,
            "alpha": NonNegative,
        },
        cost="1 to 2, about 1.5",
        memory="3",
        state="1 (the component of gₛ across g), mean and variance of ‖g‖²",
        defaults="as AE-SAM and LookSAM",
        alone="it chooses itself, from ‖g‖, which steps are sharpness-aware",
    ),
    "fsam": Method(
        "fsam.FSAM",
        "Li et al., arXiv 2403.12350",
        "inner",
        {**SAM, "sigma": NonNegative, "lam": Closed},
        cost="2",
        memory="2",
        state="1 (the mean gradient m)",
        defaults="the authors' script",
    ),
    "vasso": Method(
        "vasso.VaSSO",
        "Li & Giannakis, NeurIPS 2023",
        "inner",
        {**SAM, "theta": Closed},
        cost="2",
        memory="2",
        state="1 (the direction d)",
        defaults="the authors' script",
    ),
    "adasam": Method(
        "sam.SAM",
        "Sun et al., arXiv 2303.00565: SAM over AMSGrad",
        "alone",
        SAM,
        cost="2",
        memory="1",
        defaults="ρ: second-hand; base: torch's AdamW with amsgrad, without decay",
        alone="it is SAM over another base: optimizer/inner=sam optimizer/base=adamw optimizer.base.amsgrad=true",
    ),
    "ausam": Method(
        "ausam.AUSAM",
        "Deng et al., arXiv 2406.08001",
        "inner",
        {
            "rho": NonNegative,
            "share": Part,
            "f_min": Positive,
            "f_max": Positive,
            "ramp_epochs": NonNegativeInt,
            "full_epochs": NonNegativeInt,
            "ascent_share": Part,
        },
        cost="2 · share, 2 in the first full_epochs",
        memory="1",
        state="two numbers a training example",
        single_samples=True,
        defaults="the authors' code",
    ),
    "ksam": Method(
        "ksam.KSAM",
        "Ni et al., arXiv 2210.12864",
        "inner",
        {**SAM, "share": Part},
        cost="2 · share, + 1 forward",
        memory="1",
        single_samples=True,
        defaults="share: ours, for about SGD's cost; ρ: SAM's",
    ),
    "msam": Method(
        "msam.MSAM",
        "Becker et al., arXiv 2401.12033",
        "alone",
        {"rho": NonNegative},
        cost="1",
        memory="1",
        defaults="the authors' CIFAR configurations",
        alone="it has one pass, so no coin could save one",
    ),
    "saf": Method(
        "saf.SAF",
        "Du et al., arXiv 2205.14083",
        "alone",
        {
            "lam": NonNegative,
            "tau": Positive,
            "tau_squared": bool,
            "lag_epochs": PositiveInt,
            "start_epochs": NonNegativeInt,
        },
        cost="1",
        memory="0 and the outputs",
        state="lag_epochs × examples × classes numbers",
        single_samples=True,
        defaults="the authors' README; lag: their code",
        alone="it has one pass, so no coin could save one",
    ),
    "mesa": Method(
        "mesa.MESA",
        "Du et al., arXiv 2205.14083",
        "alone",
        {
            "lam": NonNegative,
            "tau": Positive,
            "tau_squared": bool,
            "decay": Share,
            "start_epochs": NonNegativeInt,
        },
        cost="1, + 1 forward",
        memory="1",
        state="1 (the averaged model)",
        single_samples=True,
        defaults="the authors' README; decay: their code",
        alone="it has one pass, so no coin could save one",
    ),
    "ssam_f": Method(
        "ssam_f.SSAMF",
        "Mi et al., arXiv 2210.05177, 2306.17504",
        "inner",
        {**SPARSE, "samples": PositiveInt},
        cost="2, + samples/batch at a new mask",
        memory="2",
        state="1 (the mask)",
        defaults="the authors' code, CIFAR-10; samples: within their range",
    ),
    "ssam_d": Method(
        "ssam_d.SSAMD",
        "Mi et al., arXiv 2210.05177, 2306.17504",
        "inner",
        {
            **SPARSE,
            "drop_rate": Closed,
            "drop": Literal["gradient", "weight", "random"],
            "grow": Literal["random", "gradient", "weight"],
        },
        cost="2",
        memory="2",
        state="1 (the mask)",
        defaults="the authors' code, CIFAR-10",
    ),
    "vsam": Method(
        "vsam.VSAM",
        "Deng et al., arXiv 2403.08821",
        "alone",
        {
            "rho": NonNegative,
            "window": PositiveInt,
            "quota_max": Part,
            "alpha_1": NonNegative,
            "alpha_2": NonNegative,
            "beta": Closed,
            "reuses": NonNegativeInt,
            "tensors": PositiveInt,
            "sam_epochs": NonNegativeInt,
        },
        cost="1 + m/K, adaptive",
        memory="3",
        state="1 (the last PSF), the window",
        defaults="the authors' code",
        alone="it chooses itself, by its window's quota, which steps are sharpness-aware",
    ),
    "rst": Method(
        "rst.RST",
        "Zhao et al., arXiv 2203.09962",
        "scheduled",
        RST,
        cost="1 + mean of p × (inner - 1)",
        memory="inner's",
        state="inner's",
        defaults="the authors' code",
    ),
    "grst": Method(
        "grst.GRST",
        "Zhao et al., arXiv 2203.09962",
        "scheduled",
        {**RST, "gamma": FiniteFloat | None, "weight": NonNegative | None, "gamma_max": NonNegative, "unit_norm": bool},
        cost="1 + mean of p × (inner - 1)",
        memory="inner's + 1",
        state="inner's",
        defaults="γ: SAM's own regularisation on average at p = ½",
    ),
    "late_sam": Method(
        "rst.RST",
        "Zhou et al., arXiv 2410.10373: SAM in the last epochs only",
        "scheduled",
        RST,
        cost="1 + the share of its epochs",
        memory="1",
        defaults="the last tenth: ours; ρ: SAM's",
    ),
}

# the settings of the base optimizers beside lr and weight_decay; those of timm are as many as its optimizers
BASES: dict[str, dict[str, Any] | None] = {
    "sgd": {"momentum": Share, "nesterov": bool, "fused": bool},
    "adamw": {"betas": tuple[Share, Share], "eps": NonNegative, "amsgrad": bool, "fused": bool},
    "timm": None,
}


def catalogue(conf: Path) -> str:
    """The registry as a Markdown table, the defaults from conf/optimizer/."""
    head = "`optimizer=` | paper | propagations a step | memory | state | single samples | under RST | defaults | whose"
    lines = [f"| {head} |", "|" + " --- |" * len(head.split(" | "))]
    for name, method in METHODS.items():
        own = yaml.safe_load((conf / "optimizer" / f"{name}.yaml").read_text())
        defaults = {key: value for key, value in own.items() if key in method.settings}
        if "schedule" in own:
            defaults |= {f"optimizer.schedule.{key}": value for key, value in own["schedule"].items()}
        cells = [
            f"`{name}`",
            method.paper,
            method.cost,
            method.memory,
            method.state,
            "yes" if method.single_samples else "",
            "yes" if method.kind == "inner" else "",
            ", ".join(f"{key} {'null' if value is None else str(value).lower()}" for key, value in defaults.items()),
            method.defaults,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    from sam_bench.__main__ import CONF

    print(catalogue(CONF))
