"""Random segmentations of words: BPE-dropout and unigram sampling.

The libraries can do both, but only from random generators that nobody can seed. Here a
segmentation is a pure function of the word, the strength and a number, so that training repeats
exactly. It also lets us keep what was once computed: sampling a word costs little more than looking
it up.
"""

import math
import random
import zlib
from collections.abc import Callable, Iterable, Mapping

from tokenizer.errors import UserError

_N_VARIANT_BITS = 5
_MAX_WORDS = 1 << 15  # in the table: some 100 MB; the frequent words are met, and kept, first
_MAX_WORD_LENGTH = 64  # of a word in the table
_UNKNOWN = -20.0  # log-probability of a character that is no piece


class WordSampler:
    """Draws each word's segmentation from 32 random ones, computed when first asked for."""

    def __init__(self, segment: Callable[[str, float, random.Random], list[int]]) -> None:
        """Sample with `segment(word, dropout, rng)`, which gives the ids of one segmentation."""
        self._segment = segment
        self._dropout = 0.0
        self._table: dict[str, list[tuple[int, ...] | None]] = {}

    def sample(self, words: Iterable[str], dropout: float, rng: random.Random) -> list[int]:
        """Return the ids of the words, one after the other, each segmented at random.

        Raises:
            UserError: `dropout` is not between 0 and 1.
        """
        if not 0 <= dropout <= 1:
            raise UserError(f"dropout {dropout}: must be between 0 and 1")
        if dropout != self._dropout:
            self._dropout = dropout
            self._table = {}
        ids: list[int] = []
        for word in words:
            number = rng.getrandbits(_N_VARIANT_BITS)
            variants = self._table.get(word)
            ids += (variants and variants[number]) or self._compute(word, number)
        return ids

    def _compute(self, word: str, number: int) -> tuple[int, ...]:
        # Python's own hash of a string differs from run to run.
        seed = zlib.crc32(f"{number} {self._dropout!r} {word}".encode())
        variant = tuple(self._segment(word, self._dropout, random.Random(seed)))
        variants = self._table.get(word)
        if variants is None:
            if len(self._table) >= _MAX_WORDS or len(word) > _MAX_WORD_LENGTH:
                return variant
            variants = self._table[word] = [None] * (1 << _N_VARIANT_BITS)
        if variant in variants:  # many are alike: keep one
            variant = variants[variants.index(variant)] or variant
        variants[number] = variant
        return variant


def bpe_dropout(
    symbols: Iterable[str],
    ranks: Mapping[tuple[str, str], int],
    dropout: float,
    rng: random.Random,
) -> list[str]:
    """Segment a word by BPE that overlooks merges at random (Provilkov et al. 2020, algorithm 1).

    At every step each possible merge is dropped with probability `dropout`, and the first of those
    left, in the order of training, is carried out; when none is left, the word is done. Without
    dropout that is plain BPE, with a dropout of 1 the symbols stay as they are.

    >>> ranks = {("l", "o"): 0, ("lo", "w"): 1}
    >>> bpe_dropout("low", ranks, 0.0, random.Random(0))
    ['low']
    >>> bpe_dropout("low", ranks, 1.0, random.Random(0))
    ['l', 'o', 'w']

    Args:
        symbols: The word's smallest parts. Takes time quadratic in their number.
        ranks: The merges; a smaller rank goes first.
        dropout: Probability.
        rng: Source of chance.
    """
    parts = list(symbols)
    while True:
        best = -1
        best_rank = math.inf
        for i in range(len(parts) - 1):
            rank = ranks.get((parts[i], parts[i + 1]))
            # Whether a merge that would lose anyway is dropped makes no difference.
            if rank is not None and rank < best_rank and rng.random() >= dropout:
                best, best_rank = i, rank
        if best < 0:
            return parts
        parts[best : best + 2] = [parts[best] + parts[best + 1]]


def sample_unigram(
    word: str, log_probs: Mapping[str, float], max_length: int, alpha: float, rng: random.Random
) -> list[str]:
    """Draw a segmentation with probability p(segmentation)^alpha / Z (Kudo 2018, section 3.2).

    Forward filtering: for every position, the total weight of all ways to get there. Backward
    sampling: from the end, draw the last piece in proportion to the weight of the ways it ends.

    Args:
        word: At least one character.
        log_probs: The pieces. A character that is none is a piece of its own, a rare one.
        max_length: Of the longest piece, in characters.
        alpha: 1 samples from the model, 0 from all segmentations alike.
        rng: Source of chance.
    """
    total = [0.0]  # log of the weight of all ways to reach each position
    arrivals: list[list[tuple[float, int]]] = [[]]  # (log weight, start of the last piece)
    for end in range(1, len(word) + 1):
        ways = []
        for start in range(max(0, end - max_length), end):
            log_prob = log_probs.get(word[start:end])
            if log_prob is not None:
                ways.append((total[start] + alpha * log_prob, start))
            elif start == end - 1:
                ways.append((total[start] + alpha * _UNKNOWN, start))
        most = max(weight for weight, _ in ways)
        ways = [(math.exp(weight - most), start) for weight, start in ways]
        total.append(most + math.log(sum(weight for weight, _ in ways)))
        arrivals.append(ways)
    pieces = []
    end = len(word)
    while end > 0:
        weights, starts = zip(*arrivals[end], strict=True)
        start = rng.choices(starts, weights)[0]
        pieces.append(word[start:end])
        end = start
    return pieces[::-1]
