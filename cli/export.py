"""`tfm export`: a run to a folder that stands alone, for tfm or for another engine."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.models import load_translator
from cli.options import Model, Overwrite, TgtLang, Threads, refuse_given
from cli.streams import say
from tokenizer.errors import UserError
from tokenizer.lines import read_lines

if TYPE_CHECKING:
    from seq2seq.export import Parity
    from tokenizer.base import Tokenizer

_FORMATS = ("ctranslate2", "safetensors")
_OF_ENGINE = ("quantization", "check", "check_ref", "min_bleu", "tgt_lang", "threads")  # options
_N_CHECKED = 200  # sentences of the training data, where no others are given


def export(
    context: typer.Context,
    to: Annotated[
        str,
        typer.Option(
            metavar="|".join(_FORMATS),
            help="Format of the export: for the engine CTranslate2, or for tfm itself.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Where the export goes.")
    ],
    model: Model = Path("model"),
    quantization: Annotated[
        str | None,
        typer.Option(
            metavar="int8|float16|...",
            help="How CTranslate2 stores the weights: float32, float16, bfloat16, int16, int8, or "
            "int8_float32, int8_float16, int8_bfloat16.  [default: float32]",
            show_default=False,
        ),
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Real source lines to compare translations on; "
            f"{_N_CHECKED} of the run's training data if not given.",
            show_default=False,
        ),
    ] = None,
    check_ref: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Their reference translations, to see the difference in BLEU.",
            show_default=False,
        ),
    ] = None,
    min_bleu: Annotated[
        float,
        typer.Option(
            min=0,
            max=100,
            metavar="X",
            help="Write nothing if the translations of the export, with those of the original as "
            "references, score less BLEU, over pieces.",
        ),
    ] = 90.0,
    tgt_lang: TgtLang = None,
    threads: Threads = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a model into a folder of its own.

    The folder holds all that translating needs, and nothing of the training; it can be given away, and
    -m takes it. One for CTranslate2 is only written if it translates real sentences as the original
    does; how alike they are, how fast and how large, is said at the end.
    """
    if to not in _FORMATS:
        raise UserError(f"--to {to}: is not one of {', '.join(_FORMATS)}")
    if to == "safetensors":
        refuse_given(context, _OF_ENGINE, "--to ctranslate2")
    if check_ref is not None and check is None:
        raise UserError(
            f"--check-ref {check_ref}: needs --check, the lines that these are references for"
        )
    from seq2seq import checkpoint, storage
    from seq2seq.ownership import refuse_inside_run

    refuse_inside_run(output)
    if output.exists():
        _check_replaceable(output, overwrite)
    from seq2seq.export import export_engine
    from seq2seq.segments import tag_ids

    saved = checkpoint.load_model(model)
    if os.path.realpath(output) == os.path.realpath(saved.folder):
        raise UserError(f"{output}: is the model to export; give another -o")
    if to == "safetensors":
        files = checkpoint.model_files(saved.config, saved.weights, saved.tokenizer)
        storage.publish_folder(output, files, replace=True)
    else:
        tag_ids(saved.tokenizer, tgt_lang)  # refused before anything is written
        lines, references = _sentences(model, saved.tokenizer, check, check_ref)
        with storage.temporary_folder(output) as new:
            folder = new / "model"
            export_engine(saved, quantization or "float32", folder)
            parity = _parity(saved.folder, folder, threads, lines, references, tgt_lang)
            _report(parity, len(lines), _size(saved.folder), _size(folder))
            if parity.bleu < min_bleu:
                raise UserError(
                    f"{output}: not written: its translations score {parity.bleu:.1f} BLEU against "
                    f"those of the original, less than --min-bleu {min_bleu:g}; try another "
                    "--quantization"
                )
            storage.replace_folder(folder, output)
    say(f"{output}: the model of {saved.folder}")


def _check_replaceable(output: Path, overwrite: bool) -> None:
    """Refuse to replace what is there unless that was asked for, and it is an export."""
    from seq2seq.checkpoint import CONFIG
    from seq2seq.ownership import MODEL_LAYOUT, refuse_others
    from seq2seq.storage import MANIFEST

    if not output.is_dir():
        raise UserError(f"{output}: is a file; -o names a folder")
    is_empty = not any(output.iterdir())
    if not (is_empty or overwrite):
        raise UserError(f"{output}: is not empty; give another -o, or --overwrite")
    if not (is_empty or ((output / CONFIG).is_file() and (output / MANIFEST).is_file())):
        raise UserError(f"{output}: holds something other than a model; give another -o")
    refuse_others(output, MODEL_LAYOUT, "-o")


def _sentences(
    model: Path, tokenizer: "Tokenizer", check: Path | None, check_ref: Path | None
) -> tuple[list[str], list[str] | None]:
    """Source lines to compare on, and references where there are any."""
    from seq2seq.aligned import read_pairs
    from seq2seq.corpus import some_sources
    from seq2seq.run import run_of

    if check is None:
        lines = some_sources(run_of(model).data, tokenizer, _N_CHECKED)
        if not lines:
            raise UserError(f"{model}: no training data here to compare on; give lines by --check")
        return lines, None
    references = None
    if check_ref is None:
        lines = list(read_lines(check))
    else:
        pairs = list(read_pairs([check], [check_ref]))
        lines, references = [src for src, _ in pairs], [ref for _, ref in pairs]
    if not any(line.strip() for line in lines):
        raise UserError(f"--check {check}: there is no sentence in it to compare translations of")
    return lines, references


def _parity(
    original: Path,
    exported: Path,
    threads: int | None,
    lines: Sequence[str],
    references: Sequence[str] | None,
    tgt_lang: str | None,
) -> "Parity":
    """Compare on the CPU, where both engines run on every machine."""
    from seq2seq.export import compare

    return compare(
        load_translator(original, "cpu", "fp32", threads),
        load_translator(exported, "cpu", "auto", threads),
        lines,
        references,
        tgt_lang,
    )


def _size(folder: Path) -> float:
    """Megabytes of a model folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def _report(parity: "Parity", n_lines: int, old_size: float, new_size: float) -> None:
    """Say how an export compares with the original."""
    share = parity.n_equal / parity.n_lines
    old_speed, new_speed = parity.speeds
    n_blank = n_lines - parity.n_lines
    left_out = f" ({n_blank:,} blank ones left out)" if n_blank else ""
    say(f"compared on {parity.n_lines:,} lines{left_out} with the original in fp32")
    say(f"  equal translations   {parity.n_equal:,} ({share:.1%})")
    say(f"  one against other    {parity.bleu:.2f} BLEU over pieces, {parity.chrf:.2f} chrF")
    for name, old, new in parity.scores:
        say(f"  {name:5} of references  {old:.2f} → {new:.2f} ({new - old:+.2f})")
    say(f"  speed, lines/s       {old_speed:.1f} → {new_speed:.1f}")
    say(f"  size, MB             {old_size:.1f} → {new_size:.1f}")
