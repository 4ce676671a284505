import fcntl
import gzip
import io
import os
import resource
import select
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenizer.errors import UserError
from tokenizer.lines import (
    LineReader,
    LineWriter,
    read_lines,
    ready,
    split_lines,
)

# What other tools take for the end of a line, and bytes that upset readers of text.
NASTY = "a\x0bb\x0cc\x1cd\x1de\x1ef\x85g\u2028h\u2029i\rj \x00\x1b[31m \ufeff 🐕"


def file_of(folder: Path, data: bytes, name: str = "corpus.en") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"", []),
        (b"\n", [""]),
        (b"a", ["a"]),
        (b"a\n", ["a"]),
        (b"a\n\n\nb", ["a", "", "", "b"]),
        (b"a\r\nb\r\r\n\r\n", ["a", "b\r", ""]),
        (b"a\rb\nc\r", ["a\rb", "c"]),
        (b"\xef\xbb\xbfa\n\xef\xbb\xbfb\n", ["a", "\ufeffb"]),
        (b"\xef\xbb\xbf", []),
        (b"\xef\xbb\xbf\n", [""]),
        (b"a\n\xef\xbb\xbf", ["a", "\ufeff"]),
        (NASTY.encode() + b"\n", [NASTY]),
    ],
)
def test_every_reader_sees_the_same_lines(data: bytes, lines: list[str], tmp_path: Path) -> None:
    assert split_lines(data, "memory") == lines
    assert list(read_lines(file_of(tmp_path, data))) == lines
    for stream in (io.BytesIO(data), (tmp_path / "corpus.en").open("rb")):
        with stream:
            assert [x for w in LineReader(stream, "x").windows(2) for x in w] == lines


@given(st.lists(st.binary(max_size=4).filter(lambda b: b"\n" not in b), max_size=8))
def test_n_lf_make_n_lines(lines: list[bytes]) -> None:
    data = b"".join(line + b"\n" for line in [b"text", *lines])
    read = [x for w in LineReader(io.BytesIO(data), "x").windows(3) for x in w]
    assert len(read) == 1 + len(lines)


def test_lines_longer_than_a_block_are_read_whole(tmp_path: Path) -> None:
    lines = ["ä" * 2_000_000, "", "b" * 3_000_000]
    path = file_of(tmp_path, "\n".join(lines).encode())
    assert list(read_lines(path)) == lines
    with path.open("rb") as stream:
        assert [x for w in LineReader(stream, "x").windows(1) for x in w] == lines


@pytest.mark.parametrize(
    ("data", "where"),
    [
        (b"ok\nsm\xc3\xb6rg\xff", "line 2: not UTF-8 (byte 0xff at column 6)"),
        (b"\xef\xbb\xbf\xed\xa0\x80\n", "line 1: not UTF-8 (byte 0xed at column 1)"),
        (b"x\r\n" * 100_000 + b"\xc0\xaf\n", "line 100001: not UTF-8 (byte 0xc0 at column 1)"),
        (b"cut off \xf0\x9f\x90\n\n", "line 1: not UTF-8 (byte 0xf0 at column 9)"),
    ],
)
def test_bytes_that_are_not_utf8_are_located(data: bytes, where: str, tmp_path: Path) -> None:
    path = file_of(tmp_path, data)
    with pytest.raises(UserError) as error:
        list(read_lines(path))
    assert str(error.value).startswith(f"{path}: {where}; ")
    with pytest.raises(UserError) as error:
        list(LineReader(io.BytesIO(data), "stdin", strict=True).windows(10))
    assert str(error.value).startswith(f"stdin: {where}; ")


def test_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing\.en: no such file"):
        list(read_lines(tmp_path / "missing.en"))
    with pytest.raises(UserError, match="directory"):
        list(read_lines(tmp_path))


