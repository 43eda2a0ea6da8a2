"""Sharpness-aware optimizers. Each wraps a ready base optimizer and is a `torch.optim.Optimizer`. Needs only torch.

optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05, model=model)
loss = optimizer.step(closure)       # closure: zero_grad, forward, backward, return the loss
"""

from sam_bench.optim.aelooksam import AELookSAM
from sam_bench.optim.aesam import AESAM
from sam_bench.optim.asam import ASAM
from sam_bench.optim.asyncsam import AsyncSAM
from sam_bench.optim.ausam import AUSAM
from sam_bench.optim.checks import ArgumentError
from sam_bench.optim.closure import BatchClosure, Closure, SampleClosure
from sam_bench.optim.descent import Descent
from sam_bench.optim.esam import ESAM
from sam_bench.optim.fsam import FSAM
from sam_bench.optim.grst import GRST
from sam_bench.optim.gsam import GSAM
from sam_bench.optim.ksam import KSAM
from sam_bench.optim.looksam import LookSAM
from sam_bench.optim.mesa import MESA
from sam_bench.optim.msam import MSAM
from sam_bench.optim.rst import RST
from sam_bench.optim.s2sam import S2SAM
from sam_bench.optim.saf import SAF
from sam_bench.optim.sam import SAM
from sam_bench.optim.sampa import SAMPa
from sam_bench.optim.schedules import Constant, Linear, Piecewise, Trigonometric
from sam_bench.optim.ssam_d import SSAMD
from sam_bench.optim.ssam_f import SSAMF
from sam_bench.optim.vasso import VaSSO
from sam_bench.optim.vsam import VSAM
