"""Tests of single files; those of folders with manifests, which write in the same way, are in seq2seq."""

import os
import subprocess
from pathlib import Path

import pytest

from tokenizer.errors import UserError
from tokenizer.files import (
    append,
    publish_file,
    read_json,
    sweep,
    unfinished,
    write_json,
)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_published_file_replaces_the_old_one(tmp_path: Path) -> None:
    publish_file(tmp_path / "file", b"old")
    publish_file(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert names(tmp_path) == {"file"}


def test_what_another_process_is_writing_is_not_swept(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        mine = unfinished(tmp_path / "out").name
        theirs = mine.replace(f"-{os.getpid()}-", f"-{other.pid}-")
        (tmp_path / theirs).write_bytes(b"half")
        publish_file(tmp_path / "out", b"")
        sweep(tmp_path)
        assert names(tmp_path) == {theirs, "out"}
        other.kill()
    sweep(tmp_path)
    assert names(tmp_path) == {"out"}


def test_what_an_earlier_process_of_the_same_number_left_is_swept(tmp_path: Path) -> None:
    unfinished(tmp_path / "out").write_bytes(b"half")
    publish_file(tmp_path / "out", b"")
    assert names(tmp_path) == {"out"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_an_error_for_the_user_wherever_it_shows(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"log: could not be written .*free some space"):
        append(tmp_path / "log", b"line\n")


@pytest.mark.parametrize("document", [{}, [], None, "ä\u2028", {"a": [1, -2.5, True, {"b": "🙂"}]}])
def test_json_reads_back(document: object) -> None:
    assert read_json(write_json(document), "x") == document


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"{} {}",
        b"NaN",
        b"-Infinity",
        b"1e999",
        b'{"a": 1, "a": 2}',
        b"[" * 100_000,
        b"9" * 5000,
        b'"\\ud800"',
        b'"\xff"',
        b"\xef\xbb\xbf{}",
        b'{"' + b'":1,"'.join(b"%d" % i for i in range(50_000)) + b'":1,"7":1}',  # in linear time
    ],
    ids=lambda data: repr(data[:12]),
)
def test_json_that_is_not_strict_is_refused(data: bytes) -> None:
    with pytest.raises(UserError, match="x: not valid JSON"):
        read_json(data, "x")


@pytest.mark.parametrize("document", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_not_written(document: object) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(document)
