"""How translations are written: as text, as a table, or as JSON lines.

A JSON line is the same for `tfm translate` and `tfm score`:

    {"source": "...", "hypotheses": [{"text": "...", "score": -0.4, "log_prob": -1.2}]}

Hypotheses come best first. `log_prob` is the natural logarithm of the probability of the translation
with its end, `score` the same over a norm of its length (`length_norm`). With `--token-scores` a
hypothesis also has `tokens`, the pieces it is made of (a space is `▁`, its end `</s>`; a line
translated in parts has several ends, one that was cut has none), and `token_log_probs`, a number for each.
"""

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from tokenizer.base import Tokenizer
from tokenizer.errors import UserError
from tokenizer.special import EOS

if TYPE_CHECKING:
    from seq2seq.translation import Translation

FORMATS = ("text", "tsv", "jsonl")
_DIGITS = 6


def check_format(name: str, token_scores: bool) -> None:
    """Refuse a format that there is not, or one that has no place for what is asked.

    Raises:
        UserError: Naming the option.
    """
    if name not in FORMATS:
        raise UserError(f"--format {name}: is not one of {', '.join(FORMATS)}")
    if token_scores and name != "jsonl":
        raise UserError("--token-scores: needs --format jsonl")


def tsv(number: int, translations: Sequence["Translation"]) -> Iterator[str]:
    """One line a translation: line number, rank, score and text between tabs."""
    for rank, t in enumerate(translations, start=1):
        yield f"{number}\t{rank}\t{_rounded(t.score):.6f}\t{t.text.replace(chr(9), ' ')}"


def jsonl(source: str, translations: Sequence["Translation"], tokenizer: Tokenizer | None) -> str:
    """One line for all translations of a source.

    Args:
        source: What was translated.
        translations: Best first.
        tokenizer: Shows the tokens, where they are wanted.
    """
    hypotheses = [_hypothesis(t, tokenizer) for t in translations]
    document = {"source": source, "hypotheses": hypotheses}
    return json.dumps(document, ensure_ascii=False, allow_nan=False)


def _hypothesis(t: "Translation", tokenizer: Tokenizer | None) -> dict[str, object]:
    found = {"text": t.text, "score": _rounded(t.score), "log_prob": _rounded(t.log_prob)}
    if tokenizer is None:
        return found
    tokens = ["</s>" if i == EOS else tokenizer.show([i])[0] for i in t.ids]
    return {**found, "tokens": tokens, "token_log_probs": [_rounded(x) for x in t.token_log_probs]}


def _rounded(number: float) -> float:
    return round(number, _DIGITS) + 0.0  # never "-0.0"
