"""Files that are complete or absent: atomic publishing, strict reading, one writer at a time.

What is published appears under its final name whole or not at all, even if the power fails: it is
written beside its place, flushed to the disk, and renamed. What a killed writer left there, the next
one of the same name removes. A published folder lists its files with size and SHA-256 in
`manifest.json`, and is never changed afterwards. What is read is not trusted: only regular files of
the expected names and bounded sizes, checked against the manifest.

What the files mean is known in `run.py`, `state.py` and `checkpoint.py` alone.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizer.errors import UserError

MANIFEST = "manifest.json"
FORMAT = 1  # of manifests and everything they list; a newer one is refused
_TRIES = 100  # to lock a file that others make and remove
_SMALL = 1 << 24  # bytes of the largest JSON file that is read
_UNFINISHED = re.compile(r"\.tmp-([1-9][0-9]*)-([0-9a-f]{8})-[0-9a-f]{8}")


def publish_folder(folder: Path, files: Mapping[str, bytes], *, replace: bool = False) -> None:
    """Write a folder that did not exist, with its manifest.

    Args:
        folder: Its final name; must be new.
        files: Relative names (at most one folder deep) and contents.
        replace: Remove what has that name, once the new folder has it.

    Raises:
        UserError: When it cannot be written; nothing is left then.
    """
    with temporary_folder(folder) as new:
        for name, content in files.items():
            (new / name).parent.mkdir(exist_ok=True)
            write(new / name, content)
        write(new / MANIFEST, manifest(files))
        _settle(new, folder, replace=replace)


def replace_folder(new: Path, folder: Path) -> None:
    """Put a folder in the place of another one, which is removed then, or of none.

    Args:
        new: On the same disk; its files are flushed, as `temporary_folder` asks for.
        folder: Its final name.
    """
    _settle(new, folder, replace=True)


def _settle(new: Path, folder: Path, *, replace: bool) -> None:
    """Give a folder its final name, so that no failing power can take name or content away."""
    for inner in (new, *(path for path in new.rglob("*") if path.is_dir())):
        _sync_folder(inner)
    folder = _behind_link(folder)
    old = _set_aside(folder) if replace else None
    new.rename(folder)
    _sync_folder(folder.parent)
    if old is not None:
        shutil.rmtree(old)


def _behind_link(folder: Path) -> Path:
    """The folder that a link leads to, so that it is replaced and not the link."""
    return Path(os.path.realpath(folder)) if folder.is_symlink() else folder


def _set_aside(folder: Path) -> Path | None:
    """Take a folder's name away from it; returns the one that it has now, None if there is none."""
    if not folder.exists():
        return None
    aside = unfinished(folder)
    folder.rename(aside)
    return aside


def manifest(files: Mapping[str, bytes]) -> bytes:
    """The manifest of these files."""
    entries = {
        name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in sorted(files.items())
    }
    return write_json({"format": FORMAT, "files": entries})


def publish_file(path: Path, content: bytes) -> None:
    """Replace a file at once; readers see the old content or the new one.

    Raises:
        UserError: When it cannot be written; the old content is there still.
    """
    sweep(path.parent, path.name)
    new = unfinished(path)
    with _explained(path):
        try:
            write(new, content)
            new.replace(path)
        except BaseException:
            new.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def append(path: Path, content: bytes) -> None:
    """Add to a file that need not be whole, such as a log.

    Raises:
        UserError: When it cannot be written.
    """
    with _explained(path), path.open("ab") as file:
        file.write(content)


