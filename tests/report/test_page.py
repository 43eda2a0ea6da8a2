"""The page in a real browser: Chromium, without a network."""

import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest

from sam_bench import curvature
from sam_bench.curvature import Effort
from sam_bench.report import __main__ as command_line
from sam_bench.report.canvas import STYLE, Canvas
from sam_bench.report.cells import collect, panels
from sam_bench.report.page import FAMILIES, build
from sam_bench.report.tables import table
from sam_bench.train import train
from tests.command import TINY, settings

REPOSITORY = Path(__file__).parent.parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
HOSTILE = '<img src=x onerror="alert(1)"></script><script>document.title="hacked"</script>'
PHONE, DESK = (390, 800), (1400, 900)


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM:
        pytest.skip("needs Chromium (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        found = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


class Opened:
    """A page that is open, with what it said and asked for."""

    def __init__(self, browser, path, size=DESK, scheme="light", script=True):
        self.context = browser.new_context(
            viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, java_script_enabled=script
        )
        self.page, self.said, self.asked = self.context.new_page(), [], []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: self.said.append(dialog.message))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.address = path.resolve().as_uri()
        self.page.goto(self.address)

    def check(self):
        assert self.said == []
        assert self.asked == [self.address]  # the file alone
        self.context.close()


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """The page of two tables: methods with two seeds, of which one has a hostile name; and a tuning."""
    runs = tmp_path_factory.mktemp("page") / "runs"

    def run(*words, seeds=2):
        tiny = [each for each in TINY if "epochs" not in each]
        train(settings(*tiny, "trainer.epochs=2", *words, f"trainer.seeds={seeds}", f"runs={runs}").each_seed())

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(curvature.EFFORTS, "full", Effort(64, 1, 1e-1, 2, line=5, plane=3, surface_images=32))
        for name in ("sgd", "sam", "rst"):
            run(f"optimizer={name}", "sharpness=full")
    for p in (0.25, 0.5, 0.75):
        run("optimizer=rst", "schedule=constant", f"schedule.p={p}")
    for rho in (0.1, 0.2, 0.5):
        run("optimizer=sam", f"optimizer.rho={rho}", "dataset.validation=0.2", seeds=1)
    for path in runs.glob("*-sam-*/*/result.json"):
        result = json.loads(path.read_text())
        if result["validation_accuracy"] is None:
            path.write_text(json.dumps(result | {"optimizer": HOSTILE}))
    half, base = {"optimizer": "rst", "schedule.p": 0.5}, {"optimizer": "sgd"}
    claims = [
        {"claim": HOSTILE, "rule": "equivalent", "rows": half, "than": base, "margin": 5.0, "seeds": 2},
        {"claim": "RST beats SGD", "rule": "better", "rows": half, "than": base, "seeds": 2},
    ]
    (runs / "claims.yaml").write_text(json.dumps(claims))
    build(collect([runs]), runs, files_too=False)
    return runs


def test_every_plot_is_drawn_and_every_choice_shows_one(experiment, browser):
    opened = Opened(browser, experiment / "index.html")
    page = opened.page
    assert set(page.eval_on_selector_all("figure", "all => all.map(each => each.dataset.family)")) == set(FAMILIES)
    for family in page.query_selector_all("figure"):
        name = family.get_attribute("data-family")
        seen = set()
        selects = family.query_selector_all("select")
        values = [each.eval_on_selector_all("option", "all => all.map(each => each.value)") for each in selects]
        for choice in itertools.product(*values):
            for select, value in zip(selects, choice, strict=True):
                select.select_option(value)
            (variant,) = [each for each in family.query_selector_all(".variant") if each.is_visible()]
            box = variant.query_selector("svg").bounding_box()
            assert box["width"] > 400, name
            assert box["height"] > 80, name
            assert variant.query_selector("svg").get_attribute("aria-label")
            assert len(variant.query_selector_all("svg path")) > 10
            assert len(variant.query_selector("figcaption").inner_text()) > 60
            options = json.loads(variant.get_attribute("data-options"))
            assert [options[each.get_attribute("data-option")] for each in selects] == list(choice)
            seen.add(variant.get_attribute("data-options"))
        variants = family.query_selector_all(".variant")
        assert seen == {each.get_attribute("data-options") for each in variants}, "one cannot be reached"
    opened.check()


