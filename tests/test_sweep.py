"""Sweeps over settings that only some methods have."""

import json
import shlex

import pytest
import torch

from sam_bench import results
from sam_bench.configuration import compose_settings
from sam_bench.status import states
from tests.command import TINY
from tests.test_errors import one_line

ONE_EPOCH = [*TINY, "trainer.epochs=1"]


def trained(command) -> list[tuple[str, float | None, int]]:
    """Optimizer, its ρ and seed of each finished run."""
    found = [json.loads((folder / "result.json").read_text()) for folder in command.folders()]
    return sorted((each["optimizer"], each["config"]["optimizer"].get("rho"), each["seed"]) for each in found)


def test_four_methods_and_three_values_of_rho(command):
    """SGD, which has no rho, trains once per seed; the others once per value and seed."""
    sweep = ["optimizer=sgd,sam,asam,ssam_f", "++optimizer.rho=0.05,0.1,0.5", "seed=0,1"]
    status, out, err = command("-m", *ONE_EPOCH, *sweep)
    assert status == 0, err
    expected = [("sgd", None, seed) for seed in (0, 1)]
    expected += [(name, rho, s) for name in ("sam", "asam", "ssam_f") for rho in (0.05, 0.1, 0.5) for s in (0, 1)]
    assert trained(command) == sorted(expected, key=str)
    assert "4 of 24 runs have the settings of another one\n" in out  # SGD at the other two values
    assert out.count("optimizer.rho=0.05 is ignored: optimizer=sgd has no such setting\n") == 2
    assert "optimizer=sam has no such setting" not in out


def test_a_left_out_setting_leaves_no_trace(command):
    status, out, err = command(
        "-m", *ONE_EPOCH, "optimizer=sgd", "++optimizer.rho=0.1,0.2", "++optimizer.inner.eta=0.1"
    )
    assert status == 0, err
    assert out.count("optimizer.inner.eta=0.1 is ignored: optimizer.inner=none has no such setting\n") == 1
    assert "finished before" in command(*ONE_EPOCH, "optimizer=sgd")[1]
    assert len(command.folders()) == 1


def test_settings_of_an_inner_method_a_base_and_a_schedule(command):
    arguments = ["optimizer=rst", "optimizer/inner=sam,asam", "++optimizer.inner.eta=0.1,0.2"]
    status, _, err = command("-m", *ONE_EPOCH, *arguments)
    assert status == 0, err
    assert len(command.folders()) == 3
    arguments = ["optimizer=sam", "optimizer/base=sgd,adamw", "++optimizer.base.momentum=0.8,0.95"]
    status, _, err = command("-m", *ONE_EPOCH, *arguments)
    assert status == 0, err
    assert len(command.folders()) == 6
    status, _, err = command("-m", *ONE_EPOCH, "schedule=constant,trigonometric", "++schedule.p=0.25,0.75")
    assert status == 0, err
    assert len(command.folders()) == 9


def test_settings_within_settings_and_outside_of_groups(command):
    nested = ["optimizer=sgd,late_sam", "++optimizer.schedule.b=0.5,0.9", "++seed=0,1", "++trainer.clip=1"]
    status, out, err = command("-m", *ONE_EPOCH, *nested)
    assert status == 0, err
    assert len(command.folders()) == 6  # two seeds of SGD once, of late SAM twice
    assert out.count("optimizer.schedule.b=0.5 is ignored: optimizer=sgd has no such setting\n") == 2
    assert "seed=" not in "".join(line for line in out.splitlines() if "is ignored" in line)


def test_a_schedule_is_left_out_where_none_is_taken(command):
    status, out, err = command("-m", *ONE_EPOCH, "optimizer=sgd,rst", "schedule=constant", "++schedule.p=0.25")
    assert status == 0, err
    assert "schedule=constant is ignored: optimizer=sgd takes no schedule\n" in out
    assert "++schedule.p=0.25 is ignored: optimizer=sgd takes no schedule\n" in out
    assert out.count("is ignored") == 2
    for folder in command.folders():  # the recorded command is accepted without a sweep, and is that of the run
        result = results.read(folder)
        assert compose_settings(*shlex.split(result["command"])[3:]).config_hash == result["config_hash"]
        assert command(*shlex.split(result["command"])[3:])[0] == 0
    status, _, err = command("-m", *ONE_EPOCH, "optimizer=sgd", "schedule=constant", "++schedule.pp=0.25")
    assert status == 2
    assert "schedule.pp: no schedule has such a setting" in one_line(err)


