"""Commands: their manners, and their last line of defence: one line and a status on any error."""

from __future__ import annotations

import errno
import importlib
import os
import subprocess
import sys

import pytest
from recipes import ROOT

from data.console.command import parser_of, plain, run
from data.console.failures import explained, without_credentials
from data.errors import UserError

COMMANDS = [
    "data.prepare",
    "distill.teacher_oof",
    "distill.student",
    "distill.predict",
    "distill.export",
    "distill.average",
    "distill.doctor",
    "distill.race",
    "ensemble.stack",
    "ensemble.predict",
]


def parser_texts(command, capsys):
    module = importlib.import_module(command if command != "distill.race" else "distill.race.__main__")
    if command == "distill.doctor":
        module = importlib.import_module("distill.doctor.__main__")
    with pytest.raises(SystemExit) as ended:
        module.main(["--help"])
    assert not ended.value.code
    return module, capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_that_the_parser_takes_and_no_markup(command, capsys):
    module, shown = parser_texts(command, capsys)
    assert "``" not in shown
    assert ":mod:" not in shown
    examples = [line for line in shown.split("example:")[1].splitlines() if line.strip()]
    parse = getattr(module, "arguments", None) or getattr(module, "_parse", None)
    parse = parse or module.build_parser().parse_args
    for line in examples:
        words = line.split()
        assert words[:3] == ["python", "-m", command]
        parse(words[3:])


@pytest.mark.parametrize("command", COMMANDS)
def test_options_are_written_out(command, capsys):
    module, _ = parser_texts(command, capsys)
    with pytest.raises(UserError, match="--version"):
        module.main(["--versio", *required(command)])


def required(command):
    return {
        "distill.doctor": ["target"],
        "distill.predict": ["--model", "m", "--data", "d", "--out", "o.csv"],
        "distill.export": ["--model", "m", "--out", "o"],
        "distill.average": ["--model", "m", "--out", "o"],
        "ensemble.predict": ["--stack", "s", "--oof", "o", "--out", "o.csv"],
    }.get(command, [])


