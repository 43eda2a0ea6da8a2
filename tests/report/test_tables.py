"""Which rows a table has, what tells them apart, and what is said of them."""

import json
import math
import shutil
import subprocess

import pytest

from sam_bench import results
from sam_bench.errors import SettingError
from sam_bench.report import tables
from sam_bench.report.cells import collect, panels
from sam_bench.report.figures import figures
from tests.command import TINY

ONE_EPOCH = [*TINY, "trainer.epochs=1"]


def labels(command) -> list[str]:
    """Of all rows of all tables."""
    return [label for panel in panels(collect([command.runs])) for label in panel.labels]


def found(command) -> list[tables.Table]:
    return [tables.table(panel) for panel in panels(collect([command.runs]))]


def test_seeds_of_a_setting_are_one_row(command):
    command("-m", *ONE_EPOCH, "optimizer=sgd,sam", "seed=0,1,2")
    (table,) = found(command)
    text = tables.markdown([table])
    head, rule, sgd, sam = [line for line in text.splitlines() if line.startswith("|")]
    assert head.count("|") == rule.count("|") == sgd.count("|") == sam.count("|")
    accuracies = [100 * results.read(f)["test_accuracy"] for f in command.folders() if "-sgd-" in str(f)]
    mean = sum(accuracies) / 3
    deviation = (sum((a - mean) ** 2 for a in accuracies) / 2) ** 0.5
    assert sgd.startswith(f"| sgd | defaults | 3 | {mean:.2f} ± {deviation:.2f} |")
    assert "| 1.000 ± 0.000 |" in sgd
    assert sam.startswith("| sam |")
    assert "n = 3, with the standard deviation pooled over this table" in text
    assert "with 4 degrees of freedom" in text
    assert "Compared with sgd: better: " in text
    assert "Compared with sam: better: " in text
    assert "sam: better: none; worse: none; not distinguishable: sgd." in text


def test_a_sweep_over_a_setting_says_which_row_is_which(command):
    command("-m", *ONE_EPOCH, "optimizer=sam", "optimizer.rho=0.05,0.1")
    assert sorted(labels(command)) == ["sam rho=0.05", "sam rho=0.1"]
    (panel,) = panels(collect([command.runs]))
    assert panel.sam is None  # of two SAMs neither is the reference


def test_rows_are_told_apart_within_one_data_set_and_model_alone(command):
    command(*ONE_EPOCH, "optimizer=sam", "dataset.padding=1")
    command(*ONE_EPOCH, "optimizer=sam", "model=wrn16_4", "dataset.padding=2")
    assert labels(command) == ["sam", "sam"]


def test_a_setting_that_only_one_row_has_is_shown(command):
    command(*ONE_EPOCH, "optimizer=sgd", "model=vit_tiny")
    command(*ONE_EPOCH, "optimizer=sgd", "model=vit_tiny", "+model.drop_rate=0.1")
    assert sorted(labels(command)) == ["sgd", "sgd model.drop_rate=0.1"]


def test_a_longer_training_of_sgd_joins_the_table_with_its_cost(command):
    command("-m", *ONE_EPOCH, "optimizer=sgd,sam")
    command(*ONE_EPOCH, "optimizer=sgd", "trainer.epochs=2")
    (panel,) = panels(collect([command.runs]))
    costs = dict(zip(panel.labels, [cell.cost for cell in panel.cells], strict=True))
    assert costs == {"sgd": 1, "sam": 2, "sgd trainer.epochs=2": 2}
    assert "1 epochs" in panel.title
    assert panel.labels[panel.base] == "sgd"
    command(*ONE_EPOCH, "optimizer=sam", "trainer.epochs=2")  # now there is another table with two epochs
    assert labels(command) == ["sgd", "sam", "sgd", "sam"]


def test_a_schedule_and_an_inner_method_are_named_with_their_settings(command):
    command("-m", *ONE_EPOCH, "optimizer=rst", "optimizer/inner=sam,asam")
    assert sorted(labels(command)) == [
        "rst linear(start=0, end=1)",
        "rst linear(start=0, end=1) inner=asam",
    ]