def test_sorting_filtering_and_pointing(experiment, browser):
    opened = Opened(browser, experiment / "index.html")
    page = opened.page
    (panel,) = [
        each for each in page.query_selector_all(".panel") if "320 training" in each.query_selector("h2").inner_text()
    ]
    column = "tbody tr:not([hidden]) > :nth-child({})"
    heads = [head.inner_text().strip() for head in panel.query_selector_all("thead th")]
    place = next(i for i, head in enumerate(heads) if head.startswith("test accuracy")) + 1

    def values():
        return [float(v) for v in panel.eval_on_selector_all(column.format(place), "a => a.map(e => e.dataset.value)")]

    button = panel.query_selector_all("thead button")[place - 1]
    button.focus()
    page.keyboard.press("Enter")
    assert values() == sorted(values(), reverse=True)
    assert panel.query_selector("th[aria-sort]").get_attribute("aria-sort") == "descending"
    page.keyboard.press("Enter")
    assert values() == sorted(values())
    panel.query_selector_all("thead button")[0].click()  # text
    names = panel.eval_on_selector_all(column.format(1), "all => all.map(each => each.innerText.trim())")
    assert names == sorted(names, key=str.lower, reverse=True)

    before = len(values())
    panel.query_selector(".filter").fill("sgd")
    assert panel.eval_on_selector_all(column.format(1), "all => all.map(each => each.innerText.trim())") == ["sgd"]
    shown = panel.eval_on_selector_all(
        "figure[data-family=seeds] .cell", "all => all.filter(each => each.getClientRects().length).length"
    )
    assert shown == 2  # the seeds and the mean of one method
    assert panel.query_selector(".count").inner_text() == f"1 of {before}"
    panel.query_selector(".filter").fill("")
    assert len(values()) == before

    cell = panel.query_selector("figure[data-family=seeds] .cell")
    cell.scroll_into_view_if_needed()
    cell.hover(force=True)
    assert page.query_selector("#tip").is_visible()
    assert re.search(r": \d+\.\d+ % \[.*\], counted cost \d\.\d+, n = 2", page.query_selector("#tip").inner_text())
    index = cell.get_attribute("data-cell")
    assert panel.query_selector("tbody tr.on").get_attribute("data-cell") == index
    opened.check()


def test_the_style_is_in_force(experiment, browser):
    opened = Opened(browser, experiment / "index.html")
    page = opened.page
    assert page.evaluate("getComputedStyle(document.querySelector('tbody th')).position") == "sticky"
    page.query_selector("thead button").click()
    arrow = "getComputedStyle(document.querySelector('thead th[aria-sort] button'), '::after').content"
    assert page.evaluate(arrow) == '" ▼"'
    page.query_selector("tbody tr td").hover()
    colors = (
        "[...document.querySelectorAll('tbody tr')].slice(0, 2).map(e => getComputedStyle(e.cells[1]).backgroundColor)"
    )
    first, second = page.evaluate(colors)
    assert first != second
    opened.check()


def test_the_texts_of_a_figure_keep_their_digits(experiment):
    found = table(panels(collect([experiment]))[0])
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(2.0)
        canvas.axes[0].set_xticks([0.00125, 0.00375], ["0.00125", "0.00375"])
        canvas.axes[0].set_title("rho=0.0125")
        drawn = canvas.finished("family", found, "title", {}, "caption").svg
    assert all(f">{text}<" in drawn for text in ("0.00125", "0.00375", "rho=0.0125"))
    assert not re.search(r' d="[^"]*\d\.\d{3}', drawn), "coordinates have two digits"


def test_a_hostile_name_is_text(experiment, browser):
    opened = Opened(browser, experiment / "index.html")
    assert "hacked" not in opened.page.title()
    assert opened.page.query_selector_all("img") == []
    assert any(HOSTILE in row.inner_text() for row in opened.page.query_selector_all("tbody th"))
    opened.check()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESK])
