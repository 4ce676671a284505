import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from seq2seq.storage import (
    MANIFEST,
    check_format,
    manifest,
    publish_folder,
    read_published,
    remove_folder,
    temporary_folder,
)
from tokenizer.errors import UserError
from tokenizer.files import (
    publish_file,
    read_file,
    sweep,
    unfinished,
)

FILES = {"a.bin": bytes(range(256)), "inner/b.txt": b"text\n", "empty": b""}
LIMITS = dict.fromkeys(FILES, 1000)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    publish_folder(tmp_path / "folder", FILES)
    return tmp_path / "folder"


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


# Publishing


def test_a_published_folder_reads_back_and_nothing_else_is_left(published: Path) -> None:
    assert read_published(published, LIMITS) == FILES
    assert names(published.parent) == {"folder"} | {
        f"folder/{name}" for name in (*FILES, "inner", MANIFEST)
    }


def test_a_folder_is_never_published_over_another(published: Path) -> None:
    with pytest.raises(UserError, match=r"folder: could not be written"):
        publish_folder(published, {"a.bin": b"new"})
    assert read_published(published, LIMITS) == FILES
    assert names(published.parent) == {"folder"} | {
        f"folder/{name}" for name in (*FILES, "inner", MANIFEST)
    }


def test_files_have_the_mode_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        publish_folder(tmp_path / "folder", FILES)
        publish_file(tmp_path / "file", b"")
    finally:
        os.umask(before)
    for path in (tmp_path / "folder/a.bin", tmp_path / "folder" / MANIFEST, tmp_path / "file"):
        assert path.stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o750


def test_the_manifest_depends_on_content_only() -> None:
    assert manifest(FILES) == manifest(dict(reversed(FILES.items())))


def test_a_folder_in_a_place_where_nothing_can_be_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for publish in (
        lambda: publish_folder(tmp_path / "file/folder", FILES),
        lambda: publish_file(tmp_path / "file/name", b""),
        lambda: publish_file(tmp_path / "missing/name", b""),
    ):
        with pytest.raises(UserError, match=r"(file|missing)/\w+: could not be written"):
            publish()
    assert names(tmp_path) == {"file"}


def test_a_temporary_folder_goes_with_the_parents_made_for_it(tmp_path: Path) -> None:
    with temporary_folder(tmp_path / "a/b/c") as new:
        (new / "file").write_bytes(b"")
    assert names(tmp_path) == set()


def test_a_removed_folder_is_gone(published: Path) -> None:
    remove_folder(published)
    remove_folder(published)
    assert names(published.parent) == set()


def test_sweeping_removes_litter_and_nothing_else(published: Path) -> None:
    (published.parent / ".tmp-1-x").write_bytes(b"")
    publish_folder(published.parent / ".tmp-2-y", FILES)
    before = names(published)
    sweep(published.parent)
    assert names(published.parent) == {"folder"} | {f"folder/{name}" for name in before}


KILLED = """
import os, sys
from pathlib import Path
from seq2seq.storage import temporary_folder
from tokenizer.files import publish_file

def die(*_):
    os.kill(os.getpid(), 9)

folder, what = Path(sys.argv[1]), sys.argv[2]
if what == "folder":
    with temporary_folder(folder / sys.argv[3]) as new:
        (new / "half").write_bytes(b"")
        die()
os.fsync = die
publish_file(folder / sys.argv[3], b"half")
"""


@pytest.mark.parametrize("name", ["out", "a-b-[c]*", "ä" * 127])
@pytest.mark.parametrize("what", ["folder", "file"])
def test_what_a_killed_writer_left_goes_with_the_next(what: str, name: str, tmp_path: Path) -> None:
    for other in (name, "other"):
        subprocess.run([sys.executable, "-c", KILLED, tmp_path, what, other], check=False)
    left = names(tmp_path)
    assert len({path for path in left if "/" not in path}) == 2
    if what == "folder":
        publish_folder(tmp_path / name, {"a": b""})
    else:
        publish_file(tmp_path / name, b"")
    kept = {path for path in names(tmp_path) if path.startswith(".tmp-")}
    of_other = unfinished(tmp_path / "other").name.split("-")[2]
    assert len({path.split("/")[0] for path in kept & left}) == 1
    assert all(f"-{of_other}-" in path for path in kept)
    sweep(tmp_path)
    assert {path for path in names(tmp_path) if "/" not in path} == {name}


