"""`tfm encode`: text to ids."""

from pathlib import Path
from typing import Annotated

import typer

from cli.models import load_tokenizer
from cli.options import InputFile, Model
from cli.streams import lines_from, lines_to

_WINDOW = 1024  # lines that are encoded at once


def encode(
    file: InputFile = None,
    model: Model = Path("model"),
    pieces: Annotated[
        bool, typer.Option("--pieces", help="Show the pieces themselves, a space as ▁.")
    ] = False,
) -> None:
    """Turn text into ids.

    One line of ids, separated by spaces, for each line of text; `tfm decode` turns them back.
    """
    tokenizer = load_tokenizer(model)
    with lines_from(file, strict=True) as reader, lines_to(None) as writer:
        for window in reader.windows(_WINDOW):
            rows = map(tokenizer.pieces, window) if pieces else tokenizer.encode_batch(window)
            for row in rows:
                writer.write(" ".join(map(str, row)))
            writer.flush()
