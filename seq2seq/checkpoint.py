"""The folder of a run and the folders of models: the only file that knows their names and formats.

    RUN/tokenizer/                 the tokenizer's own file
    RUN/train.toml                 the resolved settings
    RUN/log.jsonl                  one object a logged step or validation
    RUN/tensorboard/               event files, where asked for
    RUN/data/                      the id store (`corpus.py`)
    RUN/checkpoints/00001000/      complete models: config.json, model.safetensors, tokenizer/, manifest.json
    RUN/state/00001000/            what resuming needs: state.json, state.safetensors, manifest.json
    RUN/best, RUN/latest           text files that name a checkpoint
    RUN/lock                       held by the process that writes

A model for CTranslate2 has model.bin and shared_vocabulary.json, which are that engine's, in place of
model.safetensors; its config.json has that engine's keys besides ours.

How files are written so that nothing is ever half there is in `storage.py`.
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from seq2seq.config import ModelConfig, model_from_dict
from seq2seq.model import Transformer
from seq2seq.storage import (
    FORMAT,
    MANIFEST,
    check_format,
    publish_file,
    publish_folder,
    read_file,
    read_json,
    read_published,
    remove_folder,
    write_json,
)
from seq2seq.weights import HEADER, build, read_tensors, tensor_shapes
from tokenizer import bpe, spm
from tokenizer.base import Tokenizer
from tokenizer.errors import UserError
from tokenizer.folder import load_tokenizer

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
ENGINE_WEIGHTS = "model.bin"
ENGINE_VOCABULARY = "shared_vocabulary.json"
TOKENIZER = "tokenizer"
TOKENIZER_FILES = (bpe.FILE_NAME, spm.FILE_NAME)
CONFIG_LIMIT = 1 << 16
_TOKENIZER_LIMIT = 1 << 26
_STEP_NAME = re.compile(r"\d{8,12}")
_POINTERS: tuple[str, ...] = ("best", "latest")  # name a checkpoint; the first one goes before


@dataclass(frozen=True)
class Model:
    """A model as it lies in a folder.

    Attributes:
        config: Its shape.
        weights: By plain name, tied ones once, float32.
        tokenizer: Its tokenizer.
        folder: Where it came from.
    """

    config: ModelConfig
    weights: dict[str, Tensor]
    tokenizer: Tokenizer
    folder: Path


def model_files(
    config: ModelConfig, weights: Mapping[str, Tensor], tokenizer: Tokenizer
) -> dict[str, bytes]:
    """The files of a model folder, manifest apart: names and contents."""
    tensors = {name: w.detach().cpu().contiguous() for name, w in weights.items()}
    return {
        CONFIG: write_json(describe(config)),
        WEIGHTS: safetensors.torch.save(tensors),
        **tokenizer_files(tokenizer),
    }


def describe(config: ModelConfig) -> dict[str, Any]:
    """What `config.json` says of a model."""
    return {
        "format": FORMAT,
        "tfm": metadata.version("tfm"),
        "model": dataclasses.asdict(config),
    }


def tokenizer_files(tokenizer: Tokenizer) -> dict[str, bytes]:
    """The tokenizer's files in a model folder: names and contents."""
    return {f"{TOKENIZER}/{name}": content for name, content in tokenizer.files().items()}


def save_model(
    folder: Path, config: ModelConfig, weights: Mapping[str, Tensor], tokenizer: Tokenizer
) -> None:
    """Publish a model folder under a new name.

    Raises:
        UserError: When it cannot be written.
    """
    publish_folder(folder, model_files(config, weights, tokenizer))


def load_model(folder: Path) -> Model:
    """Read a model from a run, a checkpoint or an exported folder, trusting nothing in it.

    Raises:
        UserError: Naming the file that is missing, damaged or impossible, or what to do first.
    """
    folder = resolve(folder)
    if is_for_engine(folder):
        raise UserError(
            f"{folder}: is a model for CTranslate2, which can translate and score and nothing else; "
            "give the model it was made from"
        )
    config = read_config(folder)
    shapes = tensor_shapes(config)
    limits = {WEIGHTS: HEADER + sum(4 * shape.numel() for shape in shapes.values())}
    contents, tokenizer = read_parts(folder, config, limits)
    weights = read_tensors(contents[WEIGHTS], shapes, str(folder / WEIGHTS))
    return Model(config, weights, tokenizer, folder)


