"""A model folder for another engine, and whether it still translates as the original does.

    export_engine(model, "int8", folder)                     CTranslate2's format, published
    report = compare(original, exported, lines)              on real sentences

The format is in `engine_format.py`; what is published, and what not, the command decides.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from seq2seq.checkpoint import Model
from seq2seq.config import SearchConfig
from seq2seq.engine_format import QUANTIZATIONS, engine_files, require_engine
from seq2seq.metrics import agreement, evaluate
from seq2seq.storage import publish_folder, temporary_folder
from seq2seq.translator import Translator
from tokenizer.errors import UserError

_WARM_UP = 8  # lines translated before the clock runs
_SEARCH = SearchConfig(max_repeats=0)  # the engine does not notice loops


@dataclass(frozen=True, slots=True)
class Parity:
    """How the translations of an exported model compare with those of the original.

    Attributes:
        n_lines: Lines translated by both, blank ones not counted.
        n_equal: Of these, with the same translation.
        bleu: Of the export, with the original's translations as references, over pieces.
        chrf: The same in chrF.
        speeds: Lines per second: original, export.
        scores: With references, for BLEU and chrF: name, original, export.
    """

    n_lines: int
    n_equal: int
    bleu: float
    chrf: float
    speeds: tuple[float, float]
    scores: tuple[tuple[str, float, float], ...] = ()


def export_engine(model: Model, quantization: str, folder: Path) -> None:
    """Publish a model for CTranslate2 under a new name.

    Args:
        model: The original.
        quantization: How the weights are stored, one of `QUANTIZATIONS`.
        folder: Where; must be new.

    Raises:
        UserError: When CTranslate2 is not installed, does not know the quantization, or the folder
            cannot be written.
    """
    if quantization not in QUANTIZATIONS:
        known = ", ".join(QUANTIZATIONS)
        raise UserError(f"--quantization {quantization}: is not one of {known}")
    require_engine()
    with temporary_folder(folder) as scratch:
        files = engine_files(model.config, model.weights, model.tokenizer, quantization, scratch)
    publish_folder(folder, files)


def compare(
    original: Translator,
    exported: Translator,
    lines: Sequence[str],
    references: Sequence[str] | None = None,
    tgt_lang: str | None = None,
) -> Parity:
    """Translate the same lines with both, with the default search but for its guard against loops.

    Args:
        original: The model that was exported.
        exported: What became of it.
        lines: Real sentences. Blank ones, whose translations are always equal, are left out.
        references: Their translations by people, if there are any.
        tgt_lang: What to translate into, where the model knows several languages.

    Raises:
        UserError: When there is nothing to translate, or not one reference a line.
    """
    if references is not None and len(references) != len(lines):
        raise UserError(f"{len(lines)} lines have {len(references)} references; give one for each")
    rows = [i for i, line in enumerate(lines) if line.strip()]
    if not rows:
        raise UserError("there are no sentences to compare translations of")
    lines = [lines[i] for i in rows]
    before, after = (_timed(t, lines, tgt_lang) for t in (original, exported))
    (texts, old_speed), (new_texts, new_speed) = before, after
    bleu, chrf = 100.0, 100.0  # sacreBLEU gives 0 to empty texts
    if texts != new_texts:
        bleu = agreement(*(original.tokenizer.encode_batch(t) for t in (new_texts, texts)))
        chrf = evaluate(new_texts, texts, names=["chrf"])[0].value
    scores: list[tuple[str, float, float]] = []
    if references is not None:
        some = [references[i] for i in rows]
        each = [evaluate(t, some, names=("bleu", "chrf")) for t in (texts, new_texts)]
        scores = [(old.name, old.value, new.value) for old, new in zip(*each, strict=True)]
    return Parity(
        n_lines=len(lines),
        n_equal=sum(a == b for a, b in zip(texts, new_texts, strict=True)),
        bleu=bleu,
        chrf=chrf,
        speeds=(old_speed, new_speed),
        scores=tuple(scores),
    )


def _timed(
    translator: Translator, lines: Sequence[str], tgt_lang: str | None
) -> tuple[list[str], float]:
    """Translations, and lines per second."""
    translator.translate(lines[:_WARM_UP], _SEARCH, tgt_lang=tgt_lang)
    start = time.perf_counter()
    texts = translator.translate(lines, _SEARCH, tgt_lang=tgt_lang)
    return texts, len(lines) / (time.perf_counter() - start)