@contextlib.contextmanager
def temporary_folder(beside: Path) -> Iterator[Path]:
    """A new folder next to `beside`, removed at the end unless it was renamed.

    Who writes files into it that are to stay flushes them with fsync, before `replace_folder`.

    Raises:
        UserError: When something cannot be written into it.
    """
    beside = _behind_link(beside)
    made = [p for p in (beside.parent, *beside.parent.parents) if not p.exists()]
    sweep(beside.parent, beside.name)
    new = unfinished(beside)
    with _explained(beside):
        try:
            _make_folder(beside.parent)
            new.mkdir()
            yield new
        finally:
            if new.exists():
                shutil.rmtree(new)
            for parent in made:  # deepest first; those that are in use now stay
                with contextlib.suppress(OSError):
                    parent.rmdir()


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn the refusals of the operating system into errors for the user."""
    try:
        yield
    except OSError as error:
        hint = "; free some space and run the same command again"
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise UserError(
            f"{path}: could not be written ({error.strerror or error}){hint if full else ''}"
        ) from None


def write(path: Path, content: bytes) -> None:
    """Write a file, on the disk when this returns; for folders that are not published yet."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it; what is published in it is not lost with their names."""
    missing = [p for p in (folder, *folder.parents) if not p.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in reversed(missing):
        _sync_folder(made.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_folder(folder: Path) -> None:
    """Remove a folder so that no half of it is ever seen under its name; behind a link it is emptied."""
    with _explained(folder):
        if folder.is_symlink() and folder.is_dir():
            for inner in folder.iterdir():
                is_folder = inner.is_dir() and not inner.is_symlink()
                shutil.rmtree(inner) if is_folder else inner.unlink()
            return
        if (doomed := _set_aside(folder)) is not None:
            shutil.rmtree(doomed)


def unfinished(final: Path) -> Path:
    """A new name beside a file or folder that is being written: of which process, for what."""
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


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Be the only writer of a folder; the lock goes with the process, however it ends.

    Raises:
        UserError: When another process holds it, naming that process.
    """
    path = folder / "lock"
    descriptor, is_new = _lock(path)
    try:
        with _explained(path):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        if is_new and [p.name for p in folder.iterdir()] == ["lock"]:  # nothing came of it
            with contextlib.suppress(OSError):
                path.unlink()
                folder.rmdir()
        os.close(descriptor)


def _lock(path: Path) -> tuple[int, bool]:
    """Lock a file, which then is the one that everybody finds under this name.

    Returns:
        Its descriptor, and whether its folder was made for it.
    """
    if path.is_symlink():
        raise UserError(
            f"{path}: cannot be locked, as it is a link; remove it, or choose another -m"
        )
    for _ in range(_TRIES):
        with _explained(path):
            is_new = not path.parent.exists()
            try:
                _make_folder(path.parent)
                descriptor = os.open(
                    path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666
                )
            except FileNotFoundError:  # a holder has just removed the folder
                continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 20).decode(errors="replace").strip()
            os.close(descriptor)
            raise UserError(
                f"{path.parent}: in use by another tfm (process {holder}); "
                "wait for it or choose another -m"
            ) from None
        if os.pread(descriptor, _SMALL, 0).strip(b"0123456789\0"):
            os.close(descriptor)
            raise UserError(
                f"{path}: is not of tfm's making and would be lost; move it, or give another -m"
            )
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(descriptor).st_ino:
                return descriptor, is_new
        os.close(descriptor)  # its last holder has removed it between our opening and locking it
    raise UserError(f"{path}: cannot be locked; choose another -m")


def read_file(path: Path, limit: int = _SMALL) -> bytes:
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


def read_published(folder: Path, limits: Mapping[str, int]) -> dict[str, bytes]:
    """Read files of a published folder, checked against its manifest.

    Args:
        folder: As `publish_folder` wrote it.
        limits: The files wanted, and how many bytes each may have.

    Raises:
        UserError: When a file is missing, damaged or larger than allowed, naming it.
    """
    where = folder / MANIFEST
    entries = read_json(read_file(where), str(where))
    if not isinstance(entries, dict):
        raise UserError(f"{where}: is not a manifest")
    check_format(entries, str(where))
    listed = entries.get("files")
    contents = {}
    for name, limit in limits.items():
        entry = listed.get(name) if isinstance(listed, dict) else None
        if not isinstance(entry, dict):
            raise UserError(f"{where}: does not list {name}")
        content = read_file(folder / name, limit)
        size, digest = len(content), hashlib.sha256(content).hexdigest()
        if (size, digest) != (entry.get("size"), entry.get("sha256")):
            what = "size" if size != entry.get("size") else "sha256"
            raise UserError(f"{folder / name}: damaged ({what} mismatch with {MANIFEST})")
        contents[name] = content
    return contents


def check_format(document: Mapping[str, Any], where: str) -> None:
    """Refuse documents of a format that this version does not know.

    Raises:
        UserError: Saying whether it is missing, broken or newer.
    """
    version = document.get("format")
    if type(version) is not int or version < 1:
        raise UserError(f"{where}: 'format' is missing or no number")
    if version > FORMAT:
        raise UserError(
            f"{where}: format {version} was made by a newer tfm; this one reads up to {FORMAT}"
        )


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
