"""The three standard streams as tfm uses them, and the files that may take their place.

Standard output carries data and nothing else; a write that fails is something the user must know.
Standard error carries everything for people and never fails: a training must not die because a
terminal was closed. Text for people is escaped, since it may quote files from anywhere.

What is said of a long computation is in `plain.py`, and the displays of a terminal in `console.py`.
"""

import contextlib
import io
import os
import re
import select
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from tokenizer.errors import UserError
from tokenizer.files import sweep, unfinished
from tokenizer.lines import LineReader, LineWriter, ready
from tokenizer.unpacking import Unpacked, is_packed

STDOUT = ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")  # opened anew, a file would be cut
# What could move the cursor, break a line, or turn the direction of writing around.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def escape(text: str) -> str:
    r"""Make text from anywhere safe to show on one line of a terminal.

    >>> escape("red: \x1b[31m\n")
    'red: \\x1b[31m\\n'
    """
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def say(message: str) -> None:
    """Tell people one line, on standard error."""
    sys.stderr.write(f"{escape(message)}\n")


def warn(message: str) -> None:
    """Tell people what they should look at, on standard error."""
    say(f"tfm: warning: {message}")


def complain(message: str) -> None:
    """Tell people why nothing more happens, on standard error."""
    say(f"tfm: error: {message}")


class _Output(io.FileIO):
    """A file whose failures the user can fix; after the first it swallows what is left over."""

    def __init__(self, file: int | Path, title: str) -> None:
        super().__init__(file, "wb", closefd=not isinstance(file, int))
        self._title = title
        self._failed = False

    def write(self, data: Any) -> int:
        if self._failed:
            return len(data)
        try:
            while (n := cast(int | None, super().write(data))) is None:
                ready(self.fileno(), select.POLLOUT)  # some parents leave our output non-blocking
            return n
        except BrokenPipeError:
            self._failed = True
            raise
        except OSError as error:
            self._failed = True
            raise UserError(f"{self._title}: write failed: {error.strerror}") from None


class _Unfailing(io.FileIO):
    """Standard error: what cannot be written is dropped."""

    def write(self, data: Any) -> int:
        with contextlib.suppress(OSError):
            super().write(data)
        return len(data)


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """Let `sys.stdout` and `sys.stderr` behave as described above, UTF-8 whatever the locale."""
    # A closed descriptor would be given to the next file that is opened, and data written into it.
    # Reading from this "standard input" fails, and so does writing to this "standard output".
    for descriptor, flags in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_WRONLY)):
        _occupy(descriptor, flags)
    before = sys.stdout, sys.stderr
    out = io.BufferedWriter(_Output(1, "standard output"))
    sys.stdout = io.TextIOWrapper(out, "utf-8", "backslashreplace", newline="\n")
    err = io.BufferedWriter(_Unfailing(2, "wb", closefd=False))
    sys.stderr = io.TextIOWrapper(err, "utf-8", "backslashreplace", "\n", line_buffering=True)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def _occupy(descriptor: int, flags: int) -> None:
    """Put the null device where a standard stream is closed."""
    try:
        os.fstat(descriptor)
    except OSError:
        null = os.open(os.devnull, flags)
        if null != descriptor:
            os.dup2(null, descriptor)
            os.close(null)


@contextlib.contextmanager
def lines_from(file: Path | None, *, strict: bool = False) -> Iterator[LineReader]:
    """Read lines from a file, or from standard input for None or `-`.

    Args:
        file: Plain text, a pipe too, or compressed if the name ends in .gz, .xz, .bz2 or .zst.
        strict: Refuse a line that is not UTF-8 instead of repairing it.

    Raises:
        UserError: When the file cannot be opened.
    """
    if file is None or str(file) == "-":
        if os.isatty(0) and os.isatty(2):
            say("(type a line and press Enter; Ctrl-D ends)")
        yield LineReader(cast(BinaryIO, io.FileIO(0, closefd=False)), "stdin", strict=strict)
        return
    try:
        stream = Unpacked(file) if is_packed(file) else io.FileIO(file)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    with stream:
        yield LineReader(cast(BinaryIO, stream), str(file), strict=strict)


@contextlib.contextmanager
def lines_to(file: Path | None) -> Iterator[LineWriter]:
    """Write lines to standard output for None or `-`, else to a file that is complete or absent.

    Raises:
        UserError: When it cannot be written; a file that was there before is there still.
    """
    if file is None or str(file) in STDOUT:
        yield LineWriter(cast(BinaryIO, sys.stdout.buffer))
        return
    with _published(file) as stream:
        yield LineWriter(stream)


def write_file(file: Path, content: bytes) -> None:
    """Write a file that is complete or absent.

    Raises:
        UserError: As `lines_to`.
    """
    with _published(file) as stream:
        stream.write(content)


@contextlib.contextmanager
def _published(file: Path) -> Iterator[BinaryIO]:
    """A file to write that gets its name at the end."""
    is_special = file.exists() and not file.is_file()  # a pipe or a device is written to directly
    final = file if is_special else Path(os.path.realpath(file))
    part = final if is_special else unfinished(final)
    if not is_special:
        sweep(final.parent, final.name)
    try:  # from before there is anything to remove
        try:
            mode = stat.S_IMODE(final.stat().st_mode) if final.exists() and not is_special else None
            raw = _Output(part, str(file))
            if mode is not None:
                os.fchmod(raw.fileno(), mode)
        except OSError as error:
            raise UserError(f"{file}: could not be written ({error.strerror})") from None
        with io.BufferedWriter(raw) as stream:
            yield cast(BinaryIO, stream)
            stream.flush()
            if not is_special:
                os.fsync(stream.fileno())
                part.replace(final)
    finally:
        if not is_special:
            with contextlib.suppress(OSError):  # none was made
                part.unlink()
