"""A disk that fails when it is told to, under code that knows nothing of it.

    disk = Disk(root, strike_at=17, how="kill", witness=Path("said"))
    disk.install()
    main(["train", ...])            # at its 17th operation below `root` the process is gone

Each operation below `root` that could change it (open for writing, write, truncate, fsync, rename,
unlink, mkdir, rmdir) is counted, by functions put in the place of those of `os` and `open`. At the
given one, something happens:

    kill      the process ends by SIGKILL, before the operation
    tear      it ends in the middle: half of a write has reached the file, anything else is done
    EIO …     this one operation is refused, as by a bad cable; so is none after it
    ENOSPC    the disk is full: from here on, whatever needs space is refused
    EROFS     the disk cannot be written any more: from here on, all is refused
    behind    the power fails; of what was not flushed with fsync nothing has reached the disk
    ahead     the power fails; names have reached the disk, data that were not flushed have not
"""

# What is here lies below `Path`.
# ruff: noqa: PTH109, PTH110, PTH112, PTH115, PTH116, PTH118

import builtins
import errno
import io
import json
import os
import signal
from pathlib import Path

NEEDS_SPACE = {"open", "write", "mkdir", "fsync"}

_open, _os_open, _fsync = io.open, os.open, os.fsync
_rename, _replace, _unlink, _mkdir, _rmdir = os.rename, os.replace, os.unlink, os.mkdir, os.rmdir
_pwrite, _ftruncate = os.pwrite, os.ftruncate


