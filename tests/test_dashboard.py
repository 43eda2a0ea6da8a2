"""The W&B workspace: what it names is what runs log."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import wandb as library

from sam_bench import dashboard
from tests.test_tracker import records, values, wandb  # noqa: F401

REPOSITORY = Path(__file__).parent.parent


def printed(capfd, *words):
    dashboard.main(["team/project", "--json", *words])
    return json.loads(capfd.readouterr().out)


def names_in(node, *keys):
    """The strings under these keys, at any depth."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in keys:
                yield from [value] if isinstance(value, str) else (each for each in value if isinstance(each, str))
            yield from names_in(value, *keys)
    elif isinstance(node, list):
        for each in node:
            yield from names_in(each, *keys)


def test_every_name_in_it_is_one_that_runs_log(command, wandb, capfd):  # noqa: F811
    words = [each for each in wandb if each != "trainer.epochs=3"]
    validated = [*words, "trainer.epochs=1", "dataset.validation=0.2", "sharpness=cheap", "optimizer=sgd"]
    assert command("-m", "+experiment=cifar10_5000", "dataset=digits", "seed=0", *validated)[0] == 0
    library.teardown()
    (path,) = command.runs.rglob("*.wandb")
    found = records(path)
    logged, config = set(), set()
    for record in found:
        if record.HasField("history"):
            logged |= set(values(record.history.item))
        if record.HasField("summary"):
            for key, value in values(record.summary.update).items():
                logged |= {key, *(f"{key}.{inner}" for inner in value)} if isinstance(value, dict) else {key}
        if record.HasField("run"):
            config |= set(values(record.run.config.update))
    made = printed(capfd, "--experiment", "rst_main", "--protocol", "cpu")
    metrics = {name.removeprefix("summary:") for name in names_in(made, "metrics", "xAxis", "yAxis")} - {"_step"}
    assert {"propagations", "test_accuracy", "propagations_per_step", "sharpness.lambda_max"} <= metrics
    assert metrics <= logged
    grouped = {name.removesuffix(".value") for name in names_in(made, "groupBy")}
    assert grouped == {"cell"}
    assert {"cell", "group", "experiment", "protocol"} <= config
    filters = set(re.findall(r'"section": "config", "name": "(\w+)"', json.dumps(made)))
    assert {"experiment", "protocol"} <= filters <= config


def test_the_filter_is_of_the_experiment(capfd):
    text = json.dumps(printed(capfd, "--experiment", "rst_main"))
    assert '"value": "rst_main"' in text
    assert "rst_main" not in json.dumps(printed(capfd))


def test_without_an_account_it_says_so():
    code = [sys.executable, "-m", "sam_bench.dashboard", "team/project"]
    environment = {key: value for key, value in os.environ.items() if key != "WANDB_API_KEY"}
    environment |= {"WANDB_BASE_URL": "http://127.0.0.1:9", "HOME": "/nonexistent"}
    done = subprocess.run(
        code, cwd=REPOSITORY, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: team/project: cannot be saved (")
    assert "--json" in done.stderr


@pytest.mark.parametrize("name", ["team", "team/", "/project", "a/b/c"])
def test_a_name_that_is_none_is_refused(name, capfd):
    with pytest.raises(SystemExit) as exit_:
        dashboard.main([name, "--json"])
    assert exit_.value.code == 2
    assert capfd.readouterr().err == f"error: {name}: should be ENTITY/PROJECT\n"
