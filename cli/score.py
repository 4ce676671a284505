"""`tfm score`: how probable given translations are."""

import itertools
from pathlib import Path
from typing import Annotated

import typer

from cli.errors import enough_memory
from cli.formats import check_format, jsonl, tsv
from cli.models import load_translator
from cli.options import (
    BatchTokens,
    Device,
    LengthPenalty,
    Models,
    PrecisionOfUse,
    TgtLang,
    Threads,
    search_config,
)
from cli.streams import lines_to
from tokenizer.errors import UserError


def score(
    src: Annotated[Path, typer.Option(metavar="FILE", help="Source lines.")],
    tgt: Annotated[
        Path, typer.Option(metavar="FILE", help="Their translations, one for each line.")
    ],
    model: Models,
    tgt_lang: TgtLang = None,
    format: Annotated[
        str,
        typer.Option(
            metavar="text|tsv|jsonl",
            help="Output: the log-probability; or score and text, as `tfm translate` has them.",
        ),
    ] = "text",
    token_scores: Annotated[
        bool,
        typer.Option("--token-scores", help="Tokens and their log-probabilities in JSON lines."),
    ] = False,
    length_penalty: LengthPenalty = None,
    batch_tokens: BatchTokens = None,
    device: Device = "auto",
    precision: PrecisionOfUse = "auto",
    threads: Threads = None,
) -> None:
    """Say how probable given translations are.

    Writes one number for each pair of lines: the natural logarithm of the probability that the
    model gives to this translation of this source, its end included. --format tsv and jsonl are those
    of `tfm translate`, and so are their scores. Computed in float32 if nothing else is asked for, by
    an export to CTranslate2 in the precision it is stored in.
    """
    from seq2seq.aligned import check_files, read_pairs
    from seq2seq.segments import tag_ids
    from seq2seq.translator import WINDOW

    check_format(format, token_scores)
    penalty = search_config({"length_penalty": length_penalty}).length_penalty
    check_files([src], [tgt])
    translator = load_translator(model, device, precision, threads, batch_tokens, exact=True)
    tag_ids(translator.tokenizer, tgt_lang)  # refused before anything is read
    tokenizer = translator.tokenizer if token_scores else None
    pairs = read_pairs([src], [tgt])
    numbers = itertools.count(1)
    with (
        lines_to(None) as writer,
        enough_memory(f"lower --batch-tokens, now {translator.batch_tokens}"),
    ):
        while window := list(itertools.islice(pairs, WINDOW)):
            try:
                results = translator.score(window, tgt_lang, penalty)
            except UserError as error:
                raise UserError(f"{src}, {tgt}: {error}") from None
            for (source, _), result, number in zip(window, results, numbers, strict=False):
                match format:
                    case "text":  # + 0.0: never "-0.000000"
                        writer.write(f"{round(result.log_prob, 6) + 0.0:.6f}")
                    case "tsv":
                        writer.write(*tsv(number, [result]))
                    case _:
                        writer.write(jsonl(source, [result], tokenizer))
            writer.flush()
