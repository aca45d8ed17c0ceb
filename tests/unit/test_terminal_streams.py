"""The terminal as systems have it: encodings, closed pipes, signals, ports; never a traceback."""

import errno
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import unicodedata

import pytest
import yaml

from sst_ui import app
from sst_ui.__main__ import main
from sst_ui.cli import address, streams, tables
from sst_ui.errors import UserError
from sst_ui.jobs.history.store import History
from sst_ui.paths import ROOT
from sst_ui.recipe import load
from tests.unit.test_history import recipe as made
from tests.unit.test_history import result

NAME = "拒否 ▲ é 😀"
ENCODINGS = ("ascii", "cp1252", "utf-8", "shift_jis")


@pytest.fixture
def home(tmp_path, monkeypatch):
    for name in ("CACHE", "HOME", "OUTPUTS"):
        monkeypatch.setenv(f"SST_{name}", str(tmp_path / name.lower()))
    history = History()
    history.add(made(0.5, NAME), "demo", [result()])
    history.add(made(1.0, "whole"), "demo", [result(edited=0.4)])
    return history


class Pipe(io.TextIOWrapper):
    """A stream of some encoding, strict as Python makes it, whose bytes can be looked at."""

    def __init__(self, encoding):
        self.bytes = io.BytesIO()
        super().__init__(self.bytes, encoding=encoding, errors="strict", write_through=True)

    @property
    def text(self):
        return self.bytes.getvalue().decode(self.encoding)


@pytest.fixture
def piped(monkeypatch):
    """`piped(encoding, arguments)`: exit code, stdout and stderr of a command in a pipe."""

    def call(encoding, arguments):
        out, err = Pipe(encoding), Pipe(encoding)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            code = main(arguments)
        return code, out.text, err.text

    return call


# --- encodings ----------------------------------------------------------------------------------

COMMANDS = (
    ["kernel", "--layers", "8"],
    ["metrics"],
    ["metrics", "--json"],
    ["history"],
    ["history", "--json"],
    ["history", "show", "1"],
    ["history", "show", "1", "--recipe"],
    ["history", "compare", "1", "2"],
    ["history", "delete", "2", "--yes"],
    ["completion", "zsh"],
    ["kernel", "--profile", NAME],
    ["run", f"{NAME}.yaml", "--out", NAME],
    ["evaluate", "\udcff.yaml"],
    ["--help"],
)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_encoding_shows_what_it_can_and_nothing_breaks(home, piped, encoding):
    for arguments in COMMANDS:
        code, out, err = piped(encoding, arguments)
        bad = arguments[0] in ("run", "evaluate") or "--profile" in arguments
        assert code == (2 if bad else 0), (arguments, err)
        assert "Traceback" not in out + err
        if bad:
            assert err.count("\n") == 1


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_json_and_recipes_say_the_same_in_every_encoding(home, piped, tmp_path, encoding):
    _, out, _ = piped(encoding, ["history", "--json"])
    assert [row["name"] for row in json.loads(out)] == ["whole", NAME]
    _, out, _ = piped(encoding, ["history", "show", "1", "--recipe"])
    path = tmp_path / "again.yaml"
    path.write_text(out, encoding="utf-8")
    assert load(path) == made(0.5, NAME)


