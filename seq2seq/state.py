"""What resuming needs, in RUN/state/00001000: flat tensors and a few facts, each checked when it is read.

    save_state(run.state(step), tensors, facts)
    facts = load_last_state(run, tensors)    into live tensors of the same names and shapes

Where these folders are is known in `run.py`; when they are written and removed, in `keeper.py`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from seq2seq.run import Run
from seq2seq.storage import FORMAT, check_format, publish_folder, read_published
from seq2seq.weights import HEADER
from tokenizer.errors import UserError
from tokenizer.files import read_json, write_json

FACTS = "state.json"
_TENSORS = "state.safetensors"
STATE_FILES = (FACTS, _TENSORS)


def save_state(folder: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Publish what resuming needs: flat tensors and a few numbers.

    Raises:
        UserError: When it cannot be written.
    """
    data = safetensors.torch.save({k: t.detach().cpu().contiguous() for k, t in tensors.items()})
    files = {_TENSORS: data, FACTS: write_json({"format": FORMAT, **facts})}
    publish_folder(folder, files)


def load_state(folder: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read a state into live tensors of the same names and shapes.

    Returns:
        The facts that were saved with it.

    Raises:
        UserError: When it is damaged or of another model.
    """
    limit = HEADER + sum(t.numel() * t.element_size() for t in tensors.values())
    facts = load_facts(folder)
    files = read_published(folder, {_TENSORS: limit})
    where = str(folder / _TENSORS)
    try:
        saved = safetensors.torch.load(files[_TENSORS])
    except (SafetensorError, ValueError, KeyError) as error:
        raise UserError(f"{where}: damaged ({error})") from None
    if {k: (v.shape, v.dtype) for k, v in saved.items()} != {
        k: (v.shape, v.dtype) for k, v in tensors.items()
    }:
        raise UserError(f"{where}: belongs to another model or precision")
    for name, tensor in tensors.items():
        tensor.copy_(saved[name])
    return facts


def load_facts(folder: Path) -> dict[str, Any]:
    """Read the facts that were saved with a state.

    Raises:
        UserError: When they are damaged.
    """
    where = str(folder / FACTS)
    facts = read_json(read_published(folder, {FACTS: 1 << 20})[FACTS], where)
    if not isinstance(facts, dict):
        raise UserError(f"{where}: is not a state")
    check_format(facts, where)
    return facts


def load_last_state(run: Run, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read the newest state of a run, as `load_state` does.

    Raises:
        UserError: As `load_state`; where it is damaged, with the last good step and how to go on from it.
    """
    try:
        return load_state(run.saved_state(run.steps("state")[-1]), tensors)
    except UserError:
        check_last_state(run)
        raise


def check_last_state(run: Run) -> None:
    """Refuse to go on from a newest state that is not whole.

    Raises:
        UserError: With the last good step and how to go on from it.
    """
    steps = run.steps("state")
    newest = run.saved_state(steps[-1])
    try:
        _check_whole(newest)
    except UserError as error:
        good = next((s for s in reversed(steps[:-1]) if is_intact(run.saved_state(s))), None)
        remedy = (
            "no older state is whole; start anew with --overwrite"
            if good is None
            else f"step {good} is the last good one; remove the folders of later steps from "
            f"{newest.parent} and run the same command again to go on from there"
        )
        raise UserError(f"{error}; {remedy}") from None


def is_intact(folder: Path) -> bool:
    """Whether the files of a state are those that its manifest lists."""
    try:
        _check_whole(folder)
    except UserError:
        return False
    return True


def _check_whole(folder: Path) -> None:
    files = {name: folder / name for name in STATE_FILES}
    sizes = {n: path.stat().st_size if path.is_file() else 0 for n, path in files.items()}
    read_published(folder, sizes)
