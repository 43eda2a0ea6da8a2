"""A tuning from the sweep to `+tuned=NAME`."""

import json

import pytest
import yaml

from sam_bench import choose
from sam_bench.configuration import compose_settings
from sam_bench.data import digits
from sam_bench.errors import SettingError
from tests.command import TINY
from tests.test_errors import one_line

SWEEP = [*TINY, "trainer.epochs=2", "dataset.validation=0.2"]


@pytest.fixture
def tuned(command, monkeypatch):
    """Three trials of SGD and of SAM, and a validation accuracy for each that we know."""
    monkeypatch.chdir(command.runs.parent)
    command("-m", *SWEEP, "optimizer=sgd", "optimizer.base.lr=0.05,0.1,0.2")
    command("-m", *SWEEP, "optimizer=sam", "optimizer.rho=0.02,0.05,0.1")
    for folder in command.folders():
        path = folder / "result.json"
        result = json.loads(path.read_text())
        optimizer = result["config"]["optimizer"]
        best = (optimizer["name"], optimizer.get("rho", optimizer["base"]["lr"])) in (("sgd", 0.1), ("sam", 0.1))
        # the test accuracy says the opposite, and takes no part
        path.write_text(json.dumps(result | {"validation_accuracy": 0.5 + best / 10, "test_accuracy": 0.9 - best / 10}))
    return command


def run(folder, capfd):
    choose.main([str(folder)])
    return capfd.readouterr()


def test_the_choice_and_all_trials_are_written_and_applied(tuned, capfd):
    out, _ = run(tuned.runs, capfd)
    path = tuned.runs / "digits-small_resnet.yaml"
    content = yaml.safe_load(path.read_text())
    assert content["methods"]["sam"]["settings"] == {"optimizer.rho": 0.1}
    assert content["methods"]["sam"]["on_the_edge"] == ["optimizer.rho"]
    assert content["methods"]["sgd"]["settings"] == {"optimizer.base.lr": 0.1}
    assert content["methods"]["sgd"]["on_the_edge"] == []
    assert [len(each["trials"]) for each in content["methods"].values()] == [3, 3]
    assert "optimizer.rho=0.1  (on the edge of what was tried: optimizer.rho)" in out

    settings = compose_settings("optimizer=sam", f"+tuned={path}")
    assert settings.optimizer.arguments["rho"] == 0.1
    assert settings.tuned == str(path)
    assert compose_settings("optimizer=sam", "optimizer.rho=0.1").config_hash != settings.config_hash  # two tables
    kept = compose_settings("optimizer=sam", f"+tuned={path}", "optimizer.rho=0.05")
    assert (kept.optimizer.arguments["rho"], kept.tuned) == (0.05, str(path))  # another trial
    untried = compose_settings("optimizer=sam", f"+tuned={path}", "optimizer.rho=0.3")
    assert (untried.optimizer.arguments["rho"], untried.tuned) == (0.3, None)
    inner = compose_settings("optimizer=rst", f"+tuned={path}")
    assert inner.optimizer.inner.arguments["rho"] == 0.1  # as SAM was tuned
    assert compose_settings("optimizer=sgd", f"+tuned={path}").optimizer.base.arguments["lr"] == 0.1


def test_a_method_without_a_fitting_trial_has_that_of_its_inner_method(tuned, capfd):
    """G-RST at another strength than it was tuned with keeps SAM's ρ."""
    run(tuned.runs, capfd)
    path = tuned.runs / "digits-small_resnet.yaml"
    content = yaml.safe_load(path.read_text())
    trial = {"settings": {"optimizer.inner.rho": 0.02, "optimizer.gamma": 2}, "validation_accuracy": 0.7}
    content["methods"]["grst"] = {"base": "sgd", "trials": [trial]}
    path.write_text(yaml.safe_dump(content))
    fits = compose_settings("optimizer=grst", "optimizer.gamma=2", f"+tuned={path}")
    assert fits.optimizer.inner.arguments["rho"] == 0.02
    other = compose_settings("optimizer=grst", "optimizer.gamma=4", f"+tuned={path}")
    assert other.optimizer.inner.arguments["rho"] == 0.1
    assert other.tuned == str(path)
    status, out, err = tuned(*TINY, "trainer.epochs=1", "optimizer=grst", "optimizer.gamma=4", f"+tuned={path}")
    assert status == 0, err
    assert f"tuned={path}: no trial of grst has the settings of this run; the best trial of sam is applied" in out


