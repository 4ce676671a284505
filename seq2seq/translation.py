"""What becomes of a line: its translations, and what is worth knowing about it."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from seq2seq.config import SearchConfig
from seq2seq.hypotheses import Hypothesis
from tokenizer.base import Tokenizer
from tokenizer.lines import Lines
from tokenizer.special import EOS


@dataclass(frozen=True, slots=True)
class Translation:
    """One translation of one line.

    Attributes:
        text: The translation.
        score: What alternatives are ranked by; length-normalised log-probability.
        log_prob: Natural logarithm of its probability, summed over its segments.
        token_log_probs: The same, one a token.
        finished: Whether the model came to an end by itself, or was cut at the longest length.
        ids: The tokens of `token_log_probs`; EOS ends each segment that came to an end by itself.
    """

    text: str
    score: float
    log_prob: float
    token_log_probs: tuple[float, ...] = ()
    finished: bool = True
    ids: tuple[int, ...] = ()


@dataclass(slots=True)
class Notes:
    """What a user should know about the lines translated so far.

    Attributes:
        split: Lines that were cut into segments.
        unfinished: Lines with a translation that was cut at the longest length.
        looping: Lines whose translation repeats itself as often as is allowed.
    """

    split: Lines = field(default_factory=Lines)
    unfinished: Lines = field(default_factory=Lines)
    looping: Lines = field(default_factory=Lines)


def join(
    parts: Sequence[Sequence[Hypothesis]], tokenizer: Tokenizer, config: SearchConfig
) -> list[Translation]:
    """The translations of a line from those of its segments, rank by rank.

    A model that was trained with BPE-dropout finds one text in several pieces, so the n best are those
    that differ as texts, filled up with others where there are too few. What is drawn at random stays.

    Args:
        parts: Of each segment the hypotheses, best first; none empty.
        tokenizer: Turns them into text.
        config: Reads `n_best` and `sample`.
    """
    results = []
    for rank in range(max(len(part) for part in parts)):
        chosen = [part[min(rank, len(part) - 1)] for part in parts]
        texts = tokenizer.decode_batch([h.ids for h in chosen])
        results.append(
            Translation(
                text=" ".join(text.strip() for text in texts),
                score=sum(h.score for h in chosen) / len(chosen),
                log_prob=sum(h.log_prob for h in chosen),
                token_log_probs=tuple(itertools.chain(*(h.token_log_probs for h in chosen))),
                finished=all(h.finished for h in chosen),
                ids=tuple(itertools.chain(*(_ids_with_end(h) for h in chosen))),
            )
        )
    return results if config.sample else _different(results, config.n_best)


def _different(ranked: list[Translation], n: int) -> list[Translation]:
    """The n best different texts, in their order; repeated ones only where there are fewer."""
    texts = [t.text for t in ranked]
    is_repeated = [text in texts[:i] for i, text in enumerate(texts)]
    chosen = sorted(range(len(ranked)), key=lambda i: is_repeated[i])[:n]  # stable
    return [ranked[i] for i in sorted(chosen)]


def _ids_with_end(hypothesis: Hypothesis) -> tuple[int, ...]:
    return (*hypothesis.ids, EOS) if hypothesis.finished else hypothesis.ids