def is_for_engine(folder: Path) -> bool:
    """Whether a model folder holds a model for CTranslate2."""
    return (folder / ENGINE_WEIGHTS).is_file() and not (folder / WEIGHTS).is_file()


def read_parts(
    folder: Path, config: ModelConfig, limits: Mapping[str, int]
) -> tuple[dict[str, bytes], Tokenizer]:
    """Read files of a model folder, and its tokenizer.

    Args:
        folder: Of the model.
        config: Its shape.
        limits: The files wanted, and how many bytes each may have.

    Returns:
        The contents by name, those of the tokenizer included, and the tokenizer.

    Raises:
        UserError: Naming the file that is missing or damaged.
    """
    names = [n for n in TOKENIZER_FILES if (folder / TOKENIZER / n).is_file()]
    if not names:
        raise UserError(
            f"{folder / TOKENIZER}: holds no tokenizer ({' or '.join(TOKENIZER_FILES)})"
        )
    tokenizer_limits = {f"{TOKENIZER}/{name}": _TOKENIZER_LIMIT for name in names}
    contents = read_published(folder, {**tokenizer_limits, **limits})
    tokenizer = load_tokenizer(folder / TOKENIZER)
    if tokenizer.vocab_size != config.vocab_size:
        raise UserError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} pieces, the model "
            f"{config.vocab_size}; they are not of one run"
        )
    return contents, tokenizer


def read_config(folder: Path) -> ModelConfig:
    """The shape of the model in a model folder.

    Raises:
        UserError: When its description is missing, newer, damaged or impossible.
    """
    where = folder / CONFIG
    document = read_json(read_published(folder, {CONFIG: CONFIG_LIMIT})[CONFIG], str(where))
    if not isinstance(document, dict):
        raise UserError(f"{where}: is not a description of a model")
    check_format(document, str(where))
    return model_from_dict(document.get("model"), str(where))


def build_model(model: Model) -> Transformer:
    """A Transformer with these weights, in evaluation mode."""
    return build(model.config, model.weights)


def average(models: Sequence[Model]) -> dict[str, Tensor]:
    """The mean of the weights of several models.

    Args:
        models: At least one; of one shape and one tokenizer, as the checkpoints of a run are.

    Raises:
        UserError: When two of them cannot be mixed, naming them.
    """
    first = models[0]
    for other in models[1:]:
        if other.config != first.config:
            raise UserError(f"{other.folder}: is a model of another shape than {first.folder}")
        if other.tokenizer.files() != first.tokenizer.files():
            raise UserError(f"{other.folder}: has another tokenizer than {first.folder}")
    mean = {}
    for name, weight in first.weights.items():
        total = sum((m.weights[name].double() for m in models), torch.zeros((), dtype=torch.double))
        mean[name] = (total / len(models)).to(weight.dtype)
    return mean