def test_progress_bars_and_tables_are_shown_in_ascii(piped):
    from rich.table import Table

    from sst_ui.cli import with_bar

    def job():
        from sst_ui.progress import Progress

        for number in range(3):
            yield Progress(f"層 {NAME}", number, 3)
        return number

    def show():
        assert with_bar(job()) == 2
        table = Table("見出し", "–")
        table.add_row(NAME, "█")
        tables.show(table)

    out = Pipe("ascii")
    stdout, sys.stdout = sys.stdout, out
    try:
        assert streams.guarded(show) == 0
    finally:
        sys.stdout = stdout
    assert "?" in out.text


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_a_process_in_a_pipe_of_another_encoding_ends_well(home, tmp_path, environment):
    file = tmp_path / "small.yaml"
    small = {
        "version": 1, "name": NAME, "edits": [{"directions": {"samples": 4}}],
        "evaluation": {"metrics": ["refusal_rate"], "samples": 2, "max_new_tokens": 2},
    }  # fmt: skip
    file.write_text(yaml.safe_dump(small, allow_unicode=True), encoding="utf-8")
    out = tmp_path / unicodedata.normalize("NFC", "é")
    done = subprocess.run(
        [sys.executable, "-m", "sst_ui", "run", str(file), "--out", str(out)],
        cwd=ROOT, env={**os.environ, **environment}, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert b"refusal_rate" in done.stdout
    assert load(out / "recipe.yaml").name == NAME


# --- pipes and signals ----------------------------------------------------------------------------


def shell(command, **more):
    return subprocess.run(
        ["bash", "-c", f"{command}; echo ${{PIPESTATUS[0]}}"],
        cwd=ROOT, capture_output=True, text=True, check=False, **more,
    )  # fmt: skip


@pytest.mark.parametrize("arguments", ["metrics", "metrics --json", "kernel --layers 5000"])
def test_a_pipe_that_is_closed_is_no_traceback(arguments):
    done = shell(f"{sys.executable} -m sst_ui {arguments} | true")
    assert done.stderr == ""
    assert done.stdout.split()[-1] in ("141", "0")  # 0: all of it was written before


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no full device")
def test_output_that_cannot_be_written_is_one_line_and_code_2():
    done = shell(f"{sys.executable} -m sst_ui metrics --json > /dev/full")
    assert done.stdout.split()[-1] == "2"
    (line,) = done.stderr.splitlines()
    assert "No space left" in line


def test_without_any_output_a_command_ends_well():
    done = shell(f"{sys.executable} -m sst_ui kernel >&-")
    assert (done.stdout.split()[-1], done.stderr) == ("0", "")


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (KeyboardInterrupt(), 130, "stopped."),
        (streams.Ended(), 143, "stopped."),
        (BrokenPipeError(errno.EPIPE, "x"), 141, ""),
        (UserError("a\nb"), 2, "error: a b"),
        (OSError(errno.ENOSPC, "x", "/some/file"), 2, "error: cannot use /some/file: No space"),
        (PermissionError(errno.EACCES, "x"), 2, "error: cannot write: Permission denied"),
        (SystemExit(3), 3, ""),
    ],
)
def test_whatever_ends_a_command_is_at_most_one_line_and_a_code(error, code, says, capsys):
    def work():
        raise error

    assert streams.guarded(work) == code
    said = capsys.readouterr().err
    assert said.startswith(says)
    assert said.count("\n") == (1 if says else 0)


def test_a_defect_of_ours_stays_visible():
    def work():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        streams.guarded(work)


