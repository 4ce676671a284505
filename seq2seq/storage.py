"""Folders that are complete or absent, and never changed: a manifest each, and one writer at a time.

A published folder lists its files with size and SHA-256 in `manifest.json`. It appears under its final
name whole or not at all, even if the power fails, as single files do (`tokenizer/files.py`). What is
read is not trusted: only files of the expected names and bounded sizes, checked against the manifest.

What the files mean is known in `run.py`, `state.py` and `checkpoint.py` alone.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizer.errors import UserError
from tokenizer.files import (
    SMALL,
    explained,
    make_folder,
    read_file,
    read_json,
    sweep,
    sync_folder,
    unfinished,
    write,
    write_json,
)

MANIFEST = "manifest.json"
FORMAT = 1  # of manifests and everything they list; a newer one is refused
# Opening a pipe in its place must not wait for who writes into it.
_LOCK_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_TRIES = 100  # to lock a file that others make and remove


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
        sync_folder(inner)
    folder = _behind_link(folder)
    old = _set_aside(folder) if replace else None
    new.rename(folder)
    sync_folder(folder.parent)
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
    with explained(beside):
        try:
            make_folder(beside.parent)
            new.mkdir()
            yield new
        finally:
            if new.exists():
                shutil.rmtree(new)
            for parent in made:  # deepest first; those that are in use now stay
                with contextlib.suppress(OSError):
                    parent.rmdir()


def remove_folder(folder: Path) -> None:
    """Remove a folder so that no half of it is ever seen under its name; behind a link it is emptied."""
    with explained(folder):
        if folder.is_symlink() and folder.is_dir():
            for inner in folder.iterdir():
                is_folder = inner.is_dir() and not inner.is_symlink()
                shutil.rmtree(inner) if is_folder else inner.unlink()
            return
        if (doomed := _set_aside(folder)) is not None:
            shutil.rmtree(doomed)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Be the only writer of a folder; the lock goes with the process, however it ends.

    Raises:
        UserError: When another process holds it, naming that process.
    """
    path = folder / "lock"
    descriptor, is_new = _lock(path)
    try:
        with explained(path):
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
        with explained(path):
            is_new = not path.parent.exists()
            try:
                make_folder(path.parent)
                descriptor = os.open(path, _LOCK_FLAGS, 0o666)
            except FileNotFoundError:  # a holder has just removed the folder
                continue
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise UserError(f"{path}: cannot be locked, as it is no file; remove it")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 20).decode(errors="replace").strip()
            os.close(descriptor)
            raise UserError(
                f"{path.parent}: in use by another tfm (process {holder}); "
                "wait for it or choose another -m"
            ) from None
        if os.pread(descriptor, SMALL, 0).strip(b"0123456789\0"):
            os.close(descriptor)
            raise UserError(
                f"{path}: is not of tfm's making and would be lost; move it, or give another -m"
            )
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(descriptor).st_ino:
                return descriptor, is_new
        os.close(descriptor)  # its last holder has removed it between our opening and locking it
    raise UserError(f"{path}: cannot be locked; choose another -m")


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
