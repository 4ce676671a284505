r"""The one reader of text lines and the one writer.

A line is what `wc -l` counts: the bytes up to b"\n" and nothing else. Python's own notions
(text-mode files, `str.splitlines`) also cut at a lone CR, at form feeds or at U+2028, each in its
own way, and the two files of a parallel corpus would fall out of step. One CR before the LF is
dropped (files from Windows), and so is a byte order mark at the very start. The last line may lack
its LF.

`read_lines` reads corpora and is strict: a byte that is not UTF-8 is an error with file and line.
`LineReader` reads what is to be translated, as it arrives, and repairs such bytes. `LineWriter`
puts each result on one line, whatever it contains.
"""

import io
import os
import re
import select
import stat
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from tokenizer.errors import UserError
from tokenizer.unpacking import BROKEN, refuse_binary, unpacked

_BOM = b"\xef\xbb\xbf"
_PIPE_BLOCK = 1 << 16
_FD_SETSIZE = 1024  # of select()
_SLICE = 1.0  # seconds
_HEAD = 10  # bytes; reads in which they may come one by one
_GRACE = 0.02  # seconds that a line waits for company before it goes on its way alone
_N_REMEMBERED = 10
_SURROGATES = re.compile("[\ud800-\udfff]")


def read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a corpus, without their ends.

    The file is read once, front to back, in constant memory; a FIFO or /dev/stdin will do, and gives
    each line as soon as it has arrived.

    Args:
        path: Plain text, or compressed if the name ends in .gz, .xz, .bz2 or .zst.

    Raises:
        UserError: The file cannot be read, its archive is broken, or a line is not UTF-8.
    """
    for lines in _line_lists(_blocks(path), str(path)):
        yield from lines


def count_lines(path: Path) -> int:
    """Count the lines of a corpus, as `read_lines` yields them.

    Args:
        path: A regular file, which is read once more than otherwise.

    Raises:
        UserError: The file cannot be read, or is a pipe, which can be read only once.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(
                f"{path}: is not a regular file; its text is read more than once, so save it to a file"
            )
        n_lines = 0
        first, last = b"", b"\n"
        for block in _blocks(path):
            n_lines += block.count(b"\n")
            first += block[: len(_BOM) + 1 - len(first)]
            last = block[-1:] or last  # an archive may hold empty blocks
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    return n_lines + (last != b"\n" and first != _BOM)


def split_lines(data: bytes, name: str) -> list[str]:
    r"""Split bytes in memory as `read_lines` splits a file; `name` stands for it in errors.

    >>> split_lines(b"one\r\ntwo\x0cand a half\n\nfour", "example")
    ['one', 'two\x0cand a half', '', 'four']

    Raises:
        UserError: A line is not UTF-8.
    """
    return [line for lines in _line_lists([data], name) for line in lines]


@dataclass(slots=True)
class Lines:
    """Numbers of lines that something happened to; there may be millions.

    Attributes:
        n: How many.
        first: The first ten, counted from 1.
    """

    n: int = 0
    first: list[int] = field(default_factory=list)

    def add(self, number: int) -> None:
        """Take note of a line."""
        self.n += 1
        if self.n <= _N_REMEMBERED:
            self.first.append(number)


class LineReader:
    """Reads lines as they arrive, in windows, and never keeps a line waiting for long.

    Bytes that are not UTF-8 become U+FFFD; the lines they stood on are remembered, so that the
    command can warn. The reader takes the stream over: nothing may have been read from it before.

    Attributes:
        name: What to call the stream in messages, such as a path or `stdin`.
        n_lines: How many lines have been read.
        invalid: Which of them were not UTF-8.
    """

    def __init__(self, stream: BinaryIO, name: str, *, strict: bool = False) -> None:
        """Take over a stream.

        Args:
            stream: Standard input's buffer, a file opened in binary mode, or bytes in memory.
            name: See the class.
            strict: Refuse a line that is not UTF-8 instead of repairing it.
        """
        self.name = name
        self.n_lines = 0
        self.invalid = Lines()
        self._strict = strict
        self._stream = stream
        # A GzipFile has a file descriptor too, but what comes out of that one is still compressed.
        is_plain = isinstance(stream, io.BufferedReader | io.FileIO)
        self._fd = stream.fileno() if is_plain else None

    def windows(self, size: int) -> Iterator[list[str]]:
        """Yield lists of 1 to `size` lines, in order, until the stream ends.

        A window is handed over when it is full or when no further line is at hand: its first line
        waits 20 ms for others, and longer only while data keeps coming without a pause. So a
        terminal or a co-process gets its answer at once, and a file is read in full windows.

        Raises:
            UserError: The stream cannot be read or is no text, or `strict` and a line is not UTF-8.
        """
        waiting: list[str] = []
        pending: list[bytes] = []
        deadline = 0.0
        while block := self._read():
            if not self.n_lines and len(pending) < _HEAD:
                refuse_binary(self.name, b"".join([*pending, block]))
            if not waiting:
                deadline = time.monotonic() + _GRACE
            chunk = _complete(pending, block)
            if chunk is not None:
                waiting += self._decode(chunk)
            n_full = len(waiting) - len(waiting) % size
            for start in range(0, n_full, size):
                yield waiting[start : start + size]
            del waiting[:n_full]
            if waiting and not self._has_more(deadline - time.monotonic()):
                yield waiting
                waiting = []
        rest = b"".join(pending)
        if _is_line(rest, self.n_lines):
            waiting += self._decode(rest)
        if waiting:
            yield waiting

    def _read(self) -> bytes:
        """The next bytes, as soon as there are any; none at the end."""
        try:
            if self._fd is None:
                return self._stream.read(_PIPE_BLOCK)
            ready(self._fd, select.POLLIN)  # some parents leave standard input non-blocking
            return os.read(self._fd, _PIPE_BLOCK)
        except BROKEN as error:
            raise UserError(f"{self.name}: cannot be read ({_reason(error)})") from error

    def _has_more(self, seconds: float) -> bool:
        """Whether a read will not block, given `seconds` to wait; true at the end as well."""
        if self._fd is None:
            return True
        return ready(self._fd, select.POLLIN, max(0.0, seconds))

    def _decode(self, chunk: bytes) -> list[str]:
        try:
            lines = _decode(chunk, self.n_lines, self.name)
        except UserError:
            if self._strict:
                raise
            lines = _repair(chunk, self.n_lines)
            for number, line in enumerate(chunk.split(b"\n"), self.n_lines + 1):
                if not _is_utf8(line):
                    self.invalid.add(number)
        self.n_lines += len(lines)
        return lines


