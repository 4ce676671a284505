"""BLEU, chrF and TER with their signatures, all through sacreBLEU (Post 2018, arXiv 1804.08771).

sacreBLEU's own functions score lists of unequal length in silence; here that is an error.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sacrebleu.metrics import BLEU, CHRF, TER

from tokenizer.errors import UserError

# Each metric, from the tokenization of BLEU and whether case is ignored.
_MAKERS: Mapping[str, Callable[[str, bool], Any]] = {
    "bleu": lambda tokenize, lowercase: _bleu(tokenize, lowercase),
    "chrf": lambda tokenize, lowercase: CHRF(lowercase=lowercase),
    "ter": lambda tokenize, lowercase: TER(),
}
METRICS = tuple(_MAKERS)
TOKENIZERS = (
    "13a",
    "none",
    "intl",
    "char",
    "zh",
    "ja-mecab",
    "ko-mecab",
    "spm",
    "flores101",
    "flores200",
)


_ORDER = 4  # words in a row, of BLEU
_FEW = 5  # of so many lines one must have that many words
_LONG_WORD = 16  # characters; no language with spaces between words has as long ones on average


@dataclass(frozen=True, slots=True)
class Score:
    """One metric of one system.

    Attributes:
        name: BLEU, chrF2 or TER.
        value: From 0 to 100 (TER may be more, and less is better).
        signature: What makes the value comparable, sacreBLEU's own.
    """

    name: str
    value: float
    signature: str


def evaluate(
    hypotheses: Sequence[str],
    references: Sequence[str],
    tokenize: str = "13a",
    lowercase: bool = False,
    names: Sequence[str] = METRICS,
) -> list[Score]:
    """Score translations of a test set.

    Args:
        hypotheses: One line a sentence.
        references: As many lines.
        tokenize: sacreBLEU's tokenization for BLEU; `none` for text that is tokenised already.
        lowercase: Whether BLEU and chrF ignore case; TER always does, as in sacreBLEU.
        names: Which of `METRICS`. TER takes seconds for each line of some hundred words.

    Raises:
        UserError: When the counts differ, there is nothing to score, or as `check_tokenize` and
            `check_metrics`.
    """
    if len(hypotheses) != len(references):
        raise UserError(
            f"{len(hypotheses)} translations but {len(references)} references; "
            "line n of one must belong to line n of the other"
        )
    if not references:
        raise UserError("no sentences to score; the reference is empty")
    check_metrics(names)
    metrics = [_MAKERS[name](tokenize, lowercase) for name in names]
    return [_score(metric, list(hypotheses), list(references)) for metric in metrics]


def tokenization_of(references: Sequence[str]) -> str:
    """What BLEU should count in these lines: words, by `13a`, or characters, where it would be 0.

    BLEU looks for four words in a row, and a word is what stands between spaces. Some scripts have no
    spaces between words, and some lines are short: then it is 0, however good the translations.

    >>> tokenization_of(["Ein Mann fährt auf seinem Rad."]), tokenization_of(["一个男人在骑自行车。"])
    ('13a', 'char')
    """
    lines = [line.split() for line in references]
    n_long = sum(len(words) >= _ORDER for words in lines)
    n_words, n_characters = sum(map(len, lines)), sum(len("".join(words)) for words in lines)
    has_words = n_long * _FEW >= len(lines) and n_characters <= _LONG_WORD * n_words
    return "13a" if has_words else "char"


def check_metrics(names: Sequence[str]) -> None:
    """Refuse a metric that there is not.

    Raises:
        UserError: Naming it.
    """
    for name in names:
        if name not in METRICS:
            raise UserError(f"--metric {name}: is not one of {', '.join(METRICS)}")


def check_tokenize(name: str) -> None:
    """Refuse a tokenization that there is not, or not here; some need a package, others a download.

    Raises:
        UserError: Naming it, and what sacreBLEU says.
    """
    _bleu(name, lowercase=False)


def agreement(hypotheses: Sequence[Sequence[int]], references: Sequence[Sequence[int]]) -> float:
    """BLEU of translations with other translations as references, over ids of pieces.

    Pieces are words of any language, where BLEU's own words are those between spaces. If no
    translation is four pieces long, the longest count.

    >>> agreement([[5, 6], [7]], [[5, 6], [7]])
    100.0
    """
    metric = BLEU(tokenize="none", force=True, effective_order=True)
    one, other = ([" ".join(map(str, ids)) for ids in s] for s in (hypotheses, references))
    return round(
        float(metric.corpus_score(one, [other]).score), 10
    )  # 100 comes as 100.00000000000004


def _bleu(tokenize: str, lowercase: bool) -> Any:
    if tokenize not in TOKENIZERS:
        raise UserError(f"--tokenize {tokenize}: is not one of {', '.join(TOKENIZERS)}")
    try:
        return BLEU(tokenize=tokenize, lowercase=lowercase, force=tokenize == "none")
    except (ImportError, RuntimeError, OSError, SystemExit) as error:
        why = " ".join(str(error).split())
        raise UserError(f"--tokenize {tokenize}: not available here ({why})") from None


def _score(metric: Any, hypotheses: list[str], references: list[str]) -> Score:
    result = metric.corpus_score(hypotheses, [references])
    signature = str(metric.get_signature())
    value = round(float(result.score), 10)  # 100 comes as 100.00000000000004
    return Score(result.name, value, signature)