def test_phone_and_desk_light_and_dark(experiment, browser, size, scheme):
    opened = Opened(browser, experiment / "index.html", size, scheme)
    page = opened.page
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
    colors = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor].map("
        "color => color.match(/\\d+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0) / 3)"
    )
    ink, paper = colors
    assert (ink < 60 and paper > 200) if scheme == "light" else (ink > 200 and paper < 60)
    stroke = page.evaluate("getComputedStyle(document.querySelector('svg text')).fill.match(/\\d+/g).map(Number)")
    assert (sum(stroke) / 3 > 128) == (scheme == "dark"), "the text of the plots has the color of the page"
    assert page.screenshot(full_page=True)[:4] == b"\x89PNG"
    opened.check()


def test_the_names_and_order_that_a_screen_reader_gets(experiment, browser):
    opened = Opened(browser, experiment / "index.html")
    page = opened.page
    assert page.evaluate("document.documentElement.lang") == "en"
    assert (
        page.evaluate(
            "[...document.querySelectorAll('[id]')].map(e => e.id).filter((id, i, all) => all.indexOf(id) < i)"
        )
        == []
    )
    assert page.evaluate("document.querySelectorAll('select, input').length") > 3
    unnamed = "[...document.querySelectorAll('select, input')].filter(each => !each.labels.length).length"
    assert page.evaluate(unnamed) == 0
    levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3')].map(each => Number(each.tagName[1]))")
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    opened.check()


def test_without_scripts_and_in_print_all_tables_are_there(experiment, browser):
    opened = Opened(browser, experiment / "index.html", script=False)
    assert all(each.is_visible() for each in opened.page.query_selector_all("tbody tr"))
    assert all(
        any(variant.is_visible() for variant in figure.query_selector_all(".variant"))
        for figure in opened.page.query_selector_all("figure")
    )
    opened.page.emulate_media(media="print")
    assert not any(each.is_visible() for each in opened.page.query_selector_all(".controls"))
    assert opened.page.pdf()[:5] == b"%PDF-"
    opened.check()


def test_the_committed_page_and_the_index(browser):
    page = REPOSITORY / "experiments" / "cifar10_5000" / "index.html"
    opened = Opened(browser, page)
    assert len(opened.page.query_selector_all("tbody tr")) == 24
    assert opened.page.query_selector("h1").inner_text() == "cifar10_5000"
    opened.check()
    opened = Opened(browser, REPOSITORY / "experiments" / "index.html")
    measured = sorted(path.parent.name for path in (REPOSITORY / "experiments").glob("*/table.md"))
    assert [each.inner_text() for each in opened.page.query_selector_all("tbody th")] == measured
    opened.check()


def test_a_folder_of_experiments_has_a_page_each_and_an_index(command, capfd):
    for name in ("one", "two"):
        command(*TINY, "trainer.epochs=1", "optimizer=sgd", f"runs={command.runs}/{name}")
    (command.runs / "empty").mkdir()
    command_line.main([str(command.runs)])
    out, _ = capfd.readouterr()
    assert out.splitlines()[-1] == str(command.runs / "index.html")
    index = (command.runs / "index.html").read_text()
    assert re.findall(r'href="([^"]+)"', index) == ["one/index.html", "two/index.html"]
    assert 'href="../index.html"' in (command.runs / "one" / "index.html").read_text()

    command(*TINY, "trainer.epochs=1", "optimizer=sam")  # now it is a folder of runs itself
    command_line.main([str(command.runs)])
    assert "1 runs of 1 cells" in capfd.readouterr().out
    with pytest.raises(SystemExit):
        command_line.main([str(command.runs / "empty")])
    assert "has no finished run" in capfd.readouterr().err


def test_a_page_is_the_same_when_it_is_built_again(command):
    command("-m", *TINY, "trainer.epochs=2", "optimizer=sgd,rst", "seed=0,1")

    def content():
        command_line.main([str(command.runs)])
        return {
            path.name: path.read_bytes() for path in command.runs.rglob("*") if path.suffix in (".html", ".svg", ".pdf")
        }

    first = content()
    assert len(first) > 10
    assert first == content()
    linked = re.findall(r'href="(figures/[^"]+)"', (command.runs / "index.html").read_text())
    assert linked
    for name in linked:
        assert first[Path(name).name][:5] == (b"%PDF-" if name.endswith(".pdf") else b"<?xml")


