"""Aligned text files: line n of one is the translation of line n of the other.

    n_pairs = check_files(src_files, tgt_files)
    for src, tgt in read_pairs(src_files, tgt_files): ...

Several pairs of files are several corpora, one after the other. What becomes of the text is in `corpus.py`.
"""

import functools
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tokenizer.errors import UserError
from tokenizer.lines import count_lines, read_lines

# Path, inode, size, and times of change of the text and of the file: other text, other identity.
Identity = tuple[str, int, int, int, int]


def read_pairs(src: Sequence[Path], tgt: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """Yield the aligned lines of several corpora, one corpus after the other.

    Raises:
        UserError: When two files differ in their number of lines, naming both counts.
    """
    for src_file, tgt_file in zip(src, tgt, strict=True):
        pairs = itertools.zip_longest(read_lines(src_file), read_lines(tgt_file))
        for number, (s, t) in enumerate(pairs, start=1):
            if s is None or t is None:
                rest = 1 + sum(1 for _ in pairs)
                n_src = number - 1 + (rest if s is not None else 0)
                n_tgt = number - 1 + (rest if t is not None else 0)
                raise UserError(_unequal(src_file, n_src, tgt_file, n_tgt))
            yield s, t


def check_files(
    src: Sequence[Path],
    tgt: Sequence[Path],
    known: Mapping[Identity, int] | None = None,
    options: tuple[str, str] = ("--src", "--tgt"),
) -> int:
    """Refuse what can be refused at once: other numbers of files, or of lines.

    Args:
        src: Source files.
        tgt: Target files.
        known: Lines of files that were counted before; they are not read again.
        options: That named the files, for messages.

    Returns:
        Pairs of lines.

    Raises:
        UserError: Naming the files and the counts; or a file that cannot be read, or could only be read
            once, as a pipe.
    """
    if len(src) != len(tgt) or not src:
        raise UserError(
            f"{options[0]} is given {len(src)} times and {options[1]} {len(tgt)} times; "
            "give them in pairs"
        )
    n_pairs = 0
    for src_file, tgt_file in zip(src, tgt, strict=True):
        n_src, n_tgt = (
            (known or {}).get(identity(path)) or n_lines(path) for path in (src_file, tgt_file)
        )
        if n_src != n_tgt:
            raise UserError(_unequal(src_file, n_src, tgt_file, n_tgt))
        n_pairs += n_src
    return n_pairs


def identity(path: Path) -> Identity:
    """What changes when the text of a file does, without reading it.

    Raises:
        UserError: When there is no such file.
    """
    try:
        info = path.stat()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    name = os.fsencode(os.path.realpath(path)).decode(errors="backslashreplace")
    return name, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns


def n_lines(path: Path) -> int:
    """Lines of a file; see `count_lines` for the errors."""
    return _counted(path, identity(path))


@functools.lru_cache(maxsize=256)
def _counted(path: Path, which: Identity) -> int:
    """Lines of a file; remembered, as a training checks its text before and after it has the lock."""
    return count_lines(path)


def _unequal(src: Path, n_src: int, tgt: Path, n_tgt: int) -> str:
    return (
        f"{src} has {n_src} lines and {tgt} has {n_tgt}; "
        "line n of one must be the translation of line n of the other"
    )
