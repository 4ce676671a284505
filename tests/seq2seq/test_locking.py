"""One writer of a folder at a time."""

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from seq2seq.storage import locked
from tokenizer.errors import UserError

HOLD = """
import sys
from pathlib import Path
from seq2seq.storage import locked

with locked(Path(sys.argv[1])):
    sys.stdout.write("held\\n")
    sys.stdout.flush()
    sys.stdin.read()
"""


def test_the_lock_is_exclusive_names_its_holder_and_ends_with_it(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout
    assert holder.stdout.readline() == b"held\n"
    try:
        with pytest.raises(UserError, match=rf"in use by another tfm \(process {holder.pid}\)"):
            locked(tmp_path).__enter__()
    finally:
        holder.kill()
        holder.communicate()
    with locked(tmp_path):
        pass


def test_a_lock_leaves_no_new_folder_when_nothing_came_of_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="stop"), locked(tmp_path / "new"):
        raise UserError("stop")
    assert list(tmp_path.iterdir()) == []


def test_a_lock_leaves_what_was_made_under_it(tmp_path: Path) -> None:
    with locked(tmp_path / "new"):
        (tmp_path / "new/file").write_bytes(b"")
    with locked(tmp_path / "new"):
        pass
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "lock", "new"]


def test_a_folder_that_cannot_be_locked_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="file"), locked(tmp_path / "file"):
        pass


def test_a_lock_on_a_full_disk_is_an_error_for_the_user(tmp_path: Path) -> None:
    code = """
import resource, sys
from pathlib import Path
from seq2seq.storage import locked
from tokenizer.errors import UserError
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
try:
    with locked(Path(sys.argv[1]) / "run"):
        pass
except UserError as error:
    sys.exit(0 if "free some space" in str(error) else 1)
sys.exit(2)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == 0
    assert not any(tmp_path.iterdir())


def test_a_lock_is_one_even_if_its_folder_goes_while_it_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A holder that leaves an empty folder removes it; whoever has opened the file already starts over."""
    lock, run = fcntl.flock, tmp_path / "run"
    removals = [run]

    def lock_too_late(descriptor: int, operation: int) -> None:
        while removals:
            shutil.rmtree(removals.pop())
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", lock_too_late)
    with locked(run), pytest.raises(UserError, match="in use by another tfm"), locked(run):
        pass
    assert not run.exists()


def test_a_lock_that_leads_nowhere_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "missing" / "lock")
    with pytest.raises(UserError, match="lock: cannot be locked"), locked(tmp_path):
        pass


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_lock_that_is_no_file_is_refused_by_name(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    make(tmp_path / "lock")
    with pytest.raises(UserError, match="lock: "), locked(tmp_path):
        pass


def test_a_lock_that_is_a_link_is_refused_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/lock").symlink_to("../victim")
    with pytest.raises(UserError, match="run/lock"), locked(tmp_path / "run"):
        pass
    assert (tmp_path / "victim").read_bytes() == b"precious"


def test_a_file_of_another_is_no_lock_and_stays(tmp_path: Path) -> None:
    (tmp_path / "lock").write_bytes(b"precious")
    with pytest.raises(UserError, match="lock: is not of tfm's making"), locked(tmp_path):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["lock"]
    (tmp_path / "lock").write_bytes(b"123")
    with locked(tmp_path):
        assert (tmp_path / "lock").read_bytes() == str(os.getpid()).encode()
