"""What tfm made and what others put in the same places: only the former is replaced or removed.

    refuse_foreign(run, overwrite=False)        before anything is written into the folder of a run
    refuse_others(folder, MODEL_LAYOUT, "-o")   before another folder takes the place of this one
    refuse_inside_run(output)                   before a command other than training writes there

A folder is tfm's own if nothing in it has another name than tfm gives; it may be damaged, lack files, or
hold what systems and killed writers leave. A file whose name others use, too, is known by how
it begins.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from seq2seq.checkpoint import CONFIG, ENGINE_VOCABULARY, ENGINE_WEIGHTS, WEIGHTS
from seq2seq.corpus import STORE_FILES
from seq2seq.run import (
    COOLED_NAME,
    FORMER_NAME,
    POINTERS,
    SCORE,
    SETTINGS_TITLE,
    STATE_NAME,
    STEP_NAME,
    TOKENIZER,
    Run,
    is_pointer,
)
from seq2seq.state import STATE_FILES
from seq2seq.storage import MANIFEST
from tokenizer.errors import UserError
from tokenizer.folder import KINDS

# What is in a folder: names, as regular expressions, and what is below them; nothing is below a file.
Layout: TypeAlias = Mapping[str, "Layout | None"]


def _files(*names: str) -> Layout:
    return dict.fromkeys(map(re.escape, names))


TOKENIZER_LAYOUT = _files(*KINDS)
MODEL_LAYOUT: Layout = {
    **_files(CONFIG, WEIGHTS, ENGINE_WEIGHTS, ENGINE_VOCABULARY, SCORE, MANIFEST),
    TOKENIZER: TOKENIZER_LAYOUT,
}
_STORE = _files(*STORE_FILES)
_STATES = {STATE_NAME.pattern: _files(*STATE_FILES, MANIFEST)}
_CHECKPOINTS = {kind.pattern: MODEL_LAYOUT for kind in (STEP_NAME, COOLED_NAME, FORMER_NAME)}
_EVENTS = {r"events\.out\.tfevents\..+": None}

_LITTER = re.compile(r"\.(DS_Store|_.*|nfs.*|directory)|Thumbs\.db|desktop\.ini")
_HEAD = 64  # bytes
_SETTINGS = re.compile(rb"# " + re.escape(SETTINGS_TITLE.encode()))
_LOG = re.compile(rb'\{ *"kind": *"')
_POINTER = re.compile(rb"\d+(-cooled|-former)?\n?\Z")


def refuse_foreign(run: Run, overwrite: bool) -> None:
    """Keep what is not a run's from a training that would replace or remove it.

    Args:
        run: The folder that it would write into.
        overwrite: Whether it is to begin anew.

    Raises:
        UserError: Naming the first thing that would be lost.
    """
    refuse_others(run.data, _STORE)
    if overwrite:
        refuse_others(run.folder / "state", _STATES)
        refuse_others(run.folder / "checkpoints", _CHECKPOINTS)
        refuse_others(run.events, _EVENTS)
    if run.steps("state"):  # what lies beside a state is of its run, damaged or not
        return
    pointers = dict.fromkeys((run.folder / name for name in POINTERS), _POINTER)
    files = {run.settings: _SETTINGS, run.log: _LOG, **pointers}
    for path, beginning in files.items():
        if not _begins(path, beginning):
            raise _loss(path, "-m")


def refuse_others(path: Path, layout: Layout, option: str = "-m") -> None:
    """Keep what is not of this layout from what would replace the folder; there need not be one.

    Args:
        path: The folder.
        layout: What tfm puts into it.
        option: That names another place.

    Raises:
        UserError: Naming the first thing that would be lost.
    """
    stranger = _stranger(path, layout)
    if stranger is not None:
        raise _loss(stranger, option)


def refuse_inside_run(output: Path) -> None:
    """Keep what only the training of a run changes in its folder from other commands.

    Raises:
        UserError: When the output would lie among them, as it is called or where links lead.
    """
    for name in (output.absolute(), Path(os.path.realpath(output))):
        for path in (name, *name.parents):
            run = Run(path.parent)
            is_of_run = run.log.exists() or (
                run.settings.exists() and _begins(run.settings, _SETTINGS)
            )
            if is_of_run and (path in _parts(run) or is_pointer(path)):
                raise UserError(f"{output}: only training writes into {path}; give another -o")


def _parts(run: Run) -> tuple[Path, ...]:
    """What a training writes in the folder of its run, tokenizer and pointers apart."""
    folders = (run.folder / "checkpoints", run.folder / "state", run.data, run.events)
    return (*folders, run.settings, run.log, run.folder / "lock")


def _stranger(path: Path, layout: Layout | None) -> Path | None:
    """The first thing that is not of this layout: the path itself, or something below it."""
    try:
        names = sorted(os.listdir(path))  # noqa: PTH208  (tells files and folders apart, too)
    except FileNotFoundError:  # or another process has just removed it
        return None
    except NotADirectoryError:
        return path if layout is not None and os.path.lexists(path) else None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if layout is None:
        return path
    for name in names:
        if name.startswith(".tmp-") or (_LITTER.fullmatch(name) and (path / name).is_file()):
            continue
        known = [layout[pattern] for pattern in layout if re.fullmatch(pattern, name)]
        stranger = _stranger(path / name, known[0]) if known else path / name
        if stranger is not None:
            return stranger
    return None


def _begins(path: Path, beginning: re.Pattern[bytes]) -> bool:
    """Whether a file, if it is there and not empty, begins like that."""
    try:
        if not path.is_file():
            return not path.exists()
        with path.open("rb") as file:
            head = file.read(_HEAD).lstrip(b"\0")  # which a failing power may leave
    except FileNotFoundError:
        return True
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    return not head or beginning.match(head) is not None


def _loss(path: Path, option: str) -> UserError:
    return UserError(
        f"{path}: is not of tfm's making and would be lost; move it, or give another {option}"
    )
