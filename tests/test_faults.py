"""The faults of docs/faults.md that no other test file covers. All but one are real ones."""

import glob
import json
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sam_bench import files
from tests.command import TINY, settings
from tests.processes import in_a_process, wait_for
from tests.processes import train as train_in_a_process
from tests.test_errors import one_line
from tests.test_resume import assert_same, state_of

REPOSITORY = Path(__file__).parent.parent
SECRET = "5ecr3t" * 6 + "abcd"  # 40 characters, as an API key of W&B


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sam_bench", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def first_file(pattern: str, folder: Path, process: subprocess.Popen[str]) -> Path:
    """Wait for a file of this name."""
    wait_for(lambda: list(folder.glob(pattern)), lambda: process.poll() is None)
    return next(folder.glob(pattern))


@cache
def undisturbed() -> dict:
    """The last checkpoint of MANY epochs that nothing happened to."""
    with tempfile.TemporaryDirectory() as runs:
        process = in_a_process(train_in_a_process, [*MANY, f"runs={runs}"])
        process.join()
        assert process.exitcode == 0
        return state_of(Path(runs))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 6 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("may not mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


MANY = [*TINY, "trainer.epochs=30", "trainer.checkpoint_minutes=0"]


@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_a_disk_that_gets_full_or_read_only(fault, small_disk, tmp_path):
    process = start(*MANY, f"runs={small_disk}")
    last = first_file("*/*/last.pt", small_disk, process)
    if fault == "full":
        filler = small_disk / "filler"
        subprocess.run(["dd", "if=/dev/zero", f"of={filler}", "bs=4k"], capture_output=True)  # until it is full
    else:
        # a second mount, since one with files that are open for writing cannot be made read-only
        subprocess.run(["mount", "--bind", str(small_disk), str(small_disk)], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", str(small_disk)], check=True)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2, out + err
    why = "No space left on device" if fault == "full" else "Read-only file system"
    assert re.search(rf"error: {small_disk}\S+: cannot be written \({why}\); its previous content is kept", err)
    if fault == "full":
        filler.unlink()
    else:
        again = start(*MANY, f"runs={small_disk}")
        assert "Read-only file system" in one_line(again.communicate()[1])
        subprocess.run(["umount", "--lazy", str(small_disk)], check=True)
    assert last.exists()
    process = start(*MANY, f"runs={small_disk}")
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "continues after epoch" in out
    assert_same(state_of(small_disk), undisturbed())


def test_two_processes_in_one_run_folder(command):
    arguments = [*TINY, "trainer.epochs=40"]
    first = in_a_process(train_in_a_process, [*arguments, f"runs={command.runs}"])
    wait_for(lambda: list(command.runs.glob("*/*/metrics.csv")), first.is_alive)
    status, _, err = command(*arguments)
    assert status == 2
    assert "another process is already training this run" in one_line(err)
    first.join()
    assert first.exitcode == 0


def test_a_run_folder_that_was_moved(tmp_path):
    process = start(*MANY, f"runs={tmp_path / 'before'}")
    first_file("*/*/last.pt", tmp_path / "before", process)
    process.kill()
    process.communicate()
    (tmp_path / "before").rename(tmp_path / "after")
    process = start(*MANY, f"runs={tmp_path / 'after'}")
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "continues after epoch" in out
    assert_same(state_of(tmp_path / "after"), undisturbed())


def test_a_clock_that_jumps(tmp_path):
    library = glob.glob("/usr/lib/*/faketime/libfaketime.so.1")
    if not library:
        pytest.skip("needs libfaketime (Debian: faketime)")
    now = tmp_path / "now"
    now.write_text("+0")
    process = start(
        *MANY,
        f"runs={tmp_path}",
        LD_PRELOAD=library[0],
        FAKETIME_TIMESTAMP_FILE=str(now),
        FAKETIME_CACHE_DURATION="1",
        FAKETIME_DONT_FAKE_MONOTONIC="1",
    )
    first_file("*/*/metrics.csv", tmp_path, process)
    for jump in ("-1d", "+400d"):
        assert process.poll() is None
        now.write_text(jump)
        time.sleep(1.2)  # it takes effect within a second
    _, err = process.communicate()
    assert process.returncode == 0, err
    result = json.loads(next(tmp_path.glob("*/*/result.json")).read_text())
    assert 0 < result["seconds"] < 100
    assert_same(state_of(tmp_path), undisturbed())


def with_little_memory(arguments: list[str]) -> None:
    """Train with an address space of 300 MB more than now."""
    import torch  # imported before the limit

    from sam_bench import train

    assert torch, train
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 300 * 2**20, size + 300 * 2**20))
    train_in_a_process(arguments)


