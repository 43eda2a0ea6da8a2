"""python -m sam_bench.dashboard ENTITY/PROJECT: a saved W&B workspace over the runs of an experiment.

Accuracy against propagations, the final accuracy, the counted cost and the time, grouped by setting. `--json` prints
the workspace without an account. Imports no torch.
"""

import argparse
import json
import re
import sys
from typing import Any

from sam_bench.errors import SettingError, reason

CURVES = ("test_accuracy", "validation_accuracy", "train_accuracy", "test_loss", "train_loss")  # rows of metrics.csv
RESULTS = {  # keys of result.json, which are the summary of a run
    "test_accuracy": "Test accuracy, last epoch",
    "propagations_per_step": "Propagations per step",
    "seconds": "Seconds of training",
    "images_per_second": "Images per second",
    "sharpness_aware_steps": "Sharpness-aware steps",
    "peak_memory_bytes": "Peak memory, bytes",
}
SHARPNESS = ("sharpness.lambda_max", "sharpness.trace", "sharpness.loss_rise")
GROUP = "cell"  # key of a run's config
FILTERS = ("experiment", "protocol")  # keys of a run's config


def workspace(entity: str, project: str, experiment: str | None = None, protocol: str | None = None) -> Any:
    """The workspace, not saved yet."""
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    def lines(metric: str) -> Any:
        return wr.LinePlot(title=metric, x="propagations", y=[metric], groupby=GROUP, groupby_aggfunc="mean")

    def bars(metric: str, title: str) -> Any:
        return wr.BarPlot(title=title, metrics=[metric], groupby=GROUP, groupby_aggfunc="mean")

    scatter = wr.ScatterPlot(title="Accuracy against cost", x="propagations_per_step", y="test_accuracy")
    sharp = wr.ScatterPlot(title="Sharpness against accuracy", x="sharpness.lambda_max", y="test_accuracy")
    chosen = {"experiment": experiment, "protocol": protocol}
    filters = [ws.Config(key) == chosen[key] for key in FILTERS if chosen[key]]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"sam_bench: {experiment or 'all experiments'}{f', {protocol}' if protocol else ''}",
        sections=[
            ws.Section(name="Curves against propagations", panels=[lines(each) for each in CURVES], is_open=True),
            ws.Section(
                name="Results", panels=[scatter, *(bars(key, title) for key, title in RESULTS.items())], is_open=True
            ),
            ws.Section(name="Sharpness", panels=[sharp, *(bars(key, key) for key in SHARPNESS)], is_open=False),
        ],
        settings=ws.WorkspaceSettings(x_axis="propagations"),
        runset_settings=ws.RunsetSettings(filters=ws.And(*filters) if filters else [], groupby=[ws.Config(GROUP)]),
    )


def main(arguments: list[str]) -> None:
    """Save the workspace and print its address, or print it as JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m sam_bench.dashboard", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("project", help="ENTITY/PROJECT")
    parser.add_argument("--experiment", help="only the runs of this experiment")
    parser.add_argument("--protocol", help="only the runs of this protocol")
    parser.add_argument("--json", action="store_true", help="print it; needs no account")
    given = parser.parse_args(arguments)
    try:
        entity, _, project = given.project.partition("/")
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", given.project):
            raise SettingError(f"{given.project}: should be ENTITY/PROJECT")
        made = workspace(entity, project, given.experiment, given.protocol)
        if given.json:
            print(json.dumps(json.loads(made._to_model().model_dump_json(by_alias=True, exclude_none=True)), indent=1))
            return
        try:
            print(made.save().url)
        except Exception as error:  # whatever W&B raises without a login or a network
            raise SettingError(
                f"{given.project}: cannot be saved ({reason(error)}); run wandb login, or print it with --json"
            ) from error
    except SettingError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