@pytest.mark.parametrize("command", COMMANDS)
def test_a_python_without_the_packages_says_what_to_do(command):
    """A Python of its own, without the site packages, as ``/usr/bin/python3`` has none."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-S", "-m", command], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    for words in (sys.executable, "lacks numpy", "make demo", ".venv/bin/python", "pip install -e ."):
        assert words in done.stderr


def test_version_is_one_line(capsys):
    with pytest.raises(SystemExit):
        parser_of("data.prepare", __doc__, "data.prepare").parse_args(["--version"])
    assert capsys.readouterr().out.startswith("distillstack")


def test_markup_is_taken_off():
    doc = "``python -m a.b``: read what :mod:`data.x` and :func:`~data.y` say of ``z``.\n\nMore."
    assert plain(doc) == "Read what data.x and data.y say of z.\n\nMore."


def deep_yaml():
    import yaml

    yaml.safe_load("[" * 100_000)


def torch_save():
    import torch

    torch.save(torch.zeros(1_000_000), os.environ["TARGET"])


def endless():
    return endless()


def locked_directory():
    raise PermissionError(errno.EACCES, "Permission denied", "/data/secret")


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        (lambda: os.stat("x" * 300), ["xxx", "255 bytes"]),
        (locked_directory, ["/data/secret", "grant this user"]),
        (deep_yaml, ["nested too deeply"]),
        (endless, ["nested too deeply"]),
        (lambda: bytearray(10**18), ["out of memory"]),
        (lambda: b"\xff".decode(), ["not UTF-8"]),
        (lambda: "\udcff".encode(), ["not UTF-8", "rename"]),
        (lambda: importlib.import_module("no_such_package"), ["lacks no_such_package", "pip install"]),
        (lambda: os.stat("http://user:hunter2@host/x/y"), ["://…@host"]),
    ],
)
def test_what_the_system_refuses_is_one_line_and_status_2(cause, words, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["command"])
    monkeypatch.delenv("DISTILLSTACK_DEBUG", raising=False)
    with pytest.raises(SystemExit) as ended:
        run(lambda _: cause())
    shown = capsys.readouterr().err
    assert ended.value.code == 2, shown
    assert shown.startswith("error: ")
    assert shown.count("\n") == 1
    assert "hunter2" not in shown
    for word in words:
        assert word in shown


def test_memory_that_torch_is_refused_is_told():
    import torch

    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50, dtype=torch.uint8)
    assert "out of memory" in explained(caught.value)


def test_a_disk_that_is_full_inside_torch_is_told(tmp_path):
    """A limit on the size of files stands for the disk."""
    code = (
        "import os, resource, torch\nfrom data.console.command import run\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "run(lambda _: torch.save(torch.zeros(1_000_000), 'weights.pt'))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert "the disk is full" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_fault_of_ours_has_a_status_of_its_own_and_a_file(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["command"])
    monkeypatch.delenv("DISTILLSTACK_DEBUG", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def fault(_):
        return {}["s3://u:hunter2@bucket"]

    with pytest.raises(SystemExit) as ended:
        run(fault)
    shown = capsys.readouterr().err
    assert ended.value.code == 70
    assert shown.count("\n") == 1
    assert "KeyError at " in shown
    assert "fault of distillstack" in shown
    (file,) = tmp_path.iterdir()
    assert str(file) in shown
    text = file.read_text()
    assert "Traceback" in text
    assert "hunter2" not in text + shown


@pytest.mark.parametrize("how", ["option", "environment"])
def test_debug_shows_the_traceback(how, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["command", *(["--debug"] if how == "option" else [])])
    monkeypatch.setenv("DISTILLSTACK_DEBUG", "1" if how == "environment" else "0")

    def mistake(_):
        raise UserError("a column is missing")

    with pytest.raises(SystemExit) as ended:
        run(mistake)
    shown = capsys.readouterr().err
    assert ended.value.code == 2
    assert "Traceback" in shown
    assert shown.endswith("error: a column is missing\n")


@pytest.mark.parametrize(("to", "status"), [(">&-", 0), (">/dev/full", 2), ("2>&-", 0), ("| head -c 1", 0)])
def test_an_output_that_is_closed_or_full_is_no_traceback(to, status, tmp_path):
    code = "from data.console.command import run; run(lambda _: print('x' * 100_000))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["sh", "-c", f'"$0" -c "$1" {to}', sys.executable, code],
        env=environment,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == status
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_addresses_are_shown_without_credentials():
    assert without_credentials("zip://a::http://u:SECRET@host/x") == "zip://a::http://…@host/x"


def test_a_module_of_an_extra_names_the_extra(monkeypatch):
    lines = ["numpy>=1.26", "torch>=2.11; extra == 'all'", "torch>=2.11; extra == 'train'"]
    monkeypatch.setattr("importlib.metadata.requires", lambda _: lines)
    said = explained(ModuleNotFoundError("no torch", name="torch.nn"))
    assert said == "needs torch.nn, which the extra train brings: pip install 'distillstack[train]'"
    assert "lacks numpy" in explained(ModuleNotFoundError("no numpy", name="numpy"))


@pytest.mark.parametrize(
    ("raised", "status", "lines"),
    [
        ("UserError('no rows')", 2, 1),
        ("ModuleNotFoundError('none', name='absent')", 2, 1),
        ("ZeroDivisionError('of ours')", 1, 4),
    ],
)
def test_a_guarded_script_ends_on_a_mistake_as_commands_do(raised, status, lines):
    code = (
        "from data.console.command import guard\n"
        "from data.errors import UserError\n"
        "guard()\n"
        f"raise {raised}\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert len(done.stderr.splitlines()) <= lines
    assert ("Traceback" in done.stderr) == (status == 1)
