"""`tfm translate`: text to text."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import (
    BatchTokens,
    BeamSize,
    Device,
    InputFile,
    LengthPenalty,
    Model,
    Precision,
    TgtLang,
    Threads,
    enough_memory,
    load_translator,
    search_config,
    setting_option,
)
from cli.streams import lines_from, lines_to, warn
from seq2seq.config import SearchConfig
from tokenizer.errors import UserError
from tokenizer.lines import LineReader

if TYPE_CHECKING:
    from seq2seq.translator import Translation, Translator

_FORMATS = ("text", "tsv", "jsonl")
_N_SHOWN = 10  # line numbers in a warning


def translate(
    file: InputFile = None,
    model: Model = Path("model"),
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Write here, whole or not at all, instead of to standard output.",
            show_default=False,
        ),
    ] = None,
    tgt_lang: TgtLang = None,
    beam_size: BeamSize = None,
    length_penalty: LengthPenalty = None,
    n_best: Annotated[int | None, setting_option(SearchConfig, "n_best")] = None,
    format: Annotated[
        str,
        typer.Option(
            metavar="text|tsv|jsonl",
            help="Output: text; line number, rank, score and text between tabs; or JSON lines.",
        ),
    ] = "text",
    batch_tokens: BatchTokens = 4096,
    min_len: Annotated[int | None, setting_option(SearchConfig, "min_len")] = None,
    max_len_factor: Annotated[
        float | None,
        setting_option(
            SearchConfig,
            "max_len_factor",
            metavar="A",
            help="Longest output, in tokens: so many times the source, "
            f"and {SearchConfig.max_len_extra} more.",
        ),
    ] = None,
    no_repeat_ngram: Annotated[int | None, setting_option(SearchConfig, "no_repeat_ngram")] = None,
    sample: Annotated[bool, setting_option(SearchConfig, "sample", "--sample")] = False,
    temperature: Annotated[
        float | None,
        setting_option(
            SearchConfig,
            "temperature",
            metavar="T",
            help="With --sample: below 1 keeps to the probable, above 1 is bolder.",
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        setting_option(
            SearchConfig,
            "top_k",
            metavar="K",
            help="With --sample: only the K most probable next tokens; 0 is all.",
        ),
    ] = None,
    top_p: Annotated[
        float | None,
        setting_option(
            SearchConfig,
            "top_p",
            metavar="P",
            help="With --sample: only the most probable next tokens, P of the mass together.",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        setting_option(
            SearchConfig, "seed", help="With --sample: the same seed gives the same output."
        ),
    ] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    threads: Threads = None,
) -> None:
    """Translate text, line by line.

    One line comes out for each line that goes in. A line that comes through a pipe or from the
    keyboard is answered at once. With --n-best N, each line becomes N lines, best first (empty ones
    where there are fewer translations). A line of --format jsonl is
    {"source": ..., "hypotheses": [{"text": ..., "score": ..., "log_prob": ...}]}.
    """
    config = search_config(
        {
            "beam_size": beam_size,
            "length_penalty": length_penalty,
            "n_best": n_best,
            "min_len": min_len,
            "max_len_factor": max_len_factor,
            "no_repeat_ngram": no_repeat_ngram,
            "sample": sample,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "seed": seed,
        }
    )
    if format not in _FORMATS:
        raise UserError(f"--format {format}: is not one of {', '.join(_FORMATS)}")
    with lines_from(file) as reader, lines_to(output) as writer:
        translator = load_translator(model, device, precision, threads, batch_tokens)
        with enough_memory(f"lower --batch-tokens, now {batch_tokens}"):
            for lines in _translations(translator, reader, config, format, tgt_lang):
                for line in lines:
                    writer.write(line)
                writer.flush()
    if format == "text":
        assert writer.n_lines == reader.n_lines * config.n_best
    _warn(reader, translator)


def _translations(
    translator: "Translator",
    reader: LineReader,
    config: SearchConfig,
    format: str,
    tgt_lang: str | None,
) -> Iterator[Iterator[str]]:
    """What to write for each window of lines."""
    from seq2seq.translator import WINDOW, tag_ids

    tag_ids(translator.tokenizer, tgt_lang)  # refused before anything is read
    n_before = 0
    for window in reader.windows(WINDOW):
        found = translator.alternatives(window, config, [tgt_lang] * len(window))
        rows = enumerate(zip(window, found, strict=True), start=n_before + 1)
        yield (
            line
            for number, (source, translations) in rows
            for line in _formatted(number, source, translations, format, config.n_best)
        )
        n_before += len(window)


def _formatted(
    number: int, source: str, translations: Sequence["Translation"], format: str, n_best: int
) -> Iterator[str]:
    """The lines that stand for the translations of one line."""
    match format:
        case "text":
            yield from (t.text for t in translations)
            yield from [""] * (n_best - len(translations))
        case "tsv":
            for rank, t in enumerate(translations, start=1):
                yield f"{number}\t{rank}\t{t.score:.6f}\t{t.text.replace(chr(9), ' ')}"
        case _:
            hypotheses = [
                {"text": t.text, "score": round(t.score, 6), "log_prob": round(t.log_prob, 6)}
                for t in translations
            ]
            document = {"source": source, "hypotheses": hypotheses}
            yield json.dumps(document, ensure_ascii=False, allow_nan=False)


def _warn(reader: LineReader, translator: "Translator") -> None:
    """Say what happened to which lines."""
    notes = translator.notes
    if reader.n_invalid:
        where = _numbers(reader.invalid_lines, reader.n_invalid)
        warn(f"{reader.name}: {where}: not UTF-8; the broken bytes were read as U+FFFD")
    if notes.split:
        where = _numbers(notes.split, len(notes.split))
        warn(
            f"{reader.name}: {where}: longer than {translator.longest} tokens; "
            "translated in parts, cut at sentence ends where there are any"
        )
    if notes.unfinished:
        where = _numbers(notes.unfinished, len(notes.unfinished))
        warn(
            f"{reader.name}: {where}: the translation came to no end and was cut; "
            "a larger --max-len-factor lets it go on"
        )


def _numbers(first: Sequence[int], n: int) -> str:
    """Line numbers in words.

    >>> _numbers([3], 1), _numbers([3, 5], 2)
    ('line 3', 'lines 3, 5')
    """
    shown = ", ".join(map(str, first[:_N_SHOWN]))
    more = f" and {n - _N_SHOWN} more" if n > _N_SHOWN else ""
    return f"line{'s' if n > 1 else ''} {shown}{more}"
