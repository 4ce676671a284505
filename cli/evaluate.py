"""`tfm evaluate`: BLEU, chrF and TER of translations."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.errors import enough_memory
from cli.models import load_translator
from cli.options import (
    BatchTokens,
    BeamSize,
    Device,
    LengthPenalty,
    Model,
    PrecisionOfUse,
    TgtLang,
    Threads,
    refuse_given,
    search_config,
)
from cli.streams import escape, warn
from tokenizer.errors import UserError
from tokenizer.lines import read_lines

if TYPE_CHECKING:
    from seq2seq.config import SearchConfig
    from seq2seq.metrics import Score
    from seq2seq.translator import Translator


_OF_MODEL = (  # options
    "model",
    "tgt_lang",
    "beam_size",
    "length_penalty",
    "batch_tokens",
    "device",
    "precision",
    "threads",
)


def evaluate(
    context: typer.Context,
    ref: Annotated[Path, typer.Option(metavar="FILE", help="Reference translations.")],
    src: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Source lines, to be translated by the model.", show_default=False
        ),
    ] = None,
    hyp: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="Finished translations; several files are several systems."
        ),
    ] = None,
    more: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[FILE]...",
            help="Further files for --hyp, shown after those.",
            show_default=False,
        ),
    ] = None,
    model: Model = Path("model"),
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="bleu|chrf|ter",
            help="What to score by; may be given several times, as TER takes long for long lines.  "
            "[default: all three]",
            show_default=False,
        ),
    ] = None,
    tokenize: Annotated[
        str,
        typer.Option(metavar="13a|none|intl|char|...", help="sacreBLEU's tokenization for BLEU."),
    ] = "13a",
    lowercase: Annotated[bool, typer.Option("--lowercase", help="Ignore case.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write one JSON object instead of a table.")
    ] = False,
    tgt_lang: TgtLang = None,
    beam_size: BeamSize = None,
    length_penalty: LengthPenalty = None,
    batch_tokens: BatchTokens = None,
    device: Device = "auto",
    precision: PrecisionOfUse = "auto",
    threads: Threads = None,
) -> None:
    """Score translations by BLEU, chrF and TER.

    The translations are made by the model from --src, or read from --hyp. The scores are those of
    sacreBLEU; they can be compared where their signatures are the same.
    """
    from seq2seq import metrics

    names = list(dict.fromkeys(metric or metrics.METRICS))
    metrics.check_metrics(names)
    config = search_config({"beam_size": beam_size, "length_penalty": length_penalty})
    files = [*(hyp or []), *(more or [])]
    if (src is None) == (not files):
        raise UserError("give either --src, to translate it, or --hyp, translations to score")
    if src is None:
        refuse_given(context, _OF_MODEL, "--src, which a model translates")
    references = list(read_lines(ref))
    systems = {str(path): _aligned(path, ref, references) for path in ([src] if src else files)}
    metrics.check_tokenize(tokenize)
    counts_words = "bleu" in names and tokenize == "13a"
    if counts_words and metrics.tokenization_of(references) != "13a":
        warn(
            f"{ref}: few lines have four words between spaces, or these are very long, so BLEU says "
            "little; --tokenize char counts characters (zh, ja-mecab and ko-mecab are for those "
            "languages)"
        )
    if src is not None:
        translator = load_translator(model, device, precision, threads, batch_tokens)
        with enough_memory(f"lower --batch-tokens, now {translator.batch_tokens}"):
            systems = {str(model): _translated(systems[str(src)], translator, config, tgt_lang)}
    scores = {
        name: metrics.evaluate(lines, references, tokenize, lowercase, names)
        for name, lines in systems.items()
    }
    sys.stdout.write(_json(scores) if as_json else _table(scores))


def _aligned(path: Path, ref: Path, references: Sequence[str]) -> list[str]:
    """Read a file that must have a line for each reference."""
    lines = list(read_lines(path))
    if len(lines) != len(references):
        raise UserError(
            f"{path} has {len(lines)} lines and {ref} has {len(references)}; "
            "line n of one must belong to line n of the other"
        )
    if not references:
        raise UserError(f"{ref}: is empty; there are no sentences to score")
    return lines


def _translated(
    lines: Sequence[str],
    translator: "Translator",
    config: "SearchConfig",
    tgt_lang: str | None,
) -> list[str]:
    from cli.console import counting

    translations: list[str] = []
    with counting("translating", "lines", len(lines)) as counted:
        for line in translator.stream(lines, config, tgt_lang=tgt_lang):
            translations.append(line)
            counted(len(translations))
    return translations


def _table(systems: dict[str, list["Score"]]) -> str:
    """Scores in columns, then the signatures that make them comparable."""
    (metrics, *_) = systems.values()
    names = [escape(name) for name in systems]
    width = max(map(len, ["system", *names]))
    lines = [f"{'system':{width}}" + "".join(f"{m.name:>8}" for m in metrics)]
    for name, scores in zip(names, systems.values(), strict=True):
        lines.append(f"{name:{width}}" + "".join(f"{s.value:8.2f}" for s in scores))
    longest = max(len(m.name) for m in metrics)
    lines += ["", *(f"{m.name:{longest}} {m.signature}" for m in metrics)]
    return "\n".join(lines) + "\n"


def _json(systems: dict[str, list["Score"]]) -> str:
    document = {
        "systems": [
            {
                "name": name,
                "metrics": [
                    {"name": s.name, "score": s.value, "signature": s.signature} for s in scores
                ],
            }
            for name, scores in systems.items()
        ]
    }
    return json.dumps(document, ensure_ascii=False, allow_nan=False) + "\n"
