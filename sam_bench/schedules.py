"""The scheduling functions of RST, under the name that configurations and users import them by."""

from sam_bench.optim.schedules import Constant, Linear, Piecewise, Schedule, Trigonometric