def test_seeds_out_of_range_are_named(command):
    status, _, err = command("-m", *ONE_EPOCH, "optimizer=sgd", "seed=0,99999999999")
    assert status == 2
    assert "seed=99999999999: should be " in err
    first, second = states([*ONE_EPOCH, "optimizer=sgd", "seed=0,99999999999", f"runs={command.runs}"])
    assert (first.state, second.state) == ("done", "refused")
    assert "should be at most 2147483647" in second.note


def test_an_empty_sweep_is_refused(command):
    status, _, err = command("-m", *ONE_EPOCH, "optimizer=glob(x*)")
    assert status == 2
    assert "-m: a list of this sweep is empty" in one_line(err)


def test_a_name_that_no_method_has_is_refused(command):
    status, _, err = command("-m", *ONE_EPOCH, "optimizer=sgd", "++optimizer.roh=0.1")
    assert status == 2
    assert "optimizer.roh: sgd has no such setting" in one_line(err)
    status, _, err = command("-m", *ONE_EPOCH, "optimizer=sgd,sam", "++optimizer.rho=0.1,-1")
    assert status == 2
    assert err.startswith("error: optimizer.rho=-1: should be a number")
    assert "1 of 3 runs failed" in err
    assert trained(command) == [("sam", 0.1, 0), ("sgd", None, 0)]


def test_the_plain_spelling_is_refused_with_the_one_that_works(command):
    status, _, err = command("-m", *ONE_EPOCH, "optimizer=sgd,sam", "optimizer.rho=0.1,0.2")
    assert status == 2
    assert "optimizer.rho: no such setting" in one_line(err)
    assert "in a sweep, ++optimizer.rho=VALUES applies to the methods that have it" in err
    assert not command.folders()


AUTHORS = {  # on CIFAR-10 and on CIFAR-100, as conf/optimizer/ cites them
    "sam": ({"rho": 0.05}, {"rho": 0.1}),
    "asam": ({"rho": 0.5}, {"rho": 1.0}),
    "fsam": ({"rho": 0.1, "lam": 0.95}, {"rho": 0.2, "lam": 0.6}),
    "vasso": ({"rho": 0.05}, {"rho": 0.2}),
    "ssam_f": ({"rho": 0.1, "samples": 16}, {"rho": 0.2, "samples": 128}),
    "ssam_d": ({"rho": 0.1}, {"rho": 0.2}),
    "msam": ({"rho": 3}, {"rho": 3}),
    "gsam": ({"rho_min": 0.05, "rho_max": 0.05}, {"rho_min": 0.1, "rho_max": 0.1}),
}


@pytest.mark.parametrize("name", AUTHORS)
def test_defaults_follow_the_data_set(name):
    for dataset, expected in zip(("cifar10", "cifar100"), AUTHORS[name], strict=True):
        given = compose_settings(f"dataset={dataset}", f"optimizer={name}").optimizer.arguments
        assert {key: given[key] for key in expected} == expected
    elsewhere = compose_settings(f"optimizer={name}").optimizer.arguments
    assert {key: elsewhere[key] for key in AUTHORS[name][0]} == AUTHORS[name][0]


def test_a_value_of_the_command_line_holds_on_every_data_set():
    for dataset in ("digits", "cifar10", "cifar100"):
        chosen = compose_settings(f"dataset={dataset}", "optimizer=rst", "optimizer.inner.rho=0.3")
        assert chosen.optimizer.inner.arguments["rho"] == 0.3
        assert (
            compose_settings(f"dataset={dataset}", "optimizer=sam", "optimizer.rho=0.3").optimizer.arguments["rho"]
            == 0.3
        )
    inner = compose_settings("dataset=cifar100", "optimizer=rst", "optimizer/inner=ssam_f").optimizer.inner
    assert inner.arguments["samples"] == 128


def test_absurd_lengths_are_set_up_at_once():
    """The expectation of a million epochs is not a sum over all their steps, but as exact."""
    from sam_bench.optim import RST, SAM, schedules

    base = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    for schedule, mean in ((schedules.Linear(0, 1), 0.5), (schedules.Piecewise(0.25, 0.5), 0.5)):
        optimizer = RST(SAM(base), schedule, total_steps=10**12)
        assert optimizer.expected_propagations_per_step == pytest.approx(1 + mean, abs=1e-4)