class Disk:
    """What lies below a folder, and the operation at which it strikes.

    Attributes:
        n_operations: Operations seen so far.
    """

    def __init__(self, root, strike_at, how, witness):
        """Watch a folder.

        Args:
            root: The folder; what is in it now is safely on the disk.
            strike_at: Number of the operation at which to strike, from 1.
            how: See above.
            witness: A file that is made at that moment, elsewhere: what `latest` and `best` named
                then, even if the power fails.
        """
        self.root = str(Path(root).resolve())
        self.strike_at = strike_at
        self.how = how
        self.witness = witness
        self.n_operations = 0
        self.entries = {}  # inode of a folder → names and inodes in it that are on the disk
        self.data = {}  # inode of a file → its bytes that are on the disk
        self.held = []  # what was made, kept open so that no inode gets the number of another
        for folder, _, names in os.walk(self.root):
            self._hold(folder)
            self._flush_folder(folder)
            for name in names:
                self._hold(os.path.join(folder, name))
                self._flush_file(os.path.join(folder, name))

    def _flush_folder(self, folder):
        self.entries[os.stat(folder).st_ino] = {e.name: e.inode() for e in os.scandir(folder)}

    def _flush_file(self, path):
        with _open(path, "rb") as file:
            self.data[os.stat(path).st_ino] = file.read()

    def _hold(self, path):
        if self.how in ("behind", "ahead"):
            self.held.append(_os_open(path, os.O_RDONLY))

    def _kinds(self):
        """Which inodes are folders, as of now; those of removed ones are remembered."""
        return set(self.entries) | {os.stat(f).st_ino for f, _, _ in os.walk(self.root)}

    def _durable(self, inode, folders, path=""):
        """What is below a folder after the power failed: relative path → bytes, or None: a folder."""
        tree = {}
        for name, child in self.entries.get(inode, {}).items():
            inner = os.path.join(path, name)
            if child in folders:
                tree[inner] = None
                tree |= self._durable(child, folders, inner)
            else:
                tree[inner] = self.data.get(child, b"")
        return tree

    def _fail_power(self):
        """Leave below `root` only what has reached the disk."""
        if self.how == "ahead":
            for folder, _, _ in os.walk(self.root):
                self._flush_folder(folder)
        tree = self._durable(os.stat(self.root).st_ino, self._kinds())
        for folder, _, names in os.walk(self.root, topdown=False):
            for name in names:
                _unlink(os.path.join(folder, name))
            if folder != self.root:
                _rmdir(folder)
        for path, content in tree.items():
            if content is None:
                _mkdir(os.path.join(self.root, path))
            else:
                with _open(os.path.join(self.root, path), "wb") as file:
                    file.write(content)

    def _is_ours(self, path):
        return path == self.root or path.startswith(self.root + os.sep)

    def _at(self, kind, path):
        """An operation is about to happen: whether to die in the middle of it.

        Raises:
            OSError: When it is refused.
        """
        if not self._is_ours(path):
            return False
        self.n_operations += 1
        n, at = self.n_operations, self.strike_at
        if n < at:
            return False
        if n == at:
            # A name is a promise once its folder is flushed, not while it waits for that.
            self._bear_witness(unflushed=path if kind == "fsync" else None)
        match self.how:
            case "ENOSPC" if kind in NEEDS_SPACE:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
            case "EROFS":
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
            case "EIO" if n == at:
                raise OSError(errno.EIO, os.strerror(errno.EIO), path)
            case "tear":
                return n == at
            case "kill" | "behind" | "ahead":
                self._die()
        return False

    def _bear_witness(self, unflushed):
        said = {}
        for path in Path(self.root).glob("*/*"):
            if path.name in ("best", "latest") and str(path.parent) != unflushed:
                with _open(path, "rb") as file:
                    said[path.name] = file.read().decode().strip()
        with _open(self.witness, "wb") as file:
            file.write(json.dumps(said).encode())

    def _die(self):
        if self.how in ("behind", "ahead"):
            self._fail_power()
        os.kill(os.getpid(), signal.SIGKILL)

    def install(self):
        """From now on, be the disk of this process."""
        io.open = builtins.open = self.open
        os.open = self.os_open
        os.fsync = self._instead(_fsync, "fsync", self._flush)
        os.rename = self._instead(_rename, "rename")
        os.replace = self._instead(_replace, "rename")
        os.unlink = os.remove = self._instead(_unlink, "unlink")
        os.mkdir = self._instead(_mkdir, "mkdir", self._made)
        os.rmdir = self._instead(_rmdir, "rmdir")
        os.pwrite = self._instead(_pwrite, "write")
        os.ftruncate = self._instead(_ftruncate, "truncate")

    def _instead(self, function, kind, afterwards=None):
        """A function that does what another one does, on this disk."""

        def call(place, *rest, dir_fd=None, **named):
            path = _path_of(place) if isinstance(place, int) else _full(place, dir_fd)
            is_torn = self._at(kind, path)
            named |= {} if dir_fd is None else {"dir_fd": dir_fd}
            try:
                result = function(place, *rest, **named)
            finally:
                if is_torn:
                    self._die()
            if afterwards is not None and self._is_ours(path):
                afterwards(path)
            return result

        return call

    def _flush(self, path):
        self._flush_folder(path) if os.path.isdir(path) else self._flush_file(path)

    def _made(self, path):
        self._hold(path)
        self.entries[os.stat(path).st_ino] = {}

    def os_open(self, place, flags, mode=0o777, *, dir_fd=None):
        """As `os.open`."""
        path = _full(place, dir_fd)
        is_writing = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        is_torn = is_writing and self._at("open", path)
        is_new = self._is_ours(path) and not os.path.lexists(path)
        try:
            descriptor = _os_open(place, flags, mode, dir_fd=dir_fd)
        finally:
            if is_torn:
                self._die()
        if is_new:
            self._hold(path)
        return descriptor

    def open(self, file, mode="r", *rest, **named):
        """As the built-in `open`."""
        is_reading = isinstance(file, int) or not set(mode) & set("wax+")
        if is_reading or not self._is_ours(path := _full(file)):
            return _open(file, mode, *rest, **named)
        assert "b" in mode, "files are written as bytes"
        is_torn = self._at("open", path)
        is_new = not os.path.exists(path)
        try:
            raw = _File(file, mode.replace("b", ""))
        finally:
            if is_torn:
                self._die()
        raw.disk = self
        if is_new:
            self._hold(path)
        return io.BufferedWriter(raw)


class _File(io.FileIO):
    """A file on a disk that counts what is written."""

    disk = None

    def write(self, data):
        if self.disk._at("write", _path_of(self.fileno())):
            super().write(memoryview(data)[: len(data) // 2])
            self.disk._die()
        return super().write(data)


def _full(path, folder=None):
    """The path that a call means."""
    base = os.getcwd() if folder is None else _path_of(folder)
    return os.path.normpath(os.path.join(base, os.fsdecode(path)))


def _path_of(descriptor):
    return os.readlink(f"/proc/self/fd/{descriptor}")
