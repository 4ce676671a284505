"""`tfm score`: how probable given translations are."""

import itertools
from pathlib import Path
from typing import Annotated

import typer

from cli.options import (
    BatchTokens,
    Device,
    Model,
    Precision,
    TgtLang,
    Threads,
    enough_memory,
    load_translator,
)
from cli.streams import lines_to
from tokenizer.errors import UserError


def score(
    src: Annotated[Path, typer.Option(metavar="FILE", help="Source lines.")],
    tgt: Annotated[
        Path, typer.Option(metavar="FILE", help="Their translations, one for each line.")
    ],
    model: Model = Path("model"),
    tgt_lang: TgtLang = None,
    batch_tokens: BatchTokens = 4096,
    device: Device = "auto",
    precision: Precision = "auto",
    threads: Threads = None,
) -> None:
    """Say how probable given translations are.

    Writes one number for each pair of lines: the natural logarithm of the probability that the
    model gives to this translation of this source.
    """
    from seq2seq.aligned import check_files, read_pairs
    from seq2seq.translator import WINDOW, tag_ids

    check_files([src], [tgt])
    translator = load_translator(model, device, precision, threads, batch_tokens)
    tag_ids(translator.tokenizer, tgt_lang)  # refused before anything is read
    pairs = read_pairs([src], [tgt])
    with lines_to(None) as writer, enough_memory(f"lower --batch-tokens, now {batch_tokens}"):
        while window := list(itertools.islice(pairs, WINDOW)):
            try:
                results = translator.score(window, tgt_lang)
            except UserError as error:
                raise UserError(f"{src}, {tgt}: {error}") from None
            for result in results:
                writer.write(f"{round(result.log_prob, 6) + 0.0:.6f}")  # + 0.0: never "-0.000000"
            writer.flush()