FULL = """
import resource, signal, sys
from pathlib import Path
from seq2seq.storage import publish_folder
from tokenizer.files import publish_file
from tokenizer.errors import UserError

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
folder = Path(sys.argv[1])
for publish in (
    lambda: publish_folder(folder / "new/model", {"a": b"a", "big": bytes(5000)}),
    lambda: publish_file(folder / "file", bytes(5000)),
):
    try:
        publish()
    except UserError as error:
        sys.stdout.write(f"{error}\\n")
"""


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    publish_file(tmp_path / "file", b"old")
    run = subprocess.run([sys.executable, "-c", FULL, tmp_path], capture_output=True, check=True)
    lines = run.stdout.decode().split("\n")
    assert lines[0].startswith(f"{tmp_path}/new/model: could not be written (File too large)")
    assert lines[1].startswith(f"{tmp_path}/file: could not be written (File too large); free some")
    assert names(tmp_path) == {"file"}
    assert (tmp_path / "file").read_bytes() == b"old"


# The system says no, or the power fails, at every operation of a save in turn

SAVE = """
import os, sys
from pathlib import Path
from seq2seq.storage import publish_folder, read_published, remove_folder
from tokenizer.files import publish_file, read_file, sweep
from tokenizer.errors import UserError

root, how = Path(sys.argv[1]), sys.argv[2]
EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree", "os.scandir")


def save(step):
    publish_folder(root / f"checkpoints/{step}", {"a": b"%d" % step * 999, "in/b": b"%d" % step})
    publish_file(root / "latest", b"%d" % step)
    remove_folder(root / f"checkpoints/{step - 1}")


def read():
    step = read_file(root / "latest").decode()
    files = read_published(root / "checkpoints" / step, {"a": 9999, "in/b": 9})
    assert files == {"a": step.encode() * 999, "in/b": step.encode()}, files
    return int(step)


def strike_at(number):
    global left
    left = number

    def strike(event, arguments):
        global left
        if event in EVENTS and str(root) in str(arguments):
            left -= 1
            if left == 0 and how == "kill":
                os._exit(9)
            if left == 0:
                raise OSError(28, "No space left on device")

    sys.addaudithook(strike)


save(1)
number, step, outcomes = 0, 1, set()
while True:
    number += 1
    child = os.fork()
    if not child:
        strike_at(number)
        try:
            save(step + 1)
        except UserError:
            os._exit(2)
        os._exit(0 if left > 0 else 3)  # 3: mkdir of what is there already may fail
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in {"kill": (0, 9), "refuse": (0, 2, 3)}[how], status
    found = read()
    outcomes.add(found - step)
    sweep(root), sweep(root / "checkpoints")
    assert not list(root.rglob(".tmp*"))
    if status == 0:
        break
    for other in (step, step + 1):  # as a run does: what is there already is not written again
        if other != found:
            remove_folder(root / f"checkpoints/{other}")
    step = found
assert outcomes == {0, 1} and number > 15, (outcomes, number)
"""


@pytest.mark.parametrize("how", ["kill", "refuse"])
def test_a_reader_sees_the_old_or_the_new_wherever_a_save_is_struck(
    how: str, tmp_path: Path
) -> None:
    subprocess.run([sys.executable, "-c", SAVE, tmp_path / "run", how], check=True)


# Reading what others may have damaged


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)


