import subprocess
import sys
from pathlib import Path

import pytest

from cli.streams import escape, lines_from, lines_to
from tokenizer.errors import UserError
from tokenizer.files import sweep


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, größer, 你好 👩‍🚀", "plain, größer, 你好 👩‍🚀"),
        ("a\tb\nc\r", r"a\tb\nc\r"),
        ("\x1b[2J\x07\x9b", r"\x1b[2J\x07\x9b"),
        ("\u202egnirts", r"\u202egnirts"),
        ("\u2028", r"\u2028"),
        ("\udcff", r"\udcff"),
        ("[bold]kept[/bold]", "[bold]kept[/bold]"),
    ],
)
def test_escaped_text_cannot_move_a_cursor(text, shown):
    assert escape(text) == shown


def test_a_file_is_written_whole(tmp_path):
    path = tmp_path / "out"
    with lines_to(path) as writer:
        writer.write("one")
        writer.flush()
        assert not path.exists()
        writer.write("two")
    assert path.read_bytes() == b"one\ntwo\n"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_file_keeps_its_content_when_its_writer_fails(tmp_path):
    path = tmp_path / "out"
    path.write_bytes(b"old\n")

    def write_and_fail(writer):
        writer.write("new")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), lines_to(path) as writer:
        write_and_fail(writer)
    assert path.read_bytes() == b"old\n"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


WRITER = """
import os, sys
from pathlib import Path
from cli.streams import lines_to

with lines_to(Path(sys.argv[1])) as writer:
    writer.write("new")
    writer.flush()
    sys.stdout.write("begun\\n")
    sys.stdout.flush()
    sys.stdin.read()
"""


def begin_to_write(path):
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"begun\n"
    return process


def test_what_a_killed_writer_left_goes_with_the_next_one(tmp_path):
    path = tmp_path / "out"
    process = begin_to_write(path)
    process.kill()
    process.communicate()
    assert len(list(tmp_path.glob(".tmp-*"))) == 1
    with lines_to(path) as writer:
        writer.write("second")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_file_that_is_being_written_in_the_folder_of_a_run_is_not_swept(tmp_path):
    process = begin_to_write(tmp_path / "out")
    sweep(tmp_path)
    process.communicate()
    assert process.returncode == 0
    assert (tmp_path / "out").read_bytes() == b"new\n"


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "target").write_bytes(b"old\n")
    (tmp_path / "link").symlink_to("target")
    with lines_to(tmp_path / "link") as writer:
        writer.write("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"new\n"


def test_a_file_that_is_replaced_keeps_its_mode(tmp_path):
    path = tmp_path / "private"
    path.write_bytes(b"old\n")
    path.chmod(0o600)
    with lines_to(path) as writer:
        writer.write("new")
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"new\n", 0o600)


@pytest.mark.parametrize("name", ["-", "/dev/stdout", "/dev/fd/1"])
def test_standard_output_has_a_name_and_is_not_cut(entry, model, tmp_path, name):
    (tmp_path / "out").write_bytes(b"before\n")
    with (tmp_path / "out").open("ab") as out:
        command = [*entry, "translate", "-m", model, "-o", name, "--threads", "1"]
        subprocess.run(command, input=b"a\nb\n", stdout=out, check=True, cwd=tmp_path, timeout=60)
    lines = (tmp_path / "out").read_bytes().split(b"\n")
    assert (lines[0], len(lines)) == (b"before", 4)
    assert not (tmp_path / "-").exists()


def test_a_device_is_written_to_and_stays_a_device():
    with lines_to(Path("/dev/null")) as writer:
        writer.write("gone")
    assert not Path("/dev/null").is_file()


@pytest.mark.parametrize("path", ["missing/out", "."])
def test_a_file_that_cannot_be_written_is_named(tmp_path, path):
    with (
        pytest.raises(UserError, match="could not be written"),
        lines_to(tmp_path / path),
    ):
        pass


@pytest.mark.parametrize("path", ["missing", "."])
def test_a_file_that_cannot_be_read_is_named(tmp_path, path):
    with pytest.raises(UserError, match="cannot be read"), lines_from(tmp_path / path):
        pass


# The rest needs real descriptors, so these are processes; `encode` starts quickly.


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A file whose encoding does not fit into the buffer of a pipe."""
    path = tmp_path / "text"
    path.write_bytes(b"a dog runs in a big Stra\xc3\x9fe\n" * 20_000)
    return path


def test_a_reader_that_goes_away_is_no_error(entry, model, text):
    command = [*entry, "encode", "-m", str(model), str(text)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe) as process:
        first = process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141
    assert first.split()


@pytest.mark.parametrize(
    ("redirection", "code", "message"),
    [
        (">/dev/full", 2, "tfm: error: standard output: write failed: No space left on device\n"),
        (">&-", 2, "tfm: error: standard output: write failed: Bad file descriptor\n"),
        ("<&-", 2, "tfm: error: stdin: cannot be read (Bad file descriptor)\n"),
        (">/dev/null 2>&-", 0, ""),
        ("</dev/null >&-", 0, ""),
    ],
)
def test_closed_and_full_streams(entry, model, redirection, code, message):
    shell = ["sh", "-c", f'exec "$@" {redirection}', "sh"]
    command = [*shell, *entry, "encode", "-m", str(model)]
    result = subprocess.run(command, input=b"a dog\n", capture_output=True, check=False)
    assert (result.returncode, result.stderr.decode()) == (code, message)
