"""The folder of a model, be it a checkpoint of a run or exported: names and formats.

    config.json            its shape
    model.safetensors      its weights
    tokenizer/             its tokenizer's own file
    manifest.json          sizes and SHA-256 of all of these

A model for CTranslate2 has model.bin and shared_vocabulary.json, which are that engine's, in place of
model.safetensors; its config.json has that engine's keys besides ours.

How files are written so that nothing is ever half there is in `storage.py`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from seq2seq.config import ModelConfig, model_from_dict
from seq2seq.model import Transformer
from seq2seq.run import POINTERS, TOKENIZER, Run, is_pointer
from seq2seq.storage import FORMAT, MANIFEST, check_format, publish_folder, read_published
from seq2seq.weights import HEADER, build, read_tensors, tensor_shapes
from tokenizer.base import Tokenizer
from tokenizer.errors import UserError
from tokenizer.files import read_json, write_json
from tokenizer.folder import KINDS, MOST_BYTES, load_tokenizer

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
ENGINE_WEIGHTS = "model.bin"
ENGINE_VOCABULARY = "shared_vocabulary.json"
CONFIG_LIMIT = 1 << 16


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
    where = resolve(folder)
    try:
        return _read_model(where)
    except UserError:
        if resolve(folder) == where:
            raise
    return load_model(folder)  # a training has a better one by now, and has removed that one


def _read_model(folder: Path) -> Model:
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


def is_model(folder: Path) -> bool:
    """Whether a folder is that of a model, not of a run, be the model whole or not."""
    return (folder / MANIFEST).exists() or (folder / CONFIG).exists()


def refuse_model(folder: Path) -> None:
    """Keep a model, or a file, from what writes into the folder of a run.

    Raises:
        UserError: When the folder is that of a model, or none.
    """
    if not folder.is_dir() and (folder.exists() or folder.is_symlink()):
        what = "a file" if folder.exists() else "a link that leads nowhere"
        raise UserError(f"{folder}: is {what}; -m names the folder of a run")
    if is_model(folder):
        raise UserError(
            f"{folder}: is a model, not a run; choose another -m, where --init-from may start from a "
            "model"
        )


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
    names = [n for n in KINDS if (folder / TOKENIZER / n).is_file()]
    if not names:
        raise UserError(f"{folder / TOKENIZER}: holds no tokenizer ({' or '.join(KINDS)})")
    tokenizer_limits = {f"{TOKENIZER}/{name}": MOST_BYTES for name in names}
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


def without_dropout(config: ModelConfig) -> ModelConfig:
    """The same shape: models that were trained with other dropout have the same tensors."""
    return replace(config, dropout=0.0, attention_dropout=0.0, activation_dropout=0.0)


def average(models: Sequence[Model]) -> dict[str, Tensor]:
    """The mean of the weights of several models.

    Args:
        models: At least one; of one shape and one tokenizer, as the checkpoints of a run are.

    Raises:
        UserError: When two of them cannot be mixed, naming them.
    """
    first = models[0]
    for other in models[1:]:
        if without_dropout(other.config) != without_dropout(first.config):
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
        UserError: When there is no model yet, or not any more, saying what to do.
    """
    run, pointers = Run(folder), POINTERS
    if is_pointer(folder):
        run, pointers = Run(folder.parent), (folder.name,)
    elif not folder.exists():
        raise UserError(
            f"{folder}: no such folder; train a model first (tfm train), or name another one"
        )
    elif not folder.is_dir():
        raise UserError(f"{folder}: is a file; a model is a directory")
    elif is_model(folder):
        return folder
    for pointer in pointers:
        if (name := run.pointer(pointer)) is not None:
            _check_there(run, pointer, name)
            return run.named(name)
    raise UserError(f"{folder}: holds no model yet; train one with: tfm train -m {folder} …")


def _check_there(run: Run, pointer: str, name: str) -> None:
    """Refuse a pointer to a checkpoint that somebody has removed."""
    if run.named(name).exists() or run.pointer(pointer) != name:  # a training may have replaced it
        return
    remedies = [f"give one that is: -m {run.checkpoint(s)}" for s in run.steps("checkpoints")[-1:]]
    if run.steps("state"):
        remedies.insert(0, "run the same tfm train command again, which mends it")
    raise UserError(
        f"{run.folder / pointer}: names checkpoint {name}, which is not there; "
        + (", or ".join(remedies) or "train anew")
    )