def resolve(folder: Path) -> Path:
    """The model folder that `-m` means: of a run its best checkpoint, else the folder itself.

    The pointers of a run mean their checkpoints: `model/latest` is the last one.

    Raises:
        UserError: When there is no model yet, saying what to do.
    """
    run, pointers = Run(folder), _POINTERS
    if folder.name in _POINTERS and folder.is_file():
        run, pointers = Run(folder.parent), (folder.name,)
    elif not folder.exists():
        raise UserError(f"{folder}: no such folder; train a model first (tfm train), or give -m")
    elif not folder.is_dir():
        raise UserError(f"{folder}: is a file; a model is a directory")
    elif (folder / MANIFEST).exists() or (folder / CONFIG).exists():
        return folder
    name = next(filter(None, map(run.pointer, pointers)), None)
    if name is None:
        raise UserError(f"{folder}: holds no model yet; train one with: tfm train -m {folder} …")
    return run.checkpoint(int(name))


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
        return self.folder / "checkpoints" / f"{step:08d}"

    def state(self, step: int) -> Path:
        """What resuming at a step needs."""
        return self.folder / "state" / f"{step:08d}"

    def steps(self, kind: str) -> list[int]:
        """Steps that have a complete folder, oldest first; `kind` is `checkpoints` or `state`."""
        folder = self.folder / kind
        if not folder.is_dir():
            return []
        names = [p.name for p in folder.iterdir() if (p / MANIFEST).exists()]
        return sorted(int(name) for name in names if _STEP_NAME.fullmatch(name))

    def pointer(self, name: str) -> str | None:
        """The checkpoint that `best` or `latest` names, if it is there.

        Raises:
            UserError: When the file holds anything but the name of a checkpoint.
        """
        path = self.folder / name
        if not path.exists():
            return None
        text = read_file(path, 64).decode(errors="replace").strip()
        if not _STEP_NAME.fullmatch(text):
            raise UserError(f"{path}: names no checkpoint")
        return text

    def point(self, name: str, step: int) -> None:
        """Let `best` or `latest` name a checkpoint."""
        if self.pointer(name) != f"{step:08d}":
            publish_file(self.folder / name, f"{step:08d}\n".encode())

    def rotate(self, kind: str, keep: Sequence[int]) -> None:
        """Remove all complete folders of a kind but those of the given steps."""
        for step in self.steps(kind):
            if step not in keep:
                remove_folder(self.folder / kind / f"{step:08d}")

    def cut_log(self, step: int) -> float:
        """Drop log entries after a step (a resumed run writes them again).

        Returns:
            The seconds of training that the last entry left tells of.
        """
        kept, seconds = [], 0.0
        if self.log.exists():
            for line in read_file(self.log, 1 << 30).split(b"\n"):
                try:
                    entry = json.loads(line)
                    if entry["step"] > step:
                        continue
                    seconds = float(entry.get("seconds", seconds))
                except (ValueError, KeyError, TypeError, RecursionError):
                    continue  # the line that was being written when the power failed
                kept.append(line + b"\n")
        publish_file(self.log, b"".join(kept))
        return seconds


def save_state(folder: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Publish what resuming needs: flat tensors and a few numbers.

    Raises:
        UserError: When it cannot be written.
    """
    data = safetensors.torch.save({k: t.detach().cpu().contiguous() for k, t in tensors.items()})
    files = {"state.safetensors": data, "state.json": write_json({"format": FORMAT, **facts})}
    publish_folder(folder, files)


def load_state(folder: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read a state into live tensors of the same names and shapes.

    Returns:
        The facts that were saved with it.

    Raises:
        UserError: When it is damaged or of another model.
    """
    limit = HEADER + sum(t.numel() * t.element_size() for t in tensors.values())
    files = read_published(folder, {"state.json": 1 << 20, "state.safetensors": limit})
    where = str(folder / "state.safetensors")
    try:
        saved = safetensors.torch.load(files["state.safetensors"])
    except (SafetensorError, ValueError, KeyError) as error:
        raise UserError(f"{where}: damaged ({error})") from None
    if {k: (v.shape, v.dtype) for k, v in saved.items()} != {
        k: (v.shape, v.dtype) for k, v in tensors.items()
    }:
        raise UserError(f"{where}: belongs to another model or precision")
    for name, tensor in tensors.items():
        tensor.copy_(saved[name])
    facts = read_json(files["state.json"], str(folder / "state.json"))
    if not isinstance(facts, dict):
        raise UserError(f"{folder / 'state.json'}: is not a state")
    check_format(facts, str(folder / "state.json"))
    return facts


def load_last_state(run: Run, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read the newest state of a run, as `load_state` does.

    Raises:
        UserError: As `load_state`; where it is damaged, with the last good step and how to go on from it.
    """
    steps = run.steps("state")
    newest = run.state(steps[-1])
    try:
        return load_state(newest, tensors)
    except UserError as error:
        if _is_intact(newest):
            raise
        good = next((step for step in reversed(steps) if _is_intact(run.state(step))), None)
        remedy = (
            "no older state is whole; start anew with --overwrite"
            if good is None
            else f"step {good} is the last good one; remove the folders of later steps from "
            f"{newest.parent} and run the same command again to go on from there"
        )
        raise UserError(f"{error}; {remedy}") from None


def _is_intact(folder: Path) -> bool:
    """Whether the files of a state are those that its manifest lists."""
    try:
        names = ("state.json", "state.safetensors")
        read_published(folder, {n: (folder / n).stat().st_size for n in names})
    except (UserError, OSError):
        return False
    return True
