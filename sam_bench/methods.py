"""The registry: what `optimizer=NAME` means, what its settings may be. An entry gives a method the whole test battery.

Nothing here imports torch, so that a wrong setting is answered at once.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, NonNegativeInt

NonNegative = Annotated[FiniteFloat, Field(ge=0)]
Share = Annotated[FiniteFloat, Field(ge=0, lt=1)]


@dataclass(frozen=True)
class Method:
    """One optimizer.

    Attributes:
        cls: its class in `sam_bench.optim`.
        paper: where it comes from.
        kind: `plain` (a base optimizer alone), `inner` (a sharpness-aware step, alone or under a schedule) or
            `scheduled` (takes an inner method and a schedule).
        settings: its own settings and what each may be, as pydantic reads a type.

    """

    cls: str
    paper: str
    kind: Literal["plain", "inner", "scheduled"]
    settings: dict[str, Any] = field(default_factory=dict)


METHODS: dict[str, Method] = {
    "sgd": Method("Descent", "stochastic gradient descent with momentum", "plain"),
    "adamw": Method("Descent", "Loshchilov & Hutter, arXiv 1711.05101", "plain"),
    "timm": Method("Descent", "any optimizer of timm's factory", "plain"),
    "sam": Method("SAM", "Foret et al., arXiv 2010.01412", "inner", {"rho": NonNegative}),
    "rst": Method("RST", "Zhao et al., arXiv 2203.09962", "scheduled", {"warmup_epochs": NonNegativeInt}),
    "grst": Method(
        "GRST",
        "Zhao et al., arXiv 2203.09962",
        "scheduled",
        {
            "warmup_epochs": NonNegativeInt,
            "gamma": FiniteFloat | None,
            "weight": NonNegative | None,
            "gamma_max": NonNegative,
            "unit_norm": bool,
        },
    ),
}

# the settings of the base optimizers beside lr and weight_decay; those of timm are as many as its optimizers
BASES: dict[str, dict[str, Any] | None] = {
    "sgd": {"momentum": Share, "nesterov": bool, "fused": bool},
    "adamw": {"betas": tuple[Share, Share], "eps": NonNegative, "fused": bool},
    "timm": None,
}
