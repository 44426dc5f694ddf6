"""Output that cannot fail: stdout that lacks characters, is closed, is full, or whose reader went away; odd names."""

from __future__ import annotations

import ast
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table

import minimoe
from minimoe import console
from minimoe.errors import UserError

ROOT = Path(minimoe.__file__).parent
# Commands that are quick and write text, a table, JSON and a help text.
COMMANDS = (
    ["exercises", "hint", "routing.topk"],
    ["experiments", "show", "nano"],
    ["exercises", "list", "--json"],
    ["train", "--help"],
)


def command(arguments: list[str], shell: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own; ``shell`` is what follows it on the line."""
    words = " ".join([sys.executable, "-m", "minimoe", *arguments])
    # Without the suite's settings of JAX: a command looks at such variables, which takes JAX itself and most of its time.
    settings = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    settings |= {"PYTHONPATH": str(ROOT.parent), "JAX_PLATFORMS": "cpu"} | environment
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{words} {shell}"], capture_output=True, text=True, env=settings, check=False
    )


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_no_state_of_stdout_gives_a_traceback(arguments):
    for shell, settings in {
        "closed": (">&-", {}),
        "ascii": ("", {"PYTHONIOENCODING": "ascii"}),
        "both closed": (">&- 2>&-", {}),
        "reader gone": ("| true", {}),
        "dumb": ("", {"TERM": "dumb", "PYTHONIOENCODING": "cp1252"}),
    }.values():
        ended = command(arguments, shell, **settings)
        assert (ended.returncode, ended.stderr) == (0, ""), (shell, settings)


@pytest.mark.parametrize("arguments", [*COMMANDS, ["experiments", "list"], ["--help"]], ids=" ".join)
def test_a_full_disk_behind_stdout_is_one_line(arguments):
    ended = command(arguments, "> /dev/full")
    assert ended.returncode == 2
    assert ended.stderr.startswith("minimoe: the output cannot be written (No space left on device)")
    assert ended.stderr.count("\n") == 1


def test_characters_that_stdout_lacks_become_question_marks(monkeypatch):
    for encoding, seen in (("ascii", b"na?ve ? \n"), ("cp1252", b"na\xefve ? \n"), ("utf-8", "naïve ☃ \n".encode())):
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding, newline="\n"))
        console.write_out("naïve ☃ ")
        assert raw.getvalue() == seen
        table = Table("snow ☃")
        table.add_row("[draft] :smile: \udce9")
        console.show(table)
        console.print_json({"snow": "☃"})
        written = raw.getvalue().decode(encoding)
        assert "[draft] :smile: ?" in written
        assert json.loads(written[written.index("{") :]) == {"snow": "☃"}


def test_writing_to_a_closed_or_missing_stdout_is_silent(monkeypatch):
    closed = io.StringIO()
    closed.close()
    for stream in (closed, None):
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", stream)
        console.write_out("text")
        console.show(Table("head"))
        console.messages.print("message")


def test_a_reader_that_went_away_does_not_stop_the_work(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    for _ in range(2):
        console.write_out("text")
        console.messages.print("message")
    stream.close()  # what was left in the buffer goes nowhere


def test_other_errors_name_their_reason(monkeypatch):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(UserError, match="No space left on device"):
            console.write_out("text")


@pytest.mark.parametrize("name", ["notes [draft].txt", "dir[/x].txt", ":smile:", "[red]", "caf\udce9.txt"])
def test_names_are_no_markup(name, capsys):
    table = Table("file", title=name)
    table.add_row(name)
    console.show(table, name)
    console.messages.print(name)
    with console.Bar(name, 2) as bar:
        bar.update(2, note=name)
    out, err = capsys.readouterr()
    assert out.count(name.replace("\udce9", "?")) == 3
    assert err.count(name.replace("\udce9", "\\udce9")) == 3


def test_a_bar_on_a_terminal_takes_names_as_they_are(monkeypatch):
    drawn = io.StringIO()
    monkeypatch.setattr(console, "messages", console.Console(file=drawn, force_terminal=True, width=120, markup=False))
    monkeypatch.setenv("TERM", "xterm")
    with console.Bar("dir[/x]", 2) as bar:
        bar.update(1, note="notes [draft]")
    assert "dir[/x]" in drawn.getvalue()
    assert "notes [draft]" in drawn.getvalue()


def test_commands_write_through_one_place():
    """No command prints by itself: what can fail is in `minimoe.console` alone."""
    for path in (*ROOT.glob("cli/*.py"), *ROOT.glob("tour/*.py"), *ROOT.glob("experiments/*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("print", "typer.echo", "Console", "sys.stdout.write"), f"{path}:{node.lineno}"


INTERRUPTED = {
    "before the command": ("app.run = lambda: signal.raise_signal(signal.SIGINT)", 130),
    "after the command": ("app.run = lambda: 7; atexit.register(signal.raise_signal, signal.SIGINT)", 7),
}


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("when", INTERRUPTED)
def test_ctrl_c_at_any_time_is_no_traceback(when):
    act, code = INTERRUPTED[when]
    ready = "signal.signal(signal.SIGINT, signal.default_int_handler)"  # a shell's background jobs inherit that it is ignored
    program = (
        f"import atexit, signal; {ready}; import minimoe.cli.app as app; {act}; from minimoe.cli import main; main()"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (code, "", "")
