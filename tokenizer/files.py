"""Single files that are complete or absent, and what is read of others without trusting it.

What is published appears under its final name whole or not at all, even if the power fails: it is
written beside its place, flushed to the disk, and renamed. What a killed writer left there, the next
one of the same name removes. Only regular files of bounded size are read, and strict JSON.

Folders of files, with a manifest, are in `seq2seq/storage.py`.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizer.errors import UserError

SMALL = 1 << 24  # bytes of the largest JSON file that is read
_UNFINISHED = re.compile(r"\.tmp-([1-9][0-9]*)-([0-9a-f]{8})-[0-9a-f]{8}")


def publish_file(path: Path, content: bytes) -> None:
    """Replace a file at once; readers see the old content or the new one.

    Raises:
        UserError: When it cannot be written; the old content is there still.
    """
    sweep(path.parent, path.name)
    new = unfinished(path)
    with explained(path):
        try:
            write(new, content)
            new.replace(path)
        except BaseException:
            new.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def append(path: Path, content: bytes) -> None:
    """Add to a file that need not be whole, such as a log.

    Raises:
        UserError: When it cannot be written.
    """
    with explained(path), path.open("ab") as file:
        file.write(content)


def write(path: Path, content: bytes) -> None:
    """Write a file, on the disk when this returns; for folders that are not published yet."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the refusals of the operating system into errors for the user."""
    try:
        yield
    except OSError as error:
        hint = "; free some space and run the same command again"
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise UserError(
            f"{path}: could not be written ({error.strerror or error}){hint if full else ''}"
        ) from None


def make_folder(folder: Path) -> None:
    """Make a folder and those above it; what is published in it is not lost with their names."""
    missing = [p for p in (folder, *folder.parents) if not p.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in reversed(missing):
        sync_folder(made.parent)


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def unfinished(final: Path) -> Path:
    """A new name beside a file or folder that is being written: of which process, for what.

    Raises:
        UserError: When what is to be written has no name, as `.` and `..`.
    """
    if final.name in ("", ".."):
        raise UserError(f"{final}: is no name of its own; call the folder by its name")
    return final.with_name(f".tmp-{os.getpid()}-{_key(final.name)}-{secrets.token_hex(4)}")


def _key(name: str) -> str:
    """What unfinished files of one final name have in common, on this machine."""
    return hashlib.sha256(os.fsencode(f"{socket.gethostname()}\0{name}")).hexdigest()[:8]


def sweep(folder: Path, name: str | None = None) -> None:
    """Remove what killed writers left in a folder, but nothing that another process is writing still.

    Processes are those of this machine; with `name` None what one of another machine is writing in the
    folder is removed, too.

    Args:
        folder: Where.
        name: Of the one file or folder that they wrote; None for all, which is only for the holder of
            the folder's lock.
    """
    with contextlib.suppress(OSError):
        for litter in list(folder.glob(".tmp-*")):
            told = _UNFINISHED.fullmatch(litter.name)
            is_meant = name is None or (told is not None and told[2] == _key(name))
            if is_meant and not (told is not None and _is_at_work(int(told[1]))):
                with contextlib.suppress(OSError):
                    shutil.rmtree(litter) if litter.is_dir() else litter.unlink()


def _is_at_work(process: int) -> bool:
    """Whether there is another process of this number, which then may be the writer."""
    if process == os.getpid():  # in containers each process may have the number of the last one
        return False
    try:
        os.kill(process, 0)
    except PermissionError:  # it is another user's
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def read_file(path: Path, limit: int = SMALL) -> bytes:
    """Read a whole regular file of at most `limit` bytes.

    Raises:
        UserError: When it is missing, no regular file, larger, or unreadable.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            raise UserError(f"{path}: is not a regular file")
        if info.st_size > limit:
            raise UserError(f"{path}: has {info.st_size} bytes, more than the {limit} it may have")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(info.st_size)  # not more: it would be allocated
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    finally:
        os.close(descriptor)


def write_json(document: Any) -> bytes:
    """Strict JSON, the same bytes for the same content."""
    return (json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def read_json(data: bytes, where: str) -> Any:
    """Read strict JSON: no NaN, no key twice, no surrogates, bounded depth and digits.

    Raises:
        UserError: When it is not that.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) < len(pairs):
            [(key, _)] = Counter(key for key, _ in pairs).most_common(1)
            raise ValueError(f"key {key!r} twice")
        return table

    def no_constant(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    try:
        document = json.loads(data.decode(), object_pairs_hook=once, parse_constant=no_constant)
        # A lone surrogate has no bytes, and 1e999 is infinite.
        json.dumps(document, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON ({error})") from None
    return document