class LineWriter:
    """Writes one line per text, whatever the text contains.

    Attributes:
        n_lines: How many lines were written.
    """

    def __init__(self, stream: BinaryIO) -> None:
        """Write to `stream`, a buffered binary one such as `sys.stdout.buffer`."""
        self.n_lines = 0
        self._stream = stream

    def write(self, line: str) -> None:
        """Write a text as one line: LF and CR inside become spaces, lone surrogates U+FFFD."""
        line = line.replace("\n", " ").replace("\r", " ")
        try:
            data = line.encode()
        except UnicodeEncodeError:
            data = _SURROGATES.sub("\ufffd", line).encode()
        self._stream.write(data + b"\n")
        self.n_lines += 1

    def flush(self) -> None:
        """Pass on what the stream still holds back."""
        self._stream.flush()


def ready(descriptor: int, event: int, seconds: float | None = None) -> bool:
    """Wait until a descriptor, of any number, can be read from or written to without blocking.

    Args:
        descriptor: Of an open file, pipe or terminal.
        event: `select.POLLIN` or `select.POLLOUT`.
        seconds: How long to wait at most; None for ever.

    Returns:
        Whether it can; true as well at the end and where there will be an error.
    """
    if seconds is None:
        while not ready(descriptor, event, _SLICE):
            pass  # Python looks for signals here: those that another thread is given wake nobody
        return True
    if descriptor >= _FD_SETSIZE:
        poll = select.poll()
        poll.register(descriptor, event)
        return bool(poll.poll(1000 * seconds))
    # Where it can, the older call, as poll() knows no terminals on macOS.
    reads, writes = ([descriptor], []) if event == select.POLLIN else ([], [descriptor])
    return any(select.select(reads, writes, [], seconds))


def _line_lists(blocks: Iterable[bytes], name: str) -> Iterator[list[str]]:
    """Decode blocks of any size, strictly; each list holds the lines that a block completed."""
    n_lines = 0
    pending: list[bytes] = []
    for block in blocks:
        chunk = _complete(pending, block)
        if chunk is not None:
            lines = _decode(chunk, n_lines, name)
            n_lines += len(lines)
            yield lines
    rest = b"".join(pending)
    if _is_line(rest, n_lines):
        yield _decode(rest, n_lines, name)


def _complete(pending: list[bytes], block: bytes) -> bytes | None:
    r"""Append a block to the unfinished line in `pending`; cut off and return the complete lines.

    Their last LF is not returned, so that splitting at LF gives exactly the lines: b"" is one empty
    line, b"\n" two. None means that no line was completed. Linear time also for one endless line.
    """
    head, lf, tail = block.rpartition(b"\n")
    if not lf:
        pending.append(tail)
        return None
    chunk = b"".join([*pending, head])
    pending[:] = [tail]
    return chunk


def _is_line(rest: bytes, n_before: int) -> bool:
    """Whether what follows the last LF is a line; a byte order mark alone is an empty file."""
    return rest != b"" and (n_before > 0 or rest != _BOM)


def _line_bytes(chunk: bytes, n_before: int) -> bytes:
    """Drop the CR before each LF, and the byte order mark at the very start."""
    if n_before == 0:
        chunk = chunk.removeprefix(_BOM)
    return chunk.replace(b"\r\n", b"\n").removesuffix(b"\r")


def _decode(chunk: bytes, n_before: int, name: str) -> list[str]:
    """Decode whole lines at one stroke; only if that fails, look for the line at fault.

    Args:
        chunk: Lines, joined by LF.
        n_before: How many lines came before them.
        name: The file, for the message.
    """
    data = _line_bytes(chunk, n_before)
    try:
        return data.decode().split("\n")
    except UnicodeDecodeError as error:
        number = n_before + data.count(b"\n", 0, error.start) + 1
        line_start = data.rfind(b"\n", 0, error.start) + 1
        column = len(data[line_start : error.start].decode()) + 1
        raise UserError(
            f"{name}: line {number}: not UTF-8 "
            f"(byte 0x{data[error.start]:02x} at column {column}); "
            "convert the file to UTF-8 or remove the line"
        ) from error


def _repair(chunk: bytes, n_before: int) -> list[str]:
    return _line_bytes(chunk, n_before).decode(errors="replace").split("\n")


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _blocks(path: Path) -> Iterator[bytes]:
    """Read and unpack a file."""
    try:
        with path.open("rb") as file:
            yield from unpacked(path, file)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; check the path") from error
    except BROKEN as error:
        raise UserError(f"{path}: cannot be read ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    """The system's own words, without the path that our messages start with."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
