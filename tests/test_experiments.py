"""The experiments and protocols: what they expand to, and that what they say is so."""

from collections import Counter

import pytest
import torch
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from sam_bench import status
from sam_bench.conf_files import CONF
from sam_bench.data import digits
from sam_bench.errors import SettingError
from sam_bench.run import Run
from sam_bench.sweep import PROTOCOLS, runs_of
from sam_bench.tuning import method_name
from tests.command import TINY
from tests.test_errors import one_line

EXPERIMENTS = ("rst_schedules", "rst_main", "ssam_sparsity", "vsam_main", "imagenet", "frontier", "claims", "tuning")


def expanded(sweeper, *arguments, experiment=None, protocol=None):
    """The runs of a sweep as sorted text, from `hydra.sweeper` as a dictionary."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        choices = {"experiment": experiment, "protocol": protocol}
        return [" ".join(run) for run in runs_of(OmegaConf.create(sweeper), choices, list(arguments), parser)]


ROWS = [{"optimizer": ["sgd", "sam"]}, {"optimizer": "rst", "schedule.p": [0.25, 0.5]}]


def test_rows_at_every_scale_first_seeds_first():
    found = expanded({"rows": ROWS, "scale": {"model": ["a", "b"], "seed": [0, 1]}})
    assert found[:5] == [
        "optimizer=sgd model=a seed=0",
        "optimizer=sam model=a seed=0",
        "optimizer=rst schedule.p=0.25 model=a seed=0",
        "optimizer=rst schedule.p=0.5 model=a seed=0",
        "optimizer=sgd model=b seed=0",
    ]
    assert len(found) == 16
    assert [line[-6:] for line in found] == ["seed=0"] * 8 + ["seed=1"] * 8


def test_a_value_may_be_a_dictionary():
    rows = [{"optimizer.rho": {"cifar10": 0.1, "cifar100": 0.2}}]
    assert expanded({"rows": rows}) == ["optimizer.rho={cifar10:0.1,cifar100:0.2}"]


def test_the_scale_replaces_what_a_row_says_and_equal_runs_are_one():
    rows = [{"optimizer": "sgd", "model": ["a", "b"]}]
    assert expanded({"rows": rows, "scale": [{"model": "c"}]}) == ["optimizer=sgd model=c"]


def test_an_argument_selects_or_replaces_or_adds():
    assert expanded({"rows": ROWS}, "optimizer=sam") == ["optimizer=sam"]
    assert expanded({"rows": ROWS}, "optimizer=sam,sgd") == ["optimizer=sam", "optimizer=sgd"]
    assert expanded({"rows": ROWS}, "schedule.p=0.5", "optimizer=rst") == ["optimizer=rst schedule.p=0.5"]
    assert expanded({"rows": [{"seed": [0, 1]}]}, "seed=1,7") == ["seed=1", "seed=7"]
    # values, not their spelling
    assert expanded({"rows": [{"rho": [1, 2]}]}, "++rho=1.0") == ["rho=1"]
    assert expanded({"rows": [{"a": True}, {"a": 1}]}, "a=true") == ["a=True"]
    assert expanded({"rows": ROWS}, "optimizer=rst", "seed=0,1", "~logger") == [
        "optimizer=rst schedule.p=0.25 seed=0 ~logger",
        "optimizer=rst schedule.p=0.5 seed=0 ~logger",
        "optimizer=rst schedule.p=0.25 seed=1 ~logger",
        "optimizer=rst schedule.p=0.5 seed=1 ~logger",
    ]


def test_without_an_experiment_it_is_hydras_own_sweep():
    assert expanded({}, "optimizer=sgd,sam", "seed=range(0,2)") == [
        "optimizer=sgd seed=0",
        "optimizer=sam seed=0",
        "optimizer=sgd seed=1",
        "optimizer=sam seed=1",
    ]
    assert expanded({"params": {"optimizer": "sgd,sam"}}) == ["optimizer=sgd", "optimizer=sam"]


def test_an_experiment_with_several_scales_needs_a_protocol():
    sweeper = {"rows": ROWS, "paper": {"model": "a"}}
    with pytest.raises(SettingError, match=r"protocol: experiment=x needs one; choose paper, cpu, smoke"):
        expanded(sweeper, experiment="x")
    assert expanded(sweeper, "optimizer=sgd", experiment="x", protocol="paper") == ["optimizer=sgd model=a"]
    with pytest.raises(SettingError, match=r"protocol=paper: experiment=y has no such scale; choose cpu, smoke"):
        expanded({"rows": ROWS}, experiment="y", protocol="paper")


def test_lists_that_cannot_be_swept_are_refused():
    with pytest.raises(SettingError, match=r"interval\(0,1\): should be a list of values"):
        expanded({}, "optimizer.rho=interval(0,1)")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    digits.write_images(folder)
    return folder


def settings_of(experiment, protocol, images, *further):
    """Of every run; none may be refused."""
    root = [f"dataset.root={images}"] if experiment == "imagenet" else []
    found = status.states([f"+experiment={experiment}", f"protocol={protocol}", *root, *further])
    assert not [each.note for each in found if each.settings is None]
    return [each.settings for each in found]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_run_of_every_experiment_composes(experiment, protocol, images):
    half = ["dataset=cifar10"] if protocol == "paper" and experiment != "imagenet" else []  # the other is CIFAR-100
    if (experiment, protocol) == ("claims", "cpu"):
        tuned = sorted(path.stem.partition("-")[0] for path in (CONF.parent / "experiments" / "tuning").glob("*.yaml"))
        if not tuned:
            pytest.skip("needs a tuning in experiments/tuning/")
        half = [f"dataset={','.join(tuned)}"]
    found = settings_of(experiment, protocol, images, "seed=0", *half)
    assert len({each.config_hash for each in found}) == len(found), "two runs are the same"
    assert {each.experiment for each in found} == {experiment}
    assert {each.protocol for each in found} == {protocol}
    folder = "runs/smoke" if protocol == "smoke" else "experiments"
    assert {str(each.runs) for each in found} == {f"{folder}/{experiment}"}
    measured = protocol != "smoke" and (experiment, protocol) != ("tuning", "cpu")
    assert {each.sharpness for each in found} == {"cheap" if measured else "none"}
    assert {"sgd", "sam"} <= {each.optimizer.name for each in found}
    if (experiment, protocol) == ("tuning", "cpu"):  # six different trials of each method
        inner = [each.optimizer.inner.name if each.optimizer.inner else None for each in found]
        trials = Counter(method_name(each.optimizer.name, name) for each, name in zip(found, inner, strict=True))
        assert set(trials.values()) == {6}
        assert len(trials) == 30
        assert {each.dataset.arguments["validation"] for each in found} == {0.5}


def test_rst_main_has_ten_methods_on_sixteen_tables():
    sweeper = OmegaConf.load(CONF / "experiment" / "rst_main.yaml").hydra.sweeper
    found = expanded(sweeper, experiment="rst_main", protocol="paper")
    assert len(found) == len(set(found)) == 10 * 4 * 2 * 2 * 3
    for model in ("resnet18", "wrn28_10", "pyramidnet110", "vit_small"):
        mine = [run for run in found if f"model={model} " in run]
        assert len(mine) == 120
        assert all(("optimizer/base=adamw" in run) == (model == "vit_small") for run in mine)


def test_the_frontier_has_the_costs_that_it_names(images):
    """At each of 1.1, 1.25, 1.5 and 2 times SGD's cost there are methods that can be set to it."""
    found = settings_of("frontier", "smoke", images, "seed=0")
    costs = []
    for each in found:
        if "samples" in each.optimizer.arguments:  # looks at the data first
            continue
        optimizer = Run(each, torch.device("cpu")).optimizer
        costs.append(round(optimizer.expected_propagations_per_step + optimizer.expected_forwards_per_step / 3, 2))
    counts = Counter(costs)
    assert all(counts[cost] >= 3 for cost in (1.0, 1.1, 1.25, 1.5, 2.0)), counts


