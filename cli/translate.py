"""`tfm translate`: text to text."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.errors import enough_memory
from cli.formats import check_format, jsonl, tsv
from cli.models import load_translator
from cli.options import (
    BatchTokens,
    BeamSize,
    Device,
    InputFile,
    LengthPenalty,
    Models,
    PrecisionOfUse,
    TgtLang,
    Threads,
    search_config,
    setting_option,
)
from cli.streams import STDOUT, lines_from, lines_to, warn
from seq2seq.config import SearchConfig
from tokenizer.base import Tokenizer
from tokenizer.errors import UserError
from tokenizer.lines import LineReader, Lines, read_lines

if TYPE_CHECKING:
    from seq2seq.translation import Translation
    from seq2seq.translator import Translator

_LINE_BY_LINE = "line n of one must belong to line n of the other"


def translate(
    model: Models,
    file: InputFile = None,
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
    token_scores: Annotated[
        bool,
        typer.Option("--token-scores", help="Tokens and their log-probabilities in JSON lines."),
    ] = False,
    prefix: Annotated[
        bool,
        typer.Option(
            "--prefix",
            help="A tab in a line ends the source; its translation begins with the rest.",
        ),
    ] = False,
    prefix_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="What the translation of each line must begin with, line by line.",
            show_default=False,
        ),
    ] = None,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Translate every line alone, in float32 if nothing else is asked for (CTranslate2: as "
            "stored), so that no other line changes a bit of it; refuse what is not UTF-8. Slower.",
        ),
    ] = False,
    batch_tokens: BatchTokens = None,
    min_len: Annotated[int | None, setting_option(SearchConfig, "min_len")] = None,
    max_len_factor: Annotated[
        float | None,
        setting_option(
            SearchConfig,
            "max_len_factor",
            metavar="A",
            help="Longest output, in tokens: this many times the source, "
            f"and {SearchConfig.max_len_extra} more.",
        ),
    ] = None,
    no_repeat_ngram: Annotated[int | None, setting_option(SearchConfig, "no_repeat_ngram")] = None,
    max_repeats: Annotated[
        int | None,
        setting_option(
            SearchConfig,
            "max_repeats",
            help="How often in a row the same few words may come, unless they do so in the source; "
            "0 is any number.",
        ),
    ] = None,
    beam_groups: Annotated[
        int | None,
        setting_option(
            SearchConfig,
            "beam_groups",
            help="For an --n-best that differs more: groups of the beam that avoid each other's words.",
        ),
    ] = None,
    diversity_penalty: Annotated[
        float | None,
        setting_option(
            SearchConfig,
            "diversity_penalty",
            metavar="A",
            help="With --beam-groups: what a word loses in log-probability for each use elsewhere.",
        ),
    ] = None,
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
    precision: PrecisionOfUse = "auto",
    threads: Threads = None,
) -> None:
    """Translate text, line by line.

    One line comes out for each line that goes in. A line that comes through a pipe or from the
    keyboard is answered at once. With --n-best N, each line becomes N lines, best first (empty ones
    where there are fewer translations). A line of --format jsonl is
    {"source": ..., "hypotheses": [{"text": ..., "score": ..., "log_prob": ...}]}, with
    --token-scores also "tokens" and "token_log_probs". Formats with scores are computed in float32 if
    nothing else is asked for, by an export to CTranslate2 in the precision it is stored in.
    """
    config = search_config(
        {
            "beam_size": beam_size,
            "length_penalty": length_penalty,
            "n_best": n_best,
            "min_len": min_len,
            "max_len_factor": max_len_factor,
            "no_repeat_ngram": no_repeat_ngram,
            "max_repeats": max_repeats,
            "beam_groups": beam_groups,
            "diversity_penalty": diversity_penalty,
            "sample": sample,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "seed": seed,
        }
    )
    check_format(format, token_scores)
    if prefix and prefix_file:
        raise UserError("--prefix-file: the prefixes are in the input already; leave out --prefix")
    if prefix_file is not None and not prefix_file.exists():
        raise UserError(f"{prefix_file}: no such file; check the path")
    from seq2seq.ownership import refuse_inside_run
    from seq2seq.segments import tag_ids

    from_stdin = file is None or str(file) == "-"
    inputs = [Path("/dev/stdin") if from_stdin else file, prefix_file]
    if output is None or str(output) in STDOUT:
        _refuse_input(Path("/dev/stdout"), inputs)  # what is appended would be read in turn
    else:
        refuse_inside_run(output)
        _refuse_input(output, inputs)
    exact = strict or format != "text"
    with_scores = format != "text" or config.n_best > 1  # an order by scores shows them too
    batch_tokens = 1 if strict else batch_tokens
    with lines_from(file, strict=strict) as reader, lines_to(output) as writer:
        translator = load_translator(model, device, precision, threads, batch_tokens, exact)
        tag_ids(translator.tokenizer, tgt_lang)  # refused before anything is read
        translator.batches.check(config, guard_is_asked_for=max_repeats is not None)
        tokenizer = translator.tokenizer if token_scores else None
        with enough_memory(f"lower --batch-tokens, now {translator.batch_tokens}"):
            numbers = itertools.count(1)
            for sources, beginnings in _windows(reader, prefix, prefix_file):
                tags = [tgt_lang] * len(sources)
                found = translator.alternatives(sources, config, tags, beginnings, with_scores)
                for source, translations, number in zip(sources, found, numbers, strict=False):
                    for line in _lines(number, source, translations, format, tokenizer, config):
                        writer.write(line)
                writer.flush()
    if format == "text":
        assert writer.n_lines == reader.n_lines * config.n_best
    _warn(reader, translator)


def _refuse_input(output: Path, inputs: Sequence[Path | None]) -> None:
    """Keep translations from taking the place of what they are made from."""
    for path in inputs:
        if path is not None and path.is_file() and output.is_file() and output.samefile(path):
            raise UserError(f"{output}: is read for this; give another -o")


def _windows(
    reader: LineReader, prefix: bool, prefix_file: Path | None
) -> Iterator[tuple[list[str], list[str] | None]]:
    """Windows of lines, with what their translations must begin with.

    Raises:
        UserError: When the lines of the two files are not equally many.
    """
    from seq2seq.translator import WINDOW

    prefixes = None if prefix_file is None else read_lines(prefix_file)
    for window in reader.windows(WINDOW):
        if prefix:
            parts = [line.partition("\t") for line in window]
            yield [source for source, _, _ in parts], [rest for _, _, rest in parts]
        elif prefixes is None:
            yield window, None
        else:
            some = list(itertools.islice(prefixes, len(window)))
            if len(some) < len(window):
                raise UserError(
                    f"{prefix_file}: has fewer lines than {reader.name}; {_LINE_BY_LINE}"
                )
            yield window, some
    if prefixes is not None and next(prefixes, None) is not None:
        raise UserError(
            f"{prefix_file}: has more lines than {reader.name}, which has {reader.n_lines}; "
            + _LINE_BY_LINE
        )


def _lines(
    number: int,
    source: str,
    translations: Sequence["Translation"],
    format: str,
    tokenizer: Tokenizer | None,
    config: SearchConfig,
) -> Iterator[str]:
    """The lines that stand for the translations of one line."""
    match format:
        case "text":
            yield from (t.text for t in translations)
            yield from [""] * (config.n_best - len(translations))
        case "tsv":
            yield from tsv(number, translations)
        case _:
            yield jsonl(source, translations, tokenizer)


def _warn(reader: LineReader, translator: "Translator") -> None:
    """Say what happened to which lines."""
    notes = translator.notes
    happened = (
        (reader.invalid, "not UTF-8; the broken bytes were read as U+FFFD"),
        (
            notes.split,
            f"longer than {translator.longest} tokens; "
            "translated in parts, cut at sentence ends where there are any",
        ),
        (
            notes.unfinished,
            "the translation did not end and was cut; a larger --max-len-factor lets it go on",
        ),
        (
            notes.looping,
            "the translation repeats itself and was stopped; "
            "allow more with a larger --max-repeats, or 0",
        ),
    )
    for lines, what in happened:
        if lines.n:
            warn(f"{reader.name}: {_numbers(lines)}: {what}")


def _numbers(lines: Lines) -> str:
    """Line numbers in words.

    >>> _numbers(Lines(1, [3])), _numbers(Lines(2, [3, 5])), _numbers(Lines(30, [3, 5]))
    ('line 3', 'lines 3, 5', '30 lines (3, 5, …)')
    """
    shown = ", ".join(map(str, lines.first))
    if lines.n > len(lines.first):
        return f"{lines.n} lines ({shown}, …)"
    return f"line{'s' if lines.n > 1 else ''} {shown}"