def test_too_large_a_batch_names_what_to_change(tmp_path):
    arguments = ["logger=none", "model=wrn16_4", "trainer.batch_size=1024", "trainer.epochs=1", f"runs={tmp_path}"]
    code = "import sys; from tests.test_faults import with_little_memory; with_little_memory(sys.argv[1:])"
    process = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=REPOSITORY)
    assert process.returncode == 2, process.stderr
    assert (
        "error: trainer.batch_size=1024: out of memory on cpu; trainer.accumulate=2 computes it in smaller parts, or "
        "choose a smaller batch\n" in process.stderr
    )


def test_a_rename_whose_reply_is_lost(tmp_path, monkeypatch):
    """As on a network file system: the rename is done, and repeated by the client, which then finds nothing to rename.

    This fault alone is not a real one, since it takes a server that loses a reply.
    """
    replace = os.replace

    def replace_and_forget(old, new):
        replace(old, new)
        raise FileNotFoundError(2, "No such file or directory", str(old))

    monkeypatch.setattr(os, "replace", replace_and_forget)
    files.replace(tmp_path / "file", "content")
    assert (tmp_path / "file").read_text() == "content"


# ----------------------------------------------------------------------------------------------------------------- W&B


class Refusing(BaseHTTPRequestHandler):
    """Answers 500."""

    def do_POST(self) -> None:
        self.send_response(500)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_PUT = do_POST  # noqa: N815

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def refusing_server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


@pytest.fixture
def silent_server():
    """Accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("server", ["refusing_server", "silent_server"])
def test_a_wandb_server_that_fails_does_not_stop_training(server, tmp_path, request):
    url = request.getfixturevalue(server)
    online = ["logger=wandb", "logger.mode=online", *TINY[1:], f"runs={tmp_path}"]
    begun = time.monotonic()
    process = start(*online, WANDB_BASE_URL=url, WANDB_API_KEY=SECRET, WANDB_INIT_TIMEOUT="5")
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, out + err
    assert err.count("warning: logger=wandb: ") == 1
    assert time.monotonic() - begun < 120
    assert len(list(tmp_path.glob("*/*/result.json"))) == 1
    assert_no_secret(tmp_path, out, err)


def test_no_key_is_in_run_folders_logs_or_configurations(tmp_path):
    arguments = ["logger=wandb", *TINY[1:], "seed=0,1", f"runs={tmp_path}"]
    for launcher in ("joblib", "submitit_local"):
        process = start("-m", f"hydra/launcher={launcher}", *arguments, WANDB_API_KEY=SECRET)
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, out + err
        assert_no_secret(tmp_path, out, err)
        for folder in tmp_path.glob("digits-*"):
            shutil.rmtree(folder)


def assert_no_secret(folder: Path, *printed: str) -> None:
    assert not any(SECRET in text for text in printed)
    looked_at = [path for path in folder.rglob("*") if path.is_file()]
    assert len(looked_at) > 5
    assert not [path for path in looked_at if SECRET.encode() in path.read_bytes()]


def test_nothing_is_unpickled_from_a_checkpoint():
    sources = [*(REPOSITORY / "sam_bench").rglob("*.py"), *(REPOSITORY / "benchmarks").rglob("*.py")]
    loads = [line for path in sources for line in path.read_text().splitlines() if "torch.load(" in line]
    assert loads
    assert all("weights_only=True" in line for line in loads)


def test_every_fault_of_the_page_names_a_test_that_exists():
    page = (REPOSITORY / "docs" / "faults.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ")][2:]
    assert len(rows) >= 15
    for row in rows:
        found = re.findall(r"`(\w+)::(\w+)`", row.split("|")[-2])
        assert found, row
        for module, name in found:
            assert f"def {name}(" in (REPOSITORY / "tests" / f"{module}.py").read_text(), (module, name)


def test_settings_are_the_same_wherever_runs_are(tmp_path):
    """A moved folder is found by the hash of its settings, which has no path in it."""
    one, other = (settings(*TINY, f"runs={tmp_path / name}") for name in "ab")
    assert one.folder.name == other.folder.name
    assert one.folder.parent.name == other.folder.parent.name