def test_a_smoke_run_from_the_command_line_to_its_folder(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["+experiment=vsam_main", "protocol=smoke", "optimizer=sgd,rst", "seed=0"]
    status_, out, err = command(*words, "runs=runs/smoke/vsam_main")  # without -m: the experiment is a sweep
    assert status_ == 0, err
    folders = sorted(path.parent.name for path in (tmp_path / "runs" / "smoke" / "vsam_main").glob("*/seed-0"))
    assert [name.split("-")[2] for name in folders] == ["rst", "sgd"]
    assert out.count("run folder: runs/smoke/vsam_main/") == 2
    assert command("-m", *words, "runs=runs/smoke/vsam_main")[1].count("finished before") == 2


def test_a_protocol_without_an_experiment_is_a_sweep_at_its_scale(command):
    status_, _, err = command("optimizer=sam", "protocol=smoke")
    assert status_ == 0, err
    assert len(command.folders()) == 2


def test_an_experiment_without_a_protocol_is_one_line(command):
    status_, _, err = command("-m", "+experiment=rst_main", *TINY)
    assert status_ == 2
    assert "protocol: experiment=rst_main needs one; choose paper, cpu, smoke" in one_line(err)


@pytest.mark.parametrize("word", ["+experiment=rst_main,vsam_main", "protocol=cpu,smoke"])
def test_several_experiments_at_once_are_refused(command, word):
    words = [word, "protocol=smoke" if "experiment" in word else "+experiment=rst_main", "seed=0"]
    status_, _, err = command("-m", *words)
    assert status_ == 2
    assert f"{word}: give one {word.lstrip('+').partition('=')[0]} at a time" in one_line(err)


@pytest.mark.parametrize("rows", ["abc", ["abc"], [["sgd"]], 5, [None]])
def test_rows_of_a_wrong_type_are_named(rows):
    with pytest.raises(SettingError, match=r"experiment=mine: hydra.sweeper: rows should be a dictionary"):
        expanded({"rows": rows}, experiment="mine")


def test_the_makefile_and_the_guide_know_every_experiment():
    makefile = (CONF.parent / "Makefile").read_text()
    assert next(line for line in makefile.splitlines() if line.startswith("EXPERIMENTS")).split()[2:] == [*EXPERIMENTS]
    guides = "".join((CONF.parent / "docs" / name).read_text() for name in ("experiments.md", "sweeps.md"))
    for path in (CONF / "experiment").glob("*.yaml"):
        assert f"| `{path.stem}` |" in guides
    assert {path.stem for path in (CONF / "protocol").glob("*.yaml")} == set(PROTOCOLS)