def test_a_value_for_each_data_set_is_an_override_too(tuned, capfd):
    run(tuned.runs, capfd)
    path = tuned.runs / "digits-small_resnet.yaml"
    stated = compose_settings("optimizer=sam", "optimizer.rho.cifar10=0.77", f"+tuned={path}")
    assert (stated.optimizer.arguments["rho"], stated.tuned) == (0.77, None)
    same = compose_settings("optimizer=sam", "optimizer.rho.cifar10=0.1", f"+tuned={path}")
    assert (same.optimizer.arguments["rho"], same.tuned) == (0.1, str(path))


def test_null_is_an_override_too(tuned, capfd):
    run(tuned.runs, capfd)
    path = tuned.runs / "digits-small_resnet.yaml"
    content = yaml.safe_load(path.read_text())
    trial = {"settings": {"optimizer.sparsity": 0.8}, "validation_accuracy": 0.7}
    content["methods"]["ssam_f"] = {"base": "sgd", "trials": [trial]}
    path.write_text(yaml.safe_dump(content))
    assert compose_settings("optimizer=ssam_f", f"+tuned={path}").optimizer.arguments["sparsity"] == 0.8
    stated = compose_settings("optimizer=ssam_f", "optimizer.sparsity=null", f"+tuned={path}")
    assert (stated.optimizer.arguments["sparsity"], stated.tuned) == (None, None)


def test_a_failed_trial_is_never_applied(tuned, capfd):
    run(tuned.runs, capfd)
    path = tuned.runs / "digits-small_resnet.yaml"
    content = yaml.safe_load(path.read_text())
    failed = {"settings": {"optimizer.rho": 9.0}, "validation_accuracy": 0.0, "failed": True}
    content["methods"]["sam"]["trials"].append(failed)
    path.write_text(yaml.safe_dump(content))
    assert compose_settings("optimizer=sam", "optimizer.rho=9", f"+tuned={path}").tuned is None


def test_auto_of_a_folder_of_images_is_that_of_its_name(tuned, capfd, monkeypatch, tmp_path):
    digits.write_images(tmp_path / "shapes")
    words = ["optimizer=sam", "+tuned=auto", "dataset=imagefolder", f"dataset.root={tmp_path / 'shapes'}"]
    with pytest.raises(SettingError, match="tuned=shapes-small_resnet: no such tuning"):
        compose_settings(*words)


def test_auto_is_the_tuning_of_the_data_set_and_the_net(tuned, capfd, monkeypatch):
    run(tuned.runs, capfd)
    folder = tuned.runs.parent / "experiments" / "tuning"
    folder.mkdir(parents=True)
    (tuned.runs / "digits-small_resnet.yaml").rename(folder / "digits-small_resnet.yaml")
    settings = compose_settings("optimizer=sam", "+tuned=auto")
    assert (settings.tuned, settings.optimizer.arguments["rho"]) == ("digits-small_resnet", 0.1)
    status, _, err = tuned(*TINY, "optimizer=sam", "+tuned=auto", "model=wrn16_4")
    assert status == 2
    assert "tuned=digits-wrn16_4: no such tuning" in one_line(err)


def test_by_name_in_a_sweep_and_said_in_the_table(tuned, capfd):
    from sam_bench.report import tables
    from sam_bench.report.cells import collect, panels

    run(tuned.runs, capfd)
    place = tuned.runs.parent / "experiments" / "tuning"
    place.mkdir(parents=True)
    (tuned.runs / "digits-small_resnet.yaml").rename(place / "digits-small_resnet.yaml")
    runs = tuned.runs.parent / "tuned"
    status, _, err = tuned("-m", *TINY, "optimizer=sgd,sam", "+tuned=digits-small_resnet", f"runs={runs}")
    assert status == 0, err
    tuned(*TINY, "optimizer=asam", f"runs={runs}")
    rows = [
        line.split(" | ")[:2]
        for line in tables.markdown([tables.table(p) for p in panels(collect([runs]))]).splitlines()
    ]
    assert ["| sam", "tuned (digits-small_resnet)"] in rows
    assert ["| asam", "defaults"] in rows


