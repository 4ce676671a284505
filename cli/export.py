"""`tfm export`: a run to a folder that stands alone."""

from pathlib import Path
from typing import Annotated

import typer

from cli.options import Model, Overwrite
from cli.streams import say
from tokenizer.errors import UserError

_FORMATS = ("safetensors",)


def export(
    to: Annotated[str, typer.Option(metavar="|".join(_FORMATS), help="Format of the export.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Where the export goes.")
    ],
    model: Model = Path("model"),
    overwrite: Overwrite = False,
) -> None:
    """Write a model into a folder of its own.

    The folder holds all that translating needs, and nothing of the training; it can be given away.
    """
    if to not in _FORMATS:
        raise UserError(f"--to {to}: is not one of {', '.join(_FORMATS)}")
    from seq2seq import checkpoint, storage

    if output.exists():
        _check_replaceable(output, overwrite)
    saved = checkpoint.load_model(model)
    files = checkpoint.model_files(saved.config, saved.weights, saved.tokenizer)
    storage.publish_folder(output, files, replace=True)
    say(f"{output}: the model of {saved.folder}")


def _check_replaceable(output: Path, overwrite: bool) -> None:
    """Refuse to replace what is there unless that was asked for, and it is an export."""
    from seq2seq.checkpoint import CONFIG
    from seq2seq.storage import MANIFEST

    if not output.is_dir():
        raise UserError(f"{output}: is a file; -o names a folder")
    is_empty = not any(output.iterdir())
    if not (is_empty or overwrite):
        raise UserError(f"{output}: is not empty; give another -o, or --overwrite")
    if not (is_empty or ((output / CONFIG).is_file() and (output / MANIFEST).is_file())):
        raise UserError(f"{output}: holds something other than a model; give another -o")