def test_fifo_is_read_once(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = threading.Thread(target=fifo.write_bytes, args=(b"\xef\xbb\xbfa\nb\n",))
    writer.start()
    assert list(read_lines(fifo)) == ["a", "b"]
    writer.join()


def test_a_line_from_a_fifo_is_not_kept_waiting(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = os.open(fifo, os.O_RDWR)  # or it would wait for a reader
    lines = read_lines(fifo)
    patience = threading.Timer(5, os.close, [writer])
    patience.start()
    for data, line in ((b"one\ntw", "one"), (b"o\n", "two")):
        os.write(writer, data)
        assert next(lines) == line
    patience.cancel()
    os.close(writer)
    assert list(lines) == []


def test_invalid_bytes_are_replaced_and_their_lines_remembered() -> None:
    data = b"good\n" + b"b\xffd\n" * 15 + b"\xed\xa0\x80"
    reader = LineReader(io.BytesIO(data), "stdin")
    (window,) = reader.windows(100)
    assert window == ["good"] + ["b\ufffdd"] * 15 + ["\ufffd" * 3]
    assert reader.n_lines == 17
    assert reader.invalid.n == 16
    assert reader.invalid.first == list(range(2, 12))


def test_file_is_read_in_full_windows(tmp_path: Path) -> None:
    path = file_of(tmp_path, b"some words\n" * 25_000)
    with path.open("rb") as stream:
        sizes = [len(window) for window in LineReader(stream, "x").windows(1000)]
    assert sizes == [1000] * 25


def test_waiting_line_is_handed_over_before_the_stream_ends() -> None:
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb") as stream, os.fdopen(write_end, "wb", buffering=0) as writer:
        windows = LineReader(stream, "pipe").windows(1000)
        writer.write(b"one\ntwo\n")
        assert next(windows) == ["one", "two"]
        writer.write(b"three\nfo")
        assert next(windows) == ["three"]
        writer.write(b"ur\n")
        assert next(windows) == ["four"]
        writer.write(b"last")
        writer.close()
        assert list(windows) == [["last"]]


def test_byte_order_mark_may_arrive_in_pieces() -> None:
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb") as stream, os.fdopen(write_end, "wb", buffering=0) as writer:
        windows = LineReader(stream, "pipe").windows(10)
        sender = threading.Timer(0.05, lambda: (writer.write(b"\xbfone\n"), writer.close()))
        writer.write(b"\xef\xbb")
        sender.start()
        assert list(windows) == [["one"]]
        sender.join()


def test_non_blocking_stream_is_waited_for() -> None:
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    with os.fdopen(read_end, "rb") as stream, os.fdopen(write_end, "wb", buffering=0) as writer:
        sender = threading.Timer(0.05, lambda: (writer.write(b"one\n"), writer.close()))
        sender.start()
        assert list(LineReader(stream, "pipe").windows(10)) == [["one"]]
        sender.join()


def test_descriptors_may_have_any_number() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limits[1] < 3000:
        pytest.skip("this system lets nobody open so many files")
    ends = os.pipe()
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3000, limits[1]))
        read_end, write_end = (fcntl.fcntl(end, fcntl.F_DUPFD, 2000) for end in ends)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for end in ends:
            os.close(end)
    with os.fdopen(read_end, "rb") as stream, os.fdopen(write_end, "wb", buffering=0) as writer:
        windows = LineReader(stream, "pipe").windows(10)
        assert ready(write_end, select.POLLOUT)
        writer.write(b"one\n")
        assert next(windows) == ["one"]
        assert not ready(read_end, select.POLLIN, 0)


def test_reader_of_a_compressed_stream_unpacks(tmp_path: Path) -> None:
    path = file_of(tmp_path, gzip.compress(b"one\ntwo\n"), "x.gz")
    with gzip.open(path) as stream:
        assert list(LineReader(stream, "x.gz").windows(10)) == [["one", "two"]]


def test_directory_as_a_stream_is_an_error(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    # The io module refuses directories; as standard input a shell can still hand one over.
    script = (
        "import sys; from tokenizer.lines import LineReader\n"
        "list(LineReader(sys.stdin.buffer, 'stdin').windows(1))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], stdin=descriptor, capture_output=True, check=False
    )
    os.close(descriptor)
    assert done.returncode != 0
    assert b"directory" in done.stderr


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", b"\n"),
        ("Ä dog.", "Ä dog.\n".encode()),
        ("a\nb\r\nc\r", b"a b  c \n"),
        ("a\ud800b", "a\ufffdb\n".encode()),
        ("x\u2028y\x85", "x\u2028y\x85\n".encode()),
    ],
)
def test_writer_keeps_a_text_on_one_line(text: str, line: bytes) -> None:
    stream = io.BytesIO()
    writer = LineWriter(stream)
    writer.write(text)
    writer.flush()
    assert stream.getvalue() == line
    assert writer.n_lines == 1


@given(st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]))))
def test_what_is_written_is_read_back(texts: list[str]) -> None:
    stream = io.BytesIO()
    writer = LineWriter(stream)
    for text in ["first", *texts]:
        writer.write(text)
    assert split_lines(stream.getvalue(), "x") == ["first", *texts]
    assert writer.n_lines == len(texts) + 1