def test_what_cannot_be_applied_is_one_line(tuned, capfd):
    run(tuned.runs, capfd)
    path = tuned.runs / "digits-small_resnet.yaml"
    status, _, err = tuned(*TINY, "optimizer=asam", f"+tuned={path}")
    assert status == 2
    assert f"tuned={path}: has no settings for asam; it has sam, sgd" in one_line(err)
    status, _, err = tuned(*TINY, "optimizer=sam", "+tuned=nothing")
    assert status == 2
    assert "tuned=nothing: no such tuning" in one_line(err)
    path.write_text("methods: 3")
    status, _, err = tuned(*TINY, "optimizer=sam", f"+tuned={path}")
    assert status == 2
    assert "is not a tuning" in one_line(err)


def test_a_diverged_trial_counts_as_the_worst(tuned, capfd):
    tuned(*SWEEP, "optimizer=sgd", "optimizer.base.lr=1e9")
    tuned(*SWEEP, "optimizer=sam", "optimizer.rho=0.03")  # as many trials
    run(tuned.runs, capfd)
    methods = yaml.safe_load((tuned.runs / "digits-small_resnet.yaml").read_text())["methods"]
    assert [each["failed"] for each in methods["sgd"]["trials"][3:]] == [True]
    assert methods["sgd"]["settings"] == {"optimizer.base.lr": 0.1}
    assert methods["sam"]["settings"]["optimizer.rho"] == 0.1


def test_equal_trials_are_chosen_by_cost_then_by_their_settings(tuned, capfd):
    for folder in tuned.folders():
        path = folder / "result.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"validation_accuracy": 0.5}))
    run(tuned.runs, capfd)
    methods = yaml.safe_load((tuned.runs / "digits-small_resnet.yaml").read_text())["methods"]
    assert methods["sam"]["settings"] == {"optimizer.rho": 0.02}
    assert methods["sgd"]["settings"] == {"optimizer.base.lr": 0.05}


BAD = {
    "a setting of something else": ({"settings": {"dataset.root": "/"}, "validation_accuracy": 1.0}, "dataset.root"),
    "a list": ({"settings": {"optimizer.rho": [1]}, "validation_accuracy": 1.0}, "optimizer.rho"),
    "no accuracy": ({"settings": {}}, "validation_accuracy"),
    "a number as a name": ({"settings": {3: 1}, "validation_accuracy": 1.0}, "3"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_damaged_tuning_is_one_line(command, tmp_path, what):
    trial, named = BAD[what]
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump({"methods": {"sam": {"base": "sgd", "trials": [trial]}}}))
    status, _, err = command(*TINY, "optimizer=sam", f"+tuned={path}")
    assert status == 2
    assert one_line(err).startswith(f"error: tuned={path}: is not a tuning (methods.sam.trials.0.")
    assert named in err


def test_another_base_than_that_of_the_tuning_is_refused(tuned, capfd):
    run(tuned.runs, capfd)
    path = tuned.runs / "digits-small_resnet.yaml"
    status, _, err = tuned(*TINY, "optimizer=sam", "optimizer/base=adamw", f"+tuned={path}")
    assert status == 2
    assert "sam was tuned with optimizer/base=sgd, not adamw" in one_line(err)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": "../../escaped"}, "cannot be a file name"),
        ({"model": "x" * 5000}, "cannot be a file name"),
    ],
)
def test_a_name_that_leaves_the_folder_is_refused(tuned, capfd, change, message):
    for folder in tuned.folders():
        path = folder / "result.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(SystemExit):
        run(tuned.runs, capfd)
    assert message in one_line(capfd.readouterr().err)
    assert all(path.name == "config.yaml" for path in tuned.runs.parent.rglob("*.yaml"))


def test_trials_that_differ_in_something_else_are_refused(tuned, capfd):
    tuned("-m", *SWEEP, "optimizer=sgd,sam", "trainer.label_smoothing=0.1")
    with pytest.raises(SystemExit):
        run(tuned.runs, capfd)
    assert "trainer.label_smoothing: differs between trials" in one_line(capfd.readouterr().err)


def test_unequal_or_unvalidated_trials_are_refused(tuned, capfd):
    tuned(*SWEEP, "optimizer=sam", "optimizer.rho=0.3")
    with pytest.raises(SystemExit):
        run(tuned.runs, capfd)
    assert "sgd has 3 trials, sam has 4; equal tuning needs the same" in one_line(capfd.readouterr().err)
    tuned(*TINY, "trainer.epochs=2", "optimizer=sam", f"runs={tuned.runs}/other")
    with pytest.raises(SystemExit):
        run(tuned.runs / "other", capfd)
    assert "has runs without a validation set" in one_line(capfd.readouterr().err)