def test_a_seed_that_is_there_twice_is_refused(command, tmp_path):
    command(*ONE_EPOCH)
    shutil.copytree(command.runs, tmp_path / "copy")
    with pytest.raises(SettingError, match="has the same settings and seed as"):
        collect([command.runs, tmp_path / "copy"])
    assert len(collect([command.runs, command.runs])[0].runs) == 1  # the same folder twice is no second run


def test_devices_are_not_mixed(command):
    command("-m", *ONE_EPOCH, "seed=0,1")
    changed = command.folders()[0] / "result.json"
    changed.write_text(json.dumps(json.loads(changed.read_text()) | {"device": "another one"}))
    assert len(collect([command.runs])) == 2
    assert len(set(labels(command))) == 2


def test_what_differs_from_the_rows_beside_it_is_shown(command):
    command("-m", *ONE_EPOCH, "optimizer=sgd,sam,asam")
    command(*ONE_EPOCH, "optimizer=gsam", "trainer.label_smoothing=0.1")
    command(*ONE_EPOCH, "optimizer=fsam", "optimizer/base=adamw")
    command(*ONE_EPOCH, "optimizer=vasso", "optimizer.base.lr=0.05")
    command(*ONE_EPOCH, "optimizer=rst", "optimizer/inner=asam")
    assert sorted(labels(command)) == [
        "asam",
        "fsam base=adamw",
        "gsam trainer.label_smoothing=0.1",
        "rst linear(start=0, end=1) inner=asam",
        "sam",
        "sgd",
        "vasso base.lr=0.05",
    ]


def test_a_tuning_is_compared_by_validation_accuracy(command):
    command(*ONE_EPOCH, "optimizer=sgd")
    command("-m", *ONE_EPOCH, "optimizer=sam", "dataset.validation=0.2", "seed=0,1")
    tested, validated = sorted(found(command), key=lambda table: table.panel.metric)
    assert "validation" not in tables.markdown([tested])
    values = [
        100 * results.read(folder)["validation_accuracy"] for folder in command.folders() if "-sam-" in str(folder)
    ]
    assert validated.rows[0].accuracy.estimate == pytest.approx(sum(values) / 2)
    assert "| validation accuracy, % |" in tables.markdown([validated])
    assert "| test accuracy, % |" in tables.markdown([validated])


def test_one_seed_claims_nothing(command):
    command("-m", *ONE_EPOCH, "optimizer=sgd,sam")
    (table,) = found(command)
    assert math.isnan(table.detectable)
    assert "no difference is claimed" in tables.markdown([table])
    assert "better" not in tables.markdown([table])
    assert "[" not in tables.markdown([table])


def settings_column(command):
    return {row.label: tables.settings_text(row) for table in found(command) for row in table.rows}


def test_rows_say_what_was_stated_of_the_method(command):
    command("-m", *ONE_EPOCH, "optimizer=sgd,sam", "++optimizer.rho=0.3", "optimizer.base.lr=0.05")
    command(*ONE_EPOCH, "optimizer=asam", "optimizer.base.lr=0.05")
    command(*ONE_EPOCH, "optimizer=rst", "optimizer/inner=asam", "schedule.end=0.5", "optimizer.base.lr=0.05")
    assert settings_column(command) == {
        "sgd": "defaults",
        "sam": "rho=0.3",
        "asam": "defaults",
        "rst linear(start=0, end=0.5) inner=asam": "defaults",
    }


def test_why_rows_are_compared_with_nothing(command):
    command("-m", *ONE_EPOCH, "optimizer=sgd", "trainer.precision=fp32,bf16", "seed=0,1")
    (table,) = found(command)
    assert sorted(table.panel.labels) == ["sgd trainer.precision=bf16", "sgd trainer.precision=fp32"]
    text = tables.markdown([table])
    assert "No row is compared with the base optimizer alone: there are several." in text
    assert "No row is compared with SAM: there is none." in text


def test_times_of_a_busy_machine_are_left_out(command):
    command("-m", *ONE_EPOCH, "optimizer=sgd", "seed=0,1")
    speeds = iter([1000.0, 1400.0])
    change(command, lambda result: {"images_per_second": next(speeds)})
    (table,) = found(command)
    assert {"seconds", "images/s"} <= {column.title for column in tables.filled(table)}
    assert "Times are left out" not in tables.markdown([table])
    speeds = iter([1000.0, 1600.0])
    change(command, lambda result: {"images_per_second": next(speeds)})
    (table,) = found(command)
    assert not {"seconds", "images/s"} & {column.title for column in tables.filled(table)}
    assert "the fastest run was 1.6 times as fast as the slowest" in tables.markdown([table])
    assert not any("time" in figure.name or "seconds" in figure.name for figure in figures(table))