WAITS = """
import os, sys
from pathlib import Path
from sst_ui.model.weights.staged_folder import staged
from sst_ui.cli import streams

def work():
    with staged(Path(sys.argv[1]) / "r", kind="run") as folder:
        (folder / "half").write_text("half")
        print("begun", flush=True)
        sys.stdin.read()

sys.exit(streams.guarded(work))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_job_with_one_word_and_cleans_up(tmp_path, number, code):
    process = subprocess.Popen(
        [sys.executable, "-c", WAITS, str(tmp_path)], cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout.readline() == "begun\n"
    process.send_signal(number)
    _, said = process.communicate()
    assert (process.returncode, said) == (code, "stopped.\n")
    assert os.listdir(tmp_path) == []


def test_signals_are_left_as_they_were_and_a_thread_may_run_a_command(capsys):
    before = signal.getsignal(signal.SIGTERM)
    codes = []
    thread = threading.Thread(target=lambda: codes.append(main(["kernel", "--layers", "2"])))
    thread.start()
    thread.join()
    assert main(["kernel", "--layers", "2"]) == 0
    assert codes == [0]
    assert signal.getsignal(signal.SIGTERM) == before


# --- the door -------------------------------------------------------------------------------------


@pytest.fixture
def free():
    """A port that nobody has now."""
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return door.getsockname()[1]


@pytest.fixture
def plain(monkeypatch):
    for name in ("GRADIO_SERVER_NAME", "GRADIO_SERVER_PORT", *address.NUMBERS):
        monkeypatch.delenv(name, raising=False)


BAD = ["99999", "65536", "0", "-1", "abc", "", " ", "7860.5", "1e3", "٧٨٦٠", "7" * 400, "0x10"]


@pytest.mark.parametrize("port", BAD)
def test_a_port_that_is_none_is_one_line(plain, monkeypatch, port):
    with pytest.raises(UserError, match="port") as told:
        app.settings(["--port", port])
    assert len(str(told.value)) < 150
    if port:
        monkeypatch.setenv("GRADIO_SERVER_PORT", port)
        with pytest.raises(UserError, match="port"):
            app.settings([])


@pytest.mark.parametrize("name", address.NUMBERS)
def test_a_number_of_gradios_that_is_none_is_one_line(plain, monkeypatch, name):
    monkeypatch.setenv(name, "many")
    with pytest.raises(UserError, match=f"{name} is 'many'"):
        app.settings([])


@pytest.mark.parametrize(
    ("host", "says"),
    [
        ("999.1.1.1", "unknown"),
        ("no host at all", "unknown"),
        ("x" * 300, "unknown"),
        ("a..b", "unknown"),
        ("192.0.2.1", "not an address of this machine"),
    ],
)
def test_a_host_that_is_not_here_is_one_line(plain, free, host, says):
    with pytest.raises(UserError, match=says) as told:
        app.settings(["--host", host, "--port", str(free)])
    assert len(str(told.value)) < 250


def test_a_port_that_is_taken_is_said_and_a_free_one_is_taken(plain, free):
    assert app.settings(["--port", str(free)]).port == free
    with socket.socket() as other:
        other.bind(("127.0.0.1", free))
        other.listen()
        with pytest.raises(UserError, match=f"port {free} of 127.0.0.1 is in use.*--port"):
            app.settings(["--port", str(free)])
    assert app.settings([]).port is None


def test_where_all_of_gradios_ports_are_taken_that_is_said(plain, monkeypatch, free):
    monkeypatch.setattr(address, "FIRST", free)
    monkeypatch.setenv("GRADIO_NUM_PORTS", "1")
    with socket.socket() as other:
        other.bind(("127.0.0.1", free))
        other.listen()
        with pytest.raises(UserError, match=f"port {free} to {free}"):
            app.settings([])


def test_a_port_that_is_not_allowed_is_said(plain, monkeypatch):
    def bind(self, where):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", bind)
    with pytest.raises(UserError, match="above 1023"):
        app.settings(["--port", "80"])


def test_the_door_says_it_before_anything_heavy_is_loaded():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "app.py", "--port", "99999"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    said = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert said == ["error: the port is '99999'; give a whole number from 1 to 65535."]
    for heavy in ("gradio", "torch", "transformers"):
        assert f"| {heavy}\n" not in done.stderr


def test_a_port_that_was_taken_meanwhile_is_one_line():
    class Page:
        def launch(self, **_):
            raise OSError("Cannot find empty port in range: 1-1. You can specify another.\nmore")

    with pytest.raises(UserError, match="cannot be served: Cannot find empty port") as told:
        address.launch(Page())
    assert "\n" not in str(told.value)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_page_ends_with_one_word(tmp_path, free, number, code):
    environment = {f"SST_{name}": str(tmp_path / name) for name in ("CACHE", "HOME", "OUTPUTS")}
    process = subprocess.Popen(
        [sys.executable, "-u", "app.py", "--port", str(free), "--model", str(tmp_path / "none")],
        cwd=ROOT, env={**os.environ, **environment, "TMPDIR": str(tmp_path)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert str(free) in process.stdout.readline()
        process.send_signal(number)
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == code, said
    assert "Traceback" not in said
    assert said.splitlines()[-1] == "stopped."
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".sst-studio")]