def replace_by(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage


DAMAGES: dict[str, Callable[[Path], object]] = {
    "emptied": lambda path: path.write_bytes(b""),
    "cut to a byte": lambda path: os.truncate(path, 1),
    "halved": lambda path: os.truncate(path, 128),
    "cut by a byte": lambda path: os.truncate(path, 255),
    "longer by a byte": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "a bit flipped": flip_bit,
    "missing": lambda path: path.unlink(),
    "a folder": replace_by(lambda path: path.mkdir()),
    "a pipe": replace_by(lambda path: os.mkfifo(path)),
    "a link to a device": replace_by(lambda path: path.symlink_to("/dev/zero")),
    "a link to nothing": replace_by(lambda path: path.symlink_to("nowhere")),
    "a link to itself": replace_by(lambda path: path.symlink_to(path.name)),
    "huge": lambda path: os.truncate(path, 1 << 40),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_by_name(damage: str, published: Path) -> None:
    DAMAGES[damage](published / "a.bin")
    with pytest.raises(UserError, match=r"folder/a\.bin: "):
        read_published(published, LIMITS)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_manifest_is_refused_by_name(damage: str, published: Path) -> None:
    DAMAGES[damage](published / MANIFEST)
    with pytest.raises(UserError, match=r"folder/.*manifest\.json"):
        read_published(published, LIMITS)


@pytest.mark.parametrize(
    "content",
    [
        b"[]",
        b'"text"',
        b"null",
        b"{}",
        b'{"format": 2, "files": {}}',
        b'{"format": "1", "files": {}}',
        b'{"format": true, "files": {}}',
        b'{"format": 1}',
        b'{"format": 1, "files": []}',
        b'{"format": 1, "files": {"a.bin": 3}}',
        b'{"format": 1, "files": {"a.bin": {}}}',
    ],
)
def test_a_manifest_that_is_none_is_refused(content: bytes, published: Path) -> None:
    (published / MANIFEST).write_bytes(content)
    with pytest.raises(UserError, match=r"folder/"):
        read_published(published, LIMITS)


def test_a_file_over_its_limit_is_not_read(published: Path) -> None:
    with pytest.raises(UserError, match=r"a\.bin: has 256 bytes, more than the 255"):
        read_file(published / "a.bin", 255)
    assert len(read_file(published / "a.bin", 256)) == 256


@pytest.mark.parametrize("damage", ["a folder", "a pipe", "a link to a device"])
def test_what_is_no_regular_file_is_not_read(damage: str, published: Path) -> None:
    DAMAGES[damage](published / "a.bin")
    with pytest.raises(UserError, match=r"a\.bin: is not a regular file"):
        read_file(published / "a.bin")


def test_a_newer_format_says_that_it_is_newer() -> None:
    check_format({"format": 1}, "x")
    with pytest.raises(UserError, match=r"x: format 2 was made by a newer tfm"):
        check_format({"format": 2}, "x")
    for broken in ({}, {"format": "1"}, {"format": True}, {"format": 0}, {"format": 1.0}):
        with pytest.raises(UserError, match="x: 'format' is missing or no number"):
            check_format(broken, "x")


def test_a_folder_is_replaced_only_by_a_complete_one(published: Path) -> None:
    before = published.stat().st_ino
    publish_folder(published, {"new": b"1"}, replace=True)
    assert sorted(p.name for p in published.iterdir()) == ["manifest.json", "new"]
    assert published.stat().st_ino != before
    assert [p.name for p in published.parent.iterdir()] == [published.name]


def test_behind_a_link_a_folder_is_replaced_and_removed(tmp_path: Path) -> None:
    (tmp_path / "disk/old").mkdir(parents=True)
    (tmp_path / "link").symlink_to("disk/old")
    (tmp_path / "disk/old/inner").symlink_to("..")
    publish_folder(tmp_path / "link", {"a": b"1"}, replace=True)
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path / "disk/old") == {"a", "manifest.json"}
    (tmp_path / "disk/old/inner").symlink_to("..")
    remove_folder(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path) == {"disk", "disk/old", "link"}
