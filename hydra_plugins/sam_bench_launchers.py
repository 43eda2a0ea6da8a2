"""The launchers of `sam_bench.launchers`, where Hydra finds them: it takes plugins only if they are defined here."""

from sam_bench import launchers


class JoblibLauncher(launchers.JoblibLauncher):
    """`hydra/launcher=joblib`."""


class SubmititLauncher(launchers.SubmititLauncher):
    """`hydra/launcher=submitit_slurm` and `submitit_local`."""


class RayLauncher(launchers.RayLauncher):
    """`hydra/launcher=ray`."""
