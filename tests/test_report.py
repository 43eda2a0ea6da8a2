import json

import pytest

from sam_bench import report, results
from sam_bench.errors import SettingError
from tests.command import TINY


def test_seeds_of_a_setting_are_one_row(command):
    command("-m", *TINY, "optimizer=sgd,sam", "seed=0,1,2", "trainer.epochs=1")
    head, rule, sgd, sam = report.table(report.collect([command.runs])).splitlines()
    assert head.count("|") == rule.count("|") == sgd.count("|")
    accuracies = [100 * results.read(f)["test_accuracy"] for f in command.folders() if "-sgd-" in str(f)]
    mean = sum(accuracies) / 3
    deviation = (sum((a - mean) ** 2 for a in accuracies) / 2) ** 0.5
    assert f"| small_resnet | sgd |  | 1 | 3 | {mean:.2f} ± {deviation:.2f} | 1.000 ± 0.000 |" in sgd
    assert "| sam |" in sam


def test_a_sweep_over_a_setting_says_which_row_is_which(command):
    command("-m", *TINY, "optimizer=sam", "optimizer.rho=0.05,0.1", "trainer.epochs=1")
    *_, one, other = report.table(report.collect([command.runs])).splitlines()
    assert sorted(row.split("|")[4].strip() for row in (one, other)) == ["optimizer.rho=0.05", "optimizer.rho=0.1"]


def test_devices_are_not_mixed(command):
    command("-m", *TINY, "seed=0,1", "trainer.epochs=1")
    changed = command.folders()[0] / "result.json"
    changed.write_text(json.dumps(json.loads(changed.read_text()) | {"device": "another one"}))
    assert len(report.collect([command.runs])) == 2


def test_nothing_to_report_is_said(tmp_path):
    with pytest.raises(SettingError, match="no finished run in it"):
        report.collect([tmp_path])
