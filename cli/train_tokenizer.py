"""`tfm train-tokenizer`: text to a vocabulary."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import Overwrite, Run
from cli.plain import summary
from cli.streams import say
from seq2seq.config import DataConfig
from seq2seq.run import TOKENIZER
from tokenizer.errors import UserError

if TYPE_CHECKING:
    from tokenizer.base import Tokenizer


def train_tokenizer(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="Text, ideally of both languages together."),
    ],
    run: Run = Path("model"),
    vocab_size: Annotated[
        int, typer.Option(metavar="N", help="Pieces to end up with, at most.")
    ] = DataConfig.vocab_size,
    algorithm: Annotated[
        str, typer.Option(metavar="bpe|unigram", help="How pieces are found.")
    ] = "bpe",
    library: Annotated[
        str | None,
        typer.Option(
            metavar="tokenizers|sentencepiece",
            help="Which library does it, and can read the result; for unigram, sentencepiece.",
            show_default=False,
        ),
    ] = None,
    tag: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LANG",
            help="A language that a model of many directions translates into, such as de; may be "
            "given several times.",
            show_default=False,
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Learn how to cut text into pieces.

    Writes DIR/tokenizer. One vocabulary serves both languages, so give the files of both. `tfm
    train` does this by itself where there is no tokenizer yet.
    """
    from cli.console import counting
    from seq2seq.storage import locked
    from tokenizer import folder
    from tokenizer.files import sweep

    _refuse(run, overwrite)
    if library is None:
        library = "sentencepiece" if algorithm == "unigram" else "tokenizers"
    with counting("learning a vocabulary", "lines read") as counted:
        tokenizer = folder.train_tokenizer(
            files,
            vocab_size=vocab_size,
            algorithm=algorithm,
            library=library,
            tags=tag or (),
            progress=lambda n_lines, n_characters: counted(n_lines),
        )
    with locked(run):
        _refuse(run, overwrite)  # again: another process may have been faster
        sweep(run)
        _publish(run, tokenizer)
    _report(run, tokenizer, files, vocab_size)


def _refuse(run: Path, overwrite: bool) -> None:
    """Keep a tokenizer that is there, unless told otherwise; keep anything else in any case."""
    from seq2seq.checkpoint import refuse_model
    from seq2seq.ownership import TOKENIZER_LAYOUT, refuse_others
    from seq2seq.run import Run

    refuse_model(run)
    refuse_others(run / TOKENIZER, TOKENIZER_LAYOUT)
    if not (run / TOKENIZER).exists() or not any((run / TOKENIZER).iterdir()):
        return
    if not overwrite:
        raise UserError(
            f"{run / TOKENIZER}: exists already; use it as it is, give another -m, or --overwrite"
        )
    if Run(run).steps("checkpoints") or Run(run).steps("state"):
        raise UserError(f"{run}: holds a trained model, which needs its tokenizer; give another -m")


def _publish(run: Path, tokenizer: "Tokenizer") -> None:
    from seq2seq.recipe import publish_tokenizer

    publish_tokenizer(tokenizer, run / TOKENIZER)


def _report(run: Path, tokenizer: "Tokenizer", files: list[Path], asked: int) -> None:
    """Say what came of it."""
    from tokenizer.folder import describe

    got = f"{tokenizer.vocab_size:,} pieces"
    if tokenizer.vocab_size < asked:
        got += f" ({asked:,} asked for; the text has no more)"
    rows = [("vocabulary", got)]
    if all(path.is_file() for path in files):  # a pipe cannot be read again
        report = describe(tokenizer, files)
        rows += [
            ("measured on", f"{report.n_lines:,} lines, {report.n_characters:,} characters"),
            ("pieces per word", f"{report.pieces_per_word:.2f}"),
        ]
    say(f"{run / TOKENIZER}: written")
    summary(rows)
