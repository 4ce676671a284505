"""`tfm average`: several checkpoints to one model."""

from pathlib import Path
from typing import Annotated

import typer

from cli.streams import say
from tokenizer.errors import UserError


def average(
    checkpoints: Annotated[
        list[Path],
        typer.Argument(metavar="CHECKPOINT...", help="Folders such as model/checkpoints/00001000."),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Where the new model goes.")
    ],
) -> None:
    """Average the weights of several checkpoints.

    The mean of the last few checkpoints of a run often translates a little better than any of them.
    """
    from seq2seq import checkpoint
    from seq2seq.ownership import refuse_inside_run

    refuse_inside_run(output)
    if output.exists():
        raise UserError(f"{output}: exists already; give another -o")
    models = [checkpoint.load_model(folder) for folder in checkpoints]
    weights = checkpoint.average(models)
    checkpoint.save_model(output, models[0].config, weights, models[0].tokenizer)
    say(f"{output}: the mean of {len(models)} model{'s' if len(models) > 1 else ''}")
