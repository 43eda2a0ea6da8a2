"""Random settings, drawn from the names that --help prints, end in one line or in a training that starts."""

import os
import random
import signal
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from sam_bench import run
from sam_bench.conf_files import CONF
from sam_bench.configuration import store_inner_methods
from sam_bench.settings import leaves

COMMAND_LINES = int(os.environ.get("SAM_BENCH_FUZZ", 80))
ALWAYS = ("logger=none", "optimizer=sam", "trainer.epochs=8", "dataset.subset=256")
LIMIT = 60  # seconds that one command line may take
GROUPS = ("optimizer", "optimizer/base", "optimizer/inner", "schedule", "model", "dataset", "trainer")
VALUES = (
    *("0", "1", "-1", "2", "3", "0.5", "1.5", "-0.5", "1e-300", "1e300", "-0.0", "nan", "inf", "-inf", "1e20", "1e5"),
    *("99999999999999999999", "true", "false", "null", "x", "''", "auto", "cpu", "[]", "[1]", "[1,2]", "{}", "{a:1}"),
    *("${seed}", "${nope}", "${", "'1'", "ρ", "a b", "../x", "a/b", "x,y", "?", "???", "y" * 300, "random", "n:m"),
    *("tensor", "emulated", "bf16", "1437"),
)


Options = dict[str, dict[str, dict[str, Any]]]  # group, choice, setting, default


def options() -> Options:
    """Each group, its choices, and the settings in their files."""
    found: Options = {}
    for group in GROUPS:
        for path in sorted((CONF / ("optimizer" if group == "optimizer/inner" else group)).glob("*.yaml")):
            settings = dict(leaves(OmegaConf.to_container(OmegaConf.load(path))))
            settings.pop("defaults", None)
            prefix = group.replace("/", ".")
            found.setdefault(group, {})[path.stem] = {f"{prefix}.{key}": value for key, value in settings.items()}
    return found


def likely(default: Any, draw: random.Random) -> str:
    """A value that may be right."""
    if isinstance(default, bool):
        return draw.choice(["true", "false"])
    if isinstance(default, (int, float)):
        return draw.choice(["0", "1", "2", "7", "0.1", "0.5", "1e-3", str(default)])
    return draw.choice(["null", str(default)])


def command_line(draw: random.Random, options: Options) -> list[str]:
    """Up to two groups and up to two settings, mostly of these groups, and often values that may be right."""
    chosen = {group: draw.choice(list(options[group])) for group in draw.sample(GROUPS, draw.randrange(3))}
    line = [f"{group}={choice}" for group, choice in chosen.items()]
    others = {"optimizer": "sam", "optimizer/base": "sgd", "dataset": "digits", "trainer": "short"}
    near = {
        name: value for group, choice in (others | chosen).items() for name, value in options[group][choice].items()
    }
    every = {name: value for of in options.values() for choice in of.values() for name, value in choice.items()}
    for _ in range(draw.randrange(1, 3)):
        name, default = draw.choice(list((near if draw.random() < 0.8 else every).items()))
        value = likely(default, draw) if draw.random() < 0.6 else draw.choice(VALUES)
        prefix = draw.choice(["", "+", "++", "~"]) if draw.random() < 0.2 else ""
        line.append(f"{prefix}{name}" if prefix == "~" else f"{prefix}{name}={value}")
    if draw.random() < 0.1:
        line.append(f"{draw.choice(['', '+', '~'])}{draw.choice(GROUPS)}={draw.choice(VALUES)}")
    return line


class Hang(BaseException):
    """A command line took too long."""


def test_random_settings(command, tmp_path, monkeypatch):
    def stop_at_the_first_step(self):
        raise KeyboardInterrupt

    def hang(*_):
        raise Hang

    monkeypatch.setattr(run.Run, "step", stop_at_the_first_step)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAM_BENCH_DATA", str(tmp_path / "data"))
    for proxy in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")  # nothing listens there
    before = signal.signal(signal.SIGALRM, hang)
    store_inner_methods(CONF)
    draw, started, ended, choices = random.Random(0), 0, 0, options()
    try:
        while started + ended < COMMAND_LINES:
            line = command_line(draw, choices)
            signal.alarm(LIMIT)
            status, out, err = command(*ALWAYS, *line)
            signal.alarm(0)
            GlobalHydra.instance().clear()
            assert "Traceback" not in err, line
            assert status in (2, 130), (line, out, err)
            if status == 2:
                assert sum(text.startswith("error: ") for text in err.splitlines()) == 1, (line, err)
                ended += 1
            else:
                assert "run folder: " in out, line
                started += 1
    except (Hang, Exception) as error:
        pytest.fail(f"after {started + ended}: {line}: {error!r}")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    print(f"{started} started, {ended} ended in one line")
    assert min(started, ended) >= COMMAND_LINES / 20


def test_the_fuzz_test_sees_a_traceback(command, monkeypatch):
    from sam_bench.settings import Settings

    def broken(*_):
        raise RuntimeError("broken")

    monkeypatch.setattr(Settings, "of", broken)
    with pytest.raises(RuntimeError, match="broken"):
        command("logger=none")
