"""What others can prepare or leave behind: half-written files, scratch directories, secrets in addresses."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest

from data import storage
from data.console.settings import read_yaml
from data.errors import UserError, brief, printable
from data.files import atomic_write, is_temporary, locked, make_directory, require_file, write_json
from data.prepare import main
from data.sources.formats import SourceOptions
from data.sources.plan import read_plan


def test_what_a_kill_left_is_swept_by_the_next_command(tmp_path: Path) -> None:
    out = tmp_path / "store"
    program = f"""
import os, signal
from pathlib import Path
from data.files import atomic_write
with atomic_write(Path({str(out)!r}) / "manifest.json") as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    ended = subprocess.run([sys.executable, "-c", program], check=False)
    assert ended.returncode == -signal.SIGKILL
    (left,) = out.iterdir()
    assert is_temporary(left.name)
    (out / ".manifest.json.1.tmp").write_text("of a process whose number lives again")
    with locked(out):
        assert list(out.iterdir()) == []


def test_what_is_being_written_is_not_swept(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a.json") as temporary:
        temporary.write_text("{}")
        with locked(tmp_path):
            assert temporary.exists()
    assert (tmp_path / "a.json").read_text() == "{}"


def test_files_have_the_modes_that_the_umask_asks_for(tmp_path: Path) -> None:
    earlier = os.umask(0o027)
    try:
        write_json(tmp_path / "a.json", {})
    finally:
        os.umask(earlier)
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o640


def test_names_too_long_and_places_that_cannot_be_are_named(tmp_path: Path) -> None:
    long = tmp_path / ("n" * 300)
    for refuse in (require_file, make_directory, lambda path: write_json(path, {})):
        with pytest.raises(UserError, match="cannot be"):
            refuse(long)
    with pytest.raises(UserError):
        main(["--source", str(long) + ".csv", "--out", str(tmp_path / "out")])
    (tmp_path / "t.csv").write_text("id,prompt,label\n1,p,a\n2,q,b\n")
    for options in (["--source", str(tmp_path / "t.csv"), "--out", str(long)], ["--check", str(long)]):
        with pytest.raises(UserError, match="cannot be opened"):
            main(options)


def test_yaml_nested_too_deep_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("[" * 20_000)
    with pytest.raises(UserError, match="levels deep"):
        read_yaml(tmp_path / "s.yaml", "sources file")


@pytest.mark.parametrize(
    "value", ["${oc.env:TOKEN}", "${oc.env:TOKEN,x}", "${oc.${kind}:TOKEN}", "a/${oc.decode:${x}}"]
)
def test_no_file_reads_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("TOKEN", "SECRET")
    (tmp_path / "s.yaml").write_text(f'kind: env\nx: "1"\nsources: ["{value}"]\n')
    with pytest.raises(UserError, match="calls a resolver") as refused:
        read_plan([str(tmp_path / "s.yaml")], SourceOptions(), {})
    assert "SECRET" not in str(refused.value)


ADDRESSES = ["zip://a::http://u:SECRET@h/f.zip", "s3://u:SECRET@bucket/x", "https://h/x?token=SECRET"]


@pytest.mark.parametrize("address", ADDRESSES)
def test_addresses_are_shown_without_credentials(address: str) -> None:
    for shown in (printable(address), brief(address), brief(OSError(f"cannot open {address} now"))):
        assert "SECRET" not in shown
    for refuse in (storage.local_path, storage.open_storage):
        with pytest.raises(UserError) as refused:
            refuse(address)
        assert "SECRET" not in str(refused.value)
    with pytest.raises(UserError) as refused:
        main(["--source", address, "--out", "out"])
    assert "SECRET" not in str(refused.value)


def test_an_at_sign_in_a_path_is_no_credential() -> None:
    assert printable("s3://bucket/a@b/c") == "s3://bucket/a@b/c"


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(storage.SCRATCH, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path / f"distillstack-{os.getuid()}"


def test_scratch_is_made_for_this_user_alone(temporary: Path) -> None:
    storage.local_path("memory://bucket/x")
    assert stat.S_IMODE(temporary.stat().st_mode) == 0o700


@pytest.mark.parametrize("how", ["open to others", "a link", "a file"])
def test_scratch_that_others_can_prepare_is_refused(temporary: Path, tmp_path: Path, how: str) -> None:
    if how == "open to others":
        temporary.mkdir()
        temporary.chmod(0o777)
    elif how == "a link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        temporary.symlink_to(tmp_path / "elsewhere")
    else:
        temporary.write_text("")
    with pytest.raises(UserError, match="no directory of yours alone"):
        storage.local_path("memory://bucket/x")


def test_a_mirrors_file_that_was_changed_is_fetched_again(temporary: Path) -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/bucket/trust/a.txt", b"theirs")
    path = storage.local_path("memory://bucket/trust")
    storage.fetch(path)
    (path / "a.txt").write_text("planted")
    storage.fetch(path)
    assert (path / "a.txt").read_bytes() == b"theirs"
    (path / storage.SEEN).write_text("[[")
    storage.fetch(path)
    assert (path / "a.txt").read_bytes() == b"theirs"
    fs.rm("/bucket/trust", recursive=True)


def test_ids_and_paths_do_not_command_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["id,prompt,label"] + [
        f"r{i},{'same' * (i + 1)} prompt {i},{'ab'[i % 2]}\x1b[31m" for i in range(14)
    ]
    (tmp_path / "t\x1b[2J.csv").write_text("\n".join(lines))
    with pytest.raises(UserError) as refused:
        main(["--source", str(tmp_path / "t\x1b[2J.csv"), "--out", str(tmp_path / "out"), "--folds", "2"])
    assert "\x1b" not in printable(str(refused.value))
    (tmp_path / "t\x1b[2J.csv").write_text(
        "\n".join(lines).replace("\x1b[31m", "").replace("same", "s\x1b[5m")
    )
    main(["--source", str(tmp_path / "t\x1b[2J.csv"), "--out", str(tmp_path / "o\x1bc"), "--folds", "2"])
    assert "\x1b" not in capsys.readouterr().out
