"""The folder of a run: the only file that knows its names and formats.

    RUN/tokenizer/                 the tokenizer's own file
    RUN/train.toml                 the resolved settings
    RUN/log.jsonl                  one object a logged step or validation
    RUN/tensorboard/               event files, where asked for
    RUN/data/                      the id store (`corpus.py`)
    RUN/checkpoints/00001000/      complete models (`checkpoint.py`)
    RUN/checkpoints/00001000-cooled/  one of a cooldown that was taken back, with its score (`keeper.py`)
    RUN/checkpoints/00001000-former/  the best one of a run that was begun anew, until that has one
    RUN/state/00001000/            what resuming needs: state.json, state.safetensors, manifest.json
    RUN/state/00001000-unvalidated/   the same, of a step that a signal came to before it was validated
    RUN/best, RUN/latest           text files that name a checkpoint
    RUN/lock                       held by the process that writes

How files are written so that nothing is ever half there is in `storage.py`, and what a state holds in
`state.py`. Free of torch, so that commands have these names at once.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from seq2seq.storage import MANIFEST, publish_folder, read_published, remove_folder
from tokenizer.errors import UserError
from tokenizer.files import publish_file, read_file, read_json, write_json

TOKENIZER = "tokenizer"
POINTERS: tuple[str, ...] = ("best", "latest")  # name a checkpoint; the first one goes before
SETTINGS_TITLE = "The settings of this run."  # how train.toml begins
MOST_OF_LOG = 1 << 30  # bytes
SCORE = "score.json"  # of a model that has to be beaten
STEP_NAME = re.compile(r"\d{8,12}", re.A)
STATE_NAME = re.compile(r"(\d{8,12})(-unvalidated)?", re.A)
COOLED_NAME = re.compile(r"(\d{8,12})-cooled", re.A)
FORMER_NAME = re.compile(r"(\d{8,12})-former", re.A)


@dataclass(frozen=True, slots=True)
class Incumbent:
    """A finished model that has to be beaten.

    Attributes:
        step: Of its checkpoint.
        score: Of `train.metric`, the higher the better.
    """

    step: int
    score: float


@dataclass(frozen=True)
class Run:
    """The folder of a run: what is where in it."""

    folder: Path

    @property
    def settings(self) -> Path:
        """The resolved settings."""
        return self.folder / "train.toml"

    @property
    def log(self) -> Path:
        """The log of steps and validations."""
        return self.folder / "log.jsonl"

    @property
    def events(self) -> Path:
        """The event files for TensorBoard."""
        return self.folder / "tensorboard"

    @property
    def data(self) -> Path:
        """The stores of ids."""
        return self.folder / "data"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer's folder."""
        return self.folder / TOKENIZER

    def checkpoint(self, step: int) -> Path:
        """The model folder of a step."""
        return self.named(f"{step:08d}")

    def named(self, name: str) -> Path:
        """The model folder that a pointer names."""
        return self.folder / "checkpoints" / name

    def state(self, step: int, is_validated: bool = True) -> Path:
        """What resuming at a step needs, as it is after the step was validated, or before."""
        return self.folder / "state" / f"{step:08d}{'' if is_validated else '-unvalidated'}"

    def saved_state(self, step: int) -> Path:
        """The state of a step that is there; of two the validated one."""
        return self.state(step, (self.state(step) / MANIFEST).exists())

    def steps(self, kind: str) -> list[int]:
        """Steps that have a complete folder, oldest first; `kind` is `checkpoints` or `state`."""
        return sorted({step for step, _ in self._complete(kind)})

    def incomplete(self) -> Path | None:
        """The folder of a step that has lost its manifest, if there is one; no killed writer leaves it."""
        found = (path for kind in ("state", "checkpoints") for _, path in self._named_steps(kind))
        return next((path for path in found if not (path / MANIFEST).exists()), None)

    def _complete(self, kind: str) -> Iterator[tuple[int, Path]]:
        """The complete folders of a kind, and the step of each."""
        return (found for found in self._named_steps(kind) if (found[1] / MANIFEST).exists())

    def _named_steps(self, kind: str) -> Iterator[tuple[int, Path]]:
        folder = self.folder / kind
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if match := STATE_NAME.fullmatch(path.name):
                yield int(match[1]), path

    def pointer(self, name: str) -> str | None:
        """The checkpoint that `best` or `latest` names, if it is there.

        Raises:
            UserError: When the file holds anything but the name of a checkpoint.
        """
        path = self.folder / name
        if not path.exists():
            return None
        text = read_file(path, 64).decode(errors="replace").strip()
        if not _is_checkpoint(text):
            raise UserError(f"{path}: names no checkpoint; remove the file to go on without it")
        return text

    def point(self, name: str, step: int) -> None:
        """Let `best` or `latest` name a checkpoint."""
        if self.pointer(name) != f"{step:08d}":
            publish_file(self.folder / name, f"{step:08d}\n".encode())

    def incumbent(self) -> Incumbent | None:
        """The model that has to be beaten: what `best` names, if that has a score of its own.

        Raises:
            UserError: When the score is damaged.
        """
        name = self.pointer("best")
        match = COOLED_NAME.fullmatch(name) if name is not None else None
        if match is None or not self.named(match[0]).is_dir():
            return None
        return Incumbent(int(match[1]), _read_score(self.named(match[0])))

    def keep_incumbent(self, incumbent: Incumbent, files: Mapping[str, bytes]) -> None:
        """Let `best` name a copy of a checkpoint, which stays when the run comes by its step again.

        Args:
            incumbent: The complete checkpoint, and its score.
            files: Its names and contents.
        """
        cooled = self.named(f"{incumbent.step:08d}-cooled")
        score = write_json({"score": incumbent.score})
        if not (cooled / SCORE).is_file() or (cooled / SCORE).read_bytes() != score:
            self.point("best", incumbent.step)  # while there is no copy
            remove_folder(cooled)
            publish_folder(cooled, {**files, SCORE: score})
        publish_file(self.folder / "best", f"{cooled.name}\n".encode())

    def forget_incumbent(self) -> None:
        """Remove the model that has to be beaten, and `best` if it names that."""
        name = self.pointer("best")
        if name is not None and COOLED_NAME.fullmatch(name):
            (self.folder / "best").unlink()
        self.drop_incumbents()

    def drop_incumbents(self) -> None:
        """Remove models that had to be beaten, and that of a former run, but what `best` names."""
        folder = self.folder / "checkpoints"
        for path in folder.iterdir() if folder.is_dir() else ():
            is_one = COOLED_NAME.fullmatch(path.name) or FORMER_NAME.fullmatch(path.name)
            if is_one and path.name != self.pointer("best"):
                remove_folder(path)

    def has_former(self) -> bool:
        """Whether `best` names a model of the run that was here before this one was begun anew."""
        name = self.pointer("best")
        return name is not None and FORMER_NAME.fullmatch(name) is not None

    def clear(self, best: Mapping[str, bytes]) -> None:
        """Remove all but tokenizer, ids and the best model, which `best` goes on naming.

        First goes what the run could go on from, last its settings.

        Args:
            best: The names and contents of that model's files; empty where there is none to keep.

        Raises:
            UserError: When there is no room for a copy of that model; nothing is removed then.
        """
        kept = self._keep_former(best) if best else None
        remove_folder(self.folder / "state")
        pointers = (self.folder / name for name in POINTERS if kept is None or name != "best")
        for path in (*pointers, self.log):
            path.unlink(missing_ok=True)
        checkpoints = self.folder / "checkpoints"
        if kept is None:
            remove_folder(checkpoints)
        else:
            for path in [p for p in checkpoints.iterdir() if p.is_dir() and p.name != kept]:
                remove_folder(path)
        remove_folder(self.events)
        self.settings.unlink(missing_ok=True)

    def _keep_former(self, files: Mapping[str, bytes]) -> str:
        """Let `best` name a copy of its model, which is in no checkpoint's way; returns its name."""
        step, _, _ = str(self.pointer("best")).partition("-")
        former = self.named(f"{step}-former")
        if not self.has_former():
            remove_folder(former)
            publish_folder(former, files)
            publish_file(self.folder / "best", f"{former.name}\n".encode())
        return former.name

    def rotate(self, kind: str, keep: Sequence[int]) -> None:
        """Remove all complete folders of a kind but those of the given steps.

        Of a step that has been validated since it was saved, the state from before goes, too.
        """
        for step, path in list(self._complete(kind)):
            if step not in keep or (kind == "state" and path != self.saved_state(step)):
                remove_folder(path)

    def cut_log(self, step: int, is_validated: bool = True) -> float:
        """Drop log entries that a resumed run writes again.

        Args:
            step: Those after it.
            is_validated: Whether its validation is not made again.

        Returns:
            The seconds of training that the last entry left tells of.
        """
        kept, seconds = [], 0.0
        if self.log.exists():
            for line in read_file(self.log, MOST_OF_LOG).split(b"\n"):
                try:
                    entry = json.loads(line)
                    is_again = not is_validated and entry["kind"] == "validation"
                    if entry["step"] > step - is_again:
                        continue
                    seconds = float(entry.get("seconds", seconds))
                except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
                    continue  # the line that was being written when the power failed
                kept.append(line + b"\n")
        publish_file(self.log, b"".join(kept))
        return seconds


def is_pointer(path: Path) -> bool:
    """Whether a path is that of a file which names a checkpoint, such as `RUN/latest`."""
    return path.name in POINTERS and path.is_file()


def run_of(model: Path) -> Run:
    """The run that the user speaks of by `-m`: the folder itself, or that of a pointer or checkpoint."""
    if is_pointer(model):
        return Run(model.parent)
    checkpoint = model.absolute()
    is_of_run = checkpoint.parent.name == "checkpoints" and _is_checkpoint(checkpoint.name)
    return Run(checkpoint.parent.parent) if is_of_run else Run(model)


def _is_checkpoint(name: str) -> bool:
    return any(kind.fullmatch(name) for kind in (STEP_NAME, COOLED_NAME, FORMER_NAME))


def _read_score(folder: Path) -> float:
    try:
        saved = read_json(read_published(folder, {SCORE: 1 << 10})[SCORE], str(folder / SCORE))
    except UserError as error:
        raise UserError(f"{error}; remove the folder {folder}") from None
    match saved:
        case {"score": float(score)}:
            return score
    raise UserError(f"{folder / SCORE}: is not a score; remove the folder {folder}")