def test_a_damaged_curve_leaves_the_rest(command, capfd):
    command("-m", *TINY, "trainer.epochs=2", "optimizer=sgd,rst", "seed=0,1")
    one, other, *_ = command.folders()
    (one / "metrics.csv").write_text("epoch,steps\n1,x\n")
    (other / "metrics.csv").unlink()
    command_line.main([str(command.runs)])
    assert (command.runs / "index.html").exists()
    assert capfd.readouterr().err.count("cannot be read; its curve is left out") == 2


STRANGE = {
    "a loss that overflowed": {"line": {"distance": [-1, 0, 1], "loss": [0.5, 0.1, None]}},
    "all overflowed": {"line": {"distance": [-1, 1], "loss": [None, None]}},
}


@pytest.mark.parametrize("what", STRANGE)
def test_a_surface_with_gaps_is_drawn(command, what):
    command("-m", *TINY, "trainer.epochs=1", "optimizer=sgd,sam")
    measures = dict.fromkeys(("lambda_max", "trace", "loss_rise", "m_sharpness", "adaptive_sharpness"), 1.0)
    plane = {"plane": {"distance": [-1, 1], "loss": [[1.0, None], [2.0, 3.0]]}}
    for folder in command.folders():
        path = folder / "result.json"
        result = json.loads(path.read_text())
        path.write_text(json.dumps(result | {"sharpness": {"kind": "full", **measures, **STRANGE[what], **plane}}))
    command_line.main([str(command.runs)])
    assert 'data-family="surface"' in (command.runs / "index.html").read_text()


def test_an_odd_result_is_left_out_and_the_rest_is_shown(command, capfd):
    command("-m", *TINY, "trainer.epochs=1", "optimizer=sgd", "seed=0,1,2,3,4")
    odd = [
        {"test_loss": 1e308},
        {"steps": 10**400},
        {"sharpness": {"kind": "full"}},
        {"propagations_per_step": 1e300},
    ]
    for folder, change in zip(command.folders(), odd, strict=False):
        path = folder / "result.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    command_line.main([str(command.runs)])
    out, err = capfd.readouterr()
    assert "1 runs of 1 cells" in out
    assert err.count("is not a valid result") == 4


def test_a_folder_that_cannot_be_written_is_one_line(command, capfd):
    command(*TINY, "trainer.epochs=1", "optimizer=sgd")
    (command.runs / "figures").write_text("in the way")
    with pytest.raises(SystemExit):
        command_line.main([str(command.runs)])
    err = capfd.readouterr().err
    assert err.startswith(f"error: {command.runs / 'figures'}")
    assert err.count("\n") == 1


def test_published_figures_stand_beside_ours(command, monkeypatch):
    """A ResNet-18 on CIFAR-10, as far as its result says."""
    command("-m", *TINY, "trainer.epochs=1", "optimizer=sgd,sam", "seed=0,1")
    for folder in command.folders():
        path = folder / "result.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"dataset": "cifar10", "model": "resnet18"}))
    (panel,) = panels(collect([command.runs]))
    sgd, sam = table(panel).rows
    assert [each.accuracy for each in sam.published] == [96.5, 95.78]
    assert "arXiv 2205.14083), Table 3" in sam.published[0].source
    command_line.main([str(command.runs)])
    text = (command.runs / "index.html").read_text()
    assert (
        f"ours {sam.accuracy.estimate:.2f}, published 96.50 ± 0.08, difference {sam.accuracy.estimate - 96.5:+.2f}"
        in text
    )
    assert "theirs: epochs 200, one seed, last epoch; batch 256" in text
    assert "ours: epochs 1, training images 320, batch 32, lr 0.1" in text
    csv = (command.runs / "table.csv").read_text()
    assert ",96.5," in csv
    assert sgd.published[0].accuracy == 95.61


def test_the_tables_import_no_torch():
    code = (
        "import sys; from sam_bench.report import __main__ as m; m.main(['--table', sys.argv[1]]); "
        "print('torch' in sys.modules)"
    )
    words = [sys.executable, "-c", code, "experiments/cifar10_5000"]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout.endswith("False\n"), done.stderr