def test_equal_seeds_give_no_interval(command):
    command("-m", *ONE_EPOCH, "optimizer=sgd,sam", "seed=0,1")
    change(command, lambda result: {"test_accuracy": 0.5})
    text = tables.markdown(found(command))
    assert "No row has two different values (n = 2): there are no intervals" in text
    assert "-0.00" not in text


def change(command, how):
    for folder in command.folders():
        path = folder / "result.json"
        result = json.loads(path.read_text())
        path.write_text(json.dumps(result | how(result)))


def test_kinds_of_sharpness_are_not_mixed(command):
    command("-m", *ONE_EPOCH, "optimizer=sgd,sam", "seed=0,1")
    measures = dict.fromkeys(tables.SHARPNESS, 1.0)

    def one_is_full(result):
        full = (result["optimizer"], result["seed"]) == ("sam", 1)
        return {"sharpness": {**measures, "kind": "full", "trace": 9.0} if full else {**measures, "kind": "cheap"}}

    change(command, one_is_full)
    (table,) = found(command)
    assert table.panel.sharpness == "cheap"
    text = tables.markdown([table])
    assert "| trace (cheap) |" in text
    assert [tables.sharpness(row.cell, "trace", table.panel.sharpness) for row in table.rows] == [{0: 1, 1: 1}, {0: 1}]
    assert [set(tables.of_sharpness("trace", "cheap")[0](row)[:4]) for row in table.rows] == [set("1.00")] * 2


def test_a_measured_zero_is_no_empty_cell(command):
    command("-m", *ONE_EPOCH, "optimizer=sgd,esam", "seed=0,1")
    rows = [line.split(" | ") for line in tables.markdown(found(command)).splitlines() if line.startswith("|")]
    place = rows[0].index("forwards per step")
    assert [row[place] for row in rows[2:]] == ["0.000 ± 0.000", "1.000 ± 0.000"]


def test_a_difference_of_sam_from_sgd_is_claimed_once(command):
    for model in ("small_resnet", "wrn16_4"):
        command("-m", *ONE_EPOCH, "optimizer=sgd,sam", "seed=0,1", f"model={model}")
    change(command, lambda r: {"test_accuracy": 0.5 + 0.3 * (r["optimizer"] == "sam") + r["seed"] / 1000})
    text = tables.after_holm(found(command))
    assert text.startswith("Of the 2 comparisons on this page")
    assert text.count("sam against sgd") == 2
    assert text.endswith("Worse: none.")
    assert tables.after_holm(found(command)[:1]) == ""


def test_nothing_to_report_is_said(tmp_path):
    with pytest.raises(SettingError, match="has no finished run"):
        collect([tmp_path])


def test_the_csv_has_a_number_a_cell(command):
    command("-m", *ONE_EPOCH, "optimizer=sgd,sam", "seed=0,1")
    import csv
    import io

    sgd, sam = csv.DictReader(io.StringIO(tables.comma_separated(found(command))))
    assert (sgd["method"], sgd["seeds"], sgd["gain over sgd, points"]) == ("sgd", "0 1", "")
    assert float(sam["gain low"]) < float(sam["gain over sgd, points"]) < float(sam["gain high"])
    difference = float(sam["test accuracy, %"]) - float(sgd["test accuracy, %"])
    assert float(sam["gain over sgd, points"]) == pytest.approx(difference)
    assert float(sam["propagations per step"]) == 2


def test_the_latex_compiles(command, tmp_path):
    if not shutil.which("pdflatex"):
        pytest.skip("needs pdflatex")
    command("-m", *ONE_EPOCH, "optimizer=sgd,sam", "seed=0,1")
    changed = command.folders()[0] / "result.json"
    changed.write_text(json.dumps(json.loads(changed.read_text()) | {"optimizer": r"50% \of_{x}&#~^$ é λ"}))
    (tmp_path / "table.tex").write_text(tables.latex(found(command)))
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "table.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "table.pdf").stat().st_size > 5000
